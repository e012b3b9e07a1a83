"""A process's folder for passing things: gone at its end, and swept away by the next one where it was killed."""

import contextlib
import fcntl
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

PREFIX, LOCK = "tood-work-", ".lock"
YOUNG = 60  # seconds; a folder may be without its lock for a moment after it was made


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    sweep_scratch()
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    try:
        with (folder / LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # held as long as this process lives
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sweep_scratch() -> None:
    """Remove the folders of processes that are no more: nobody holds their locks."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            if time.time() - (folder / LOCK).stat().st_mtime < YOUNG:
                continue
            with (folder / LOCK).open() as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # BlockingIOError: its process lives
                shutil.rmtree(folder, ignore_errors=True)
