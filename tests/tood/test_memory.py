"""What a process that computes on the CPU keeps of its memory."""

import platform
import subprocess
import sys

import pytest

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
