"""Memory: what a process on the CPU keeps, and what to do where a step needs more than there is."""

import contextlib
import ctypes
import os
import platform
import re
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from tood.config import TrainConfig
from tood.errors import OutOfMemoryError
from tood.recipe import Recipe

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's mallopt(3)
# For the environment of a process that trains in another thread than its first, as Ray's workers do: `keep_freed_memory` does
# not reach a thread's own arena, which glibc shrinks whatever it was told.
ONE_ARENA = {"MALLOC_ARENA_MAX": "1"}


def keep_freed_memory() -> None:
    """What is freed stays with this process, for the next step, which needs as much again.

    Left alone, glibc gets each large tensor from the kernel and gives it back at once, and the kernel fills its pages with
    zeros each time: 5 to 9 % of a training step of TOOD R-50 and a seventh of a detection in float32. The most memory that is
    held at once stays what it was. Nothing happens where another library allocates (macOS, musl).
    """
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)  # never


def peak() -> int:
    """Bytes that this process has held at once, at most so far."""
    with contextlib.suppress(OSError):  # what Linux says to getrusage counts the process that started this one too
        if found := re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text()):
            return int(found[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def resident(process: int) -> int:
    """Bytes that a process holds now; 0 where that cannot be asked, or it has ended."""
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def available() -> int:
    """Bytes that processes here can still take: what the machine has, or the control group that they are in."""
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):  # not Linux: all that is built in
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    group = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):  # no such group, or one without a limit, "max"
        free = min(free, int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    return free


@contextlib.contextmanager
def advice(recipe: Recipe, world: int) -> Iterator[None]:
    """Memory that gives out in here is an OutOfMemoryError that says what to set. world: workers that share a batch."""
    try:
        yield
    except RuntimeError as error:
        if not is_exhaustion(error):
            raise
        train = recipe.train
        images = train.batch_size // world // train.accumulate
        ways = [f"train.accumulate={next_accumulate(train.batch_size // world, train.accumulate)}"] if images > 1 else []
        raise OutOfMemoryError(
            f"{images} images at once do not fit into memory ({str(error).splitlines()[0]:.200}); "
            f"set {' or '.join(ways + savings(train))} (`tood fit` measures what fits)"
        ) from None


def savings(train: TrainConfig) -> list[str]:
    """Settings by which an image takes less memory, the least harmful first."""
    settings = [] if train.checkpointing else ["train.checkpointing=true"]
    settings += [] if train.precision == "bf16" else ["train.precision=bf16"]
    return [*settings, "smaller data.long_side and data.short_side"]


def is_exhaustion(error: RuntimeError) -> bool:
    """Whether memory gave out, on a GPU or on the CPU."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def next_accumulate(images: int, accumulate: int) -> int:
    """The least number of forward passes above `accumulate` that `images` of a worker's step divide into."""
    return next(passes for passes in range(accumulate + 1, images + 1) if images % passes == 0)
