"""Files and folders that appear whole or not at all: written beside their place, synced to the disk, then renamed.

Whatever fails, and wherever the process is killed, the old content stays at its name (on Linux; see `_swap_in`).
OSError is the caller's to explain.
"""

import contextlib
import ctypes
import os
import secrets
import shutil
from pathlib import Path


def write_file(path: Path, data: bytes) -> None:
    """Write a file, replacing an older one in one step; missing parent folders are made."""
    path = Path(os.path.realpath(path))
    temporary = _beside(path)
    try:
        _write(temporary, data)
        os.rename(temporary, path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_folder(folder: Path, files: dict[str, bytes]) -> None:
    """Write a folder of files, relative name -> content, replacing an older folder with all that it holds."""
    folder = Path(os.path.realpath(folder))
    temporary = _beside(folder)
    try:
        for name, data in files.items():
            _write(temporary / name, data)
        for directory in {(temporary / name).parent for name in files}:
            sync_folder(directory)
        _swap_in(temporary, folder)
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # what failed, or what was replaced


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}")


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _swap_in(new: Path, folder: Path) -> None:
    """Give `new` the name `folder`; what was there gets the name `new`."""
    if not folder.exists():
        os.rename(new, folder)
    elif not _exchange(new, folder):
        old = new.with_name(f"{new.name}.old")
        os.rename(folder, old)  # a kill right here leaves the old folder under this name
        try:
            os.rename(new, folder)
        except BaseException:
            os.rename(old, folder)
            raise
        os.rename(old, new)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two names in one step: Linux' renameat2(RENAME_EXCHANGE). False where system or file system cannot."""
    at_cwd, exchange = -100, 2
    with contextlib.suppress(AttributeError, OSError):
        return ctypes.CDLL(None).renameat2(at_cwd, os.fsencode(first), at_cwd, os.fsencode(second), exchange) == 0
    return False
