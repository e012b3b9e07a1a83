"""The folder in which a node keeps data sets that it fetched: who uses which, who may fetch, and what makes room.

    <cache>/<key>/files/...      the data set, as data.root of a run
    <cache>/<key>/partial/...    downloads that are not whole yet
    <cache>/<key>/journal        a line a finished file: path, bytes, sha256, time of change
    <cache>/<key>/reserved       bytes that the data set takes or is going to take
    <cache>/locks/...            see below; never removed, so that a lock is always one and the same file

All locks are flock's, which the kernel takes away from whoever dies. `use` is shared by all processes that read a data
set, and held until they end; who can have it alone may remove the data set. `fetch` lets one process at a time fetch.
`room` lets one at a time count what all data sets take.
"""

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

from pipeline.errors import StorageError
from tood.atomic import write_file

_HELD: dict[Path, IO] = {}  # the `use` locks of this process
_POLL = 0.1  # seconds


class Record(NamedTuple):
    """A file that was fetched whole."""

    size: int
    sha256: str
    mtime_ns: int


class Place:
    """One data set's folder in the cache, in use by this process until its end. Threads may share it."""

    def __init__(self, cache: Path, key: str):
        self.cache, self.key = cache, key
        self.folder = cache / key
        self.files, self.partial = self.folder / "files", self.folder / "partial"
        self._writing = threading.Lock()
        with _errors(cache):
            (cache / "locks").mkdir(parents=True, exist_ok=True)
            lock = cache / "locks" / f"{key}.use"
            if lock not in _HELD:
                _HELD[lock] = _lock(lock, fcntl.LOCK_SH)  # waits while somebody removes the data set
            self.files.mkdir(parents=True, exist_ok=True)
            self.partial.mkdir(exist_ok=True)
            (self.folder / "used").touch()  # its time of change tells how long ago the data set was used

    @contextlib.contextmanager
    def fetching(self, wait: Callable[[], None]) -> Iterator[None]:
        """Be the only process of this node that fetches this data set; `wait` is called once if another one is at it."""
        path = self.cache / "locks" / f"{self.key}.fetch"
        with _errors(self.cache):
            held = _lock(path, fcntl.LOCK_EX, patient=False)
            if held is None:
                wait()
                held = _lock(path, fcntl.LOCK_EX)
        with held:
            yield

    def journal(self) -> dict[str, Record]:
        """Finished files by name; a line that a killed process left half written counts as none."""
        found = {}
        with contextlib.suppress(FileNotFoundError), (self.folder / "journal").open(encoding="utf-8") as file:
            for line in file:
                with contextlib.suppress(ValueError, TypeError):
                    name, *record = json.loads(line)
                    found[name] = Record(*record)
        return found

    def keep(self, name: str, partial: Path, sha256: str) -> Record:
        """Give a finished download its name among the files, and write it down."""
        target = self.files / name
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(partial, target)
        found = target.stat()
        record = Record(found.st_size, sha256, found.st_mtime_ns)
        # A line feed first: what a killed process left half written must not swallow this line.
        with self._writing, (self.folder / "journal").open("a", encoding="utf-8") as file:
            file.write("\n" + json.dumps([name, *record]) + "\n")
        return record

    def intact(self, name: str, record: Record) -> bool:
        """Is the file as it was when it was fetched, by its size and time of change?"""
        try:
            found = os.stat(self.files / name)
        except OSError:
            return False
        return (found.st_size, found.st_mtime_ns) == (record.size, record.mtime_ns)

    def reserve(self, total: int, missing: int, limit: int) -> None:
        """Make room for `total` bytes of this data set, `missing` of which are yet to come, within `limit` bytes in all.

        Removes other data sets, the longest unused first, and none in use. Raises StorageError where that is not enough.
        """
        if total > limit:  # said before anything is removed in vain
            raise StorageError(
                f"{self.cache}: the data take {total / 1e9:.2f} GB, and cache.max_gb is {limit / 1e9:g}; raise cache.max_gb"
            )
        with _errors(self.cache), _lock(self.cache / "locks" / "room", fcntl.LOCK_EX):
            for left in self.cache.glob(".removed-*"):
                shutil.rmtree(left, ignore_errors=True)
            others = sorted((_used(path), path) for path in self.cache.glob("*/reserved") if path.parent != self.folder)
            sizes = {path.parent: _bytes(path) for _, path in others}
            for _, path in others:
                if sum(sizes.values()) + total <= limit and missing <= shutil.disk_usage(self.cache).free:
                    break
                if self._remove(path.parent):
                    del sizes[path.parent]
            if sum(sizes.values()) + total > limit:
                raise StorageError(
                    f"{self.cache}: no room for the data, which take {total / 1e9:.2f} GB: cache.max_gb is {limit / 1e9:g}, and "
                    f"{sum(sizes.values()) / 1e9:.2f} GB are other data sets in use; raise cache.max_gb, or set another cache.dir"
                )
            if missing > (free := shutil.disk_usage(self.cache).free):
                raise StorageError(
                    f"{self.cache}: its disk has {free / 1e9:.2f} GB left, {missing / 1e9:.2f} GB are to come; free some, or "
                    "set cache.dir to another disk"
                )
            write_file(self.folder / "reserved", str(total).encode())

    def _remove(self, other: Path) -> bool:
        """Remove a data set unless a process uses it."""
        held = _lock(self.cache / "locks" / f"{other.name}.use", fcntl.LOCK_EX, patient=False)
        if held is None:
            return False
        with held:
            away = self.cache / f".removed-{other.name}-{secrets.token_hex(4)}"
            os.rename(other, away)
            shutil.rmtree(away, ignore_errors=True)
        return True


def leave_all() -> None:
    """Give up every data set that this process uses; for processes that go on to other things."""
    while _HELD:
        _HELD.popitem()[1].close()


def _lock(path: Path, kind: int, patient: bool = True) -> IO | None:
    """An open file that holds the lock; None where it is taken and the caller has no patience."""
    file = path.open("a")
    while True:
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
            return file
        except BlockingIOError:
            if not patient:
                file.close()
                return None
            time.sleep(_POLL)  # not a blocking call: that could not be interrupted in a worker's thread
        except BaseException:
            file.close()
            raise


def _used(reserved: Path) -> float:
    try:
        return (reserved.parent / "used").stat().st_mtime
    except OSError:
        return 0.0


def _bytes(reserved: Path) -> int:
    try:
        return int(reserved.read_text())
    except (OSError, ValueError):
        return 0


@contextlib.contextmanager
def _errors(cache: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"{error.filename or cache}: {error.strerror or error}; set cache.dir to a folder of your own") from None
