"""What a process that computes on the CPU keeps of its memory."""

import platform
import subprocess
import sys

import pytest
import torch

from tood.config import build
from tood.errors import OutOfMemoryError
from tood.memory import advice
from tood.recipe import Recipe

TOUCHED = """
import resource, torch
from tood.memory import keep_freed_memory
{keep}
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(1 << 26)  # 256 MiB, freed at once
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(min(faults() for _ in range(3)))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another library allocates here")
def test_freed_memory_is_used_again_without_asking_the_kernel():
    counts = []
    for keep in ("", "keep_freed_memory()"):
        done = subprocess.run([sys.executable, "-c", TOUCHED.format(keep=keep)], capture_output=True, text=True, check=True)
        counts.append(int(done.stdout))
    assert counts[0] > 100  # pages of 4 KiB or, where the kernel gives them, of 2 MiB
    assert counts[1] < 10


def test_where_memory_gives_out_it_is_said_what_to_set():
    errors = (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB"), _too_much())
    for error in errors:
        said = _advised(error, world=2, batch_size=12, accumulate=2)
        assert said.startswith("3 images at once do not fit into memory (")
        assert "; set train.accumulate=3 or train.checkpointing=true or train.precision=bf16 or smaller data.long_side" in said
    assert "; set smaller data.long_side" in _advised(errors[0], batch_size=1, checkpointing=True, precision="bf16")
    with pytest.raises(RuntimeError, match="another"):
        _advised(RuntimeError("another"))


def _advised(error: RuntimeError, world: int = 1, **train) -> str:
    with pytest.raises(OutOfMemoryError) as caught, advice(build(Recipe, {"train": train}), world):
        raise error
    return str(caught.value)


def _too_much() -> RuntimeError:
    """What torch raises on a CPU."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    return caught.value
