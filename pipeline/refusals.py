"""What the operating system refuses - a folder, a file, a pipe that nobody reads - said in a line, and where possible at once."""

import errno
import os
import select
import sys
import tempfile
from pathlib import Path
from typing import TextIO

from tood.errors import ConfigError

READER_GONE = 128 + 13  # exit code of a process that SIGPIPE ended, as a shell says it
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


def make_folder(folder: Path, setting: str) -> None:
    """Make a folder and write into it, before the work whose outcome it is to hold. Raises ConfigError."""
    done = "made"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        done = "written to"
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"x")
    except OSError as error:
        raise ConfigError(f"{setting}: {folder} cannot be {done} ({error.strerror}); choose another folder") from None


def explained(error: OSError) -> str:
    """A line about a file or a disk that a person can act on; empty for any other error, which is ours."""
    if error.filename is None and error.errno not in (*_FULL, *_FORBIDDEN):
        return ""
    if error.errno in _FULL:
        advice = "free space, or choose another place"
    elif error.errno in _FORBIDDEN:
        advice = "choose another place, or give this user the right to it"
    else:
        advice = "correct the path"
    where = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes | os.PathLike) else "a file"
    return f"{where}: {error.strerror or type(error).__name__}; {advice}"


def reader_gone() -> bool:
    """Whether nobody reads any more what this process prints, as behind `| head -1`. Then nothing is printed any more."""
    gone = [stream for stream in (sys.stdout, sys.stderr) if not _heard(stream)]
    for stream in gone:  # or Python complains as it writes out, at its end, what is left
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return bool(gone)


def _heard(stream: TextIO) -> bool:
    try:
        poll = select.poll()
        poll.register(stream.fileno(), 0)  # what is reported whatever was asked for: that the other end is closed
        return not poll.poll(0)
    except (AttributeError, ValueError, OSError):  # no such call, or no such file: a test's own stream
        return True
