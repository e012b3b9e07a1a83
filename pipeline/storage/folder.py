"""A store in a folder: objects appear by hard link, pointers by rename under a lock, and both survive a power cut."""

import contextlib
import fcntl
import hashlib
import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import MissingObjectError, StorageError
from pipeline.storage.store import CHUNK, Entry, Store, Unfinished, check_key, file_chunks
from tood.atomic import sync_folder

INCOMING = ".incoming"  # folder of the store: complete copies that wait for their name


class FolderStore(Store):
    """A folder of this machine or of a shared file system that has hard links and locks."""

    def __init__(self, root: Path):
        self.root = root.absolute()
        self.url = self.root.as_uri()

    def create(self, key: str, source: Path | bytes) -> bool:
        target = self._path(key)
        with self._errors("write", target):
            if target.exists():
                return False
            _make_folder(target.parent)
            staged = self._stage(source)
            try:
                os.link(staged, target)  # the atomic step: fails where the name is taken, shows whole content where not
            except FileExistsError:
                return False
            finally:
                staged.unlink()
            sync_folder(target.parent)
        return True

    def chunks(self, key: str) -> Iterator[bytes]:
        path = self._path(key)
        with self._errors("read", path):
            yield from file_chunks(path)

    def entries(self, prefix: str = "") -> list[Entry]:
        top, found = self._path(prefix) if prefix else self.root, []
        with self._errors("list", top):
            for path in top.rglob("*"):
                name = path.relative_to(self.root)
                if not name.parts[0].startswith("."):
                    with contextlib.suppress(FileNotFoundError):  # another process removed it meanwhile
                        status = path.stat()
                        if stat.S_ISREG(status.st_mode):
                            found.append(Entry(name.as_posix(), status.st_size, status.st_mtime))
        return sorted(found)

    def read_pointer(self, key: str) -> tuple[bytes | None, str | None]:
        try:
            data = self.get_bytes(key)
        except MissingObjectError:
            return None, None
        return data, hashlib.sha256(data).hexdigest()

    def swap_pointer(self, key: str, data: bytes, expected_etag: str | None) -> bool:
        target = self._path(key)
        with self._errors("write", target), self._lock(key):
            if self.read_pointer(key)[1] != expected_etag:
                return False
            _make_folder(target.parent)
            os.replace(self._stage(data), target)
            sync_folder(target.parent)
        return True

    def delete(self, key: str) -> None:
        path = self._path(key)
        with self._errors("delete", path):
            path.unlink(missing_ok=True)

    def unfinished(self) -> list[Unfinished]:
        found, folder = [], self.root / INCOMING
        with self._errors("list", folder):
            for path in folder.glob("*"):
                with contextlib.suppress(FileNotFoundError):  # its writer is done
                    status = path.lstat()
                    found.append(Unfinished(f"{INCOMING}/{path.name}", status.st_size, status.st_mtime, path.name))
        return sorted(found)

    def abandon(self, part: Unfinished) -> None:
        path = self.root / INCOMING / part.id
        with self._errors("delete", path):
            path.unlink(missing_ok=True)

    def url_of(self, key: str) -> str:
        return self._path(key).as_uri() if key else self.url

    def _path(self, key: str) -> Path:
        path = self.root / check_key(key)
        if not path.resolve().is_relative_to(self.root.resolve()):
            raise StorageError(f"{path} is a link that leaves the store {self.root}; copy what it leads to")
        return path

    def _own(self, name: str) -> Path:
        """A folder of the store's own, beside the objects."""
        folder = self.root / name
        if folder.is_symlink():
            raise StorageError(f"{folder} is a link, which could leave the store; remove it")
        _make_folder(folder)
        return folder

    def _stage(self, source: Path | bytes) -> Path:
        """A complete, synced copy beside the store's objects, waiting to be given its name."""
        folder = self._own(INCOMING)
        staged = folder / uuid.uuid4().hex
        try:
            with staged.open("xb") as file:
                if isinstance(source, bytes):
                    file.write(source)
                else:
                    with source.open("rb") as original:
                        shutil.copyfileobj(original, file, CHUNK)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            staged.unlink(missing_ok=True)
            raise
        return staged

    @contextlib.contextmanager
    def _lock(self, key: str) -> Iterator[None]:
        folder = self._own(".locks")
        # Of few names, since nobody may remove one; that keys share a lock costs nothing.
        with (folder / hashlib.sha256(key.encode()).hexdigest()[:2]).open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # held by the open file: excludes threads as well as processes
            yield

    @contextlib.contextmanager
    def _errors(self, action: str, path: Path) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, IsADirectoryError) as error:
            raise MissingObjectError(f"cannot {action} {error.filename or path}: there is no such file") from None
        except OSError as error:
            raise StorageError(f"cannot {action} {path}: {error.strerror}; check the folder, its rights and disk") from None


def _make_folder(folder: Path) -> None:
    """`mkdir -p` that survives a power cut: each new name is synced in its parent."""
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)
