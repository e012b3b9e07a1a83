"""Which process this is, in words that another one on the same machine can check: has it ended?

A number alone says nothing: numbers are given again, and every container counts its own. Where the system does not tell
(it is no Linux), no process is known, and none is known to have ended.
"""

import os
import platform
from pathlib import Path
from typing import Any


def this_process() -> dict[str, Any] | None:
    kernel, about = _kernel(), _state_and_start(os.getpid())
    return {"kernel": kernel, "pid": os.getpid(), "start": about[1]} if kernel and about else None


def has_ended(process: Any) -> bool:
    """Whether what `this_process` said of a process is of one that is no more. False wherever that cannot be known."""
    if not isinstance(process, dict) or not process.get("kernel") or process["kernel"] != _kernel():
        return False
    pid = process.get("pid")
    if type(pid) is not int or pid < 1:
        return False
    try:
        os.kill(pid, 0)  # asks, and does nothing
    except ProcessLookupError:
        return True
    except OSError:  # it is another person's
        return False
    about = _state_and_start(pid)
    return about is not None and (about[0] in "ZX" or about[1] != process.get("start"))


def _kernel() -> str | None:
    """This boot of this machine, and where it counts its processes."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{platform.node()} {boot} {os.readlink('/proc/self/ns/pid')}" if boot else None
    except OSError:
        return None


def _state_and_start(pid: int) -> tuple[str, int] | None:
    """A process's state (Z: it has ended, and its parent has not looked), and when it began, in ticks since the boot."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()  # its name before that may hold anything
        return words[0], int(words[19])
    except (OSError, IndexError, ValueError):
        return None
