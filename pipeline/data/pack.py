"""`tood data pack`: put a data set into a bucket or folder so that every node can fetch it fast and prove each byte.

Shards are tars of about 256 MB, filled in the order of the names, so that the images of a folder share few of them. The
same files give the same shards, bit by bit; what is there already is not sent again. Nothing is ever replaced: a changed
data set needs a place of its own, or runs on different nodes could see different data.
"""

import hashlib
import os
import stat
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from pipeline.data.manifest import MANIFEST, Manifest, PackedFile, Shard
from pipeline.errors import IntegrityError, StorageError
from pipeline.storage.opening import open_store
from pipeline.storage.store import CHUNK, Store, check_key
from tood.errors import DataError

SHARD = 256 << 20  # bytes of files after which a shard is closed
SHOWN = 20


class Packed(NamedTuple):
    url: str
    files: int
    shards: int
    size: int  # bytes of the files


def pack(root: Path, output: str, *, shard_bytes: int = SHARD, say: Callable[[str], None] = print) -> Packed:
    """Pack every file beneath `root` but hidden ones; shard_bytes=0 stores each file under its own name.

    JSON files are always stored under their own names: a look at the annotations need not fetch images.
    Raises DataError that lists all links and odd names, StorageError and IntegrityError of the store.
    """
    root = Path(root).expanduser()
    names, store = _names(root), open_store(output)
    try:
        manifest = _send(root, names, store, shard_bytes, say)
    except OSError as error:
        raise DataError(f"{error.filename or root}: cannot be packed: {error.strerror or error}") from None
    try:
        store.put_bytes(MANIFEST, manifest.to_bytes())
    except IntegrityError:
        raise StorageError(
            f"{store.url}: holds another packed data set, which is never replaced; choose another --output"
        ) from None
    return Packed(store.url, len(manifest.files), len(manifest.shards), sum(entry.size for entry in manifest.files.values()))


def _send(root: Path, names: list[str], store: Store, shard_bytes: int, say: Callable[[str], None]) -> Manifest:
    files: dict[str, PackedFile] = {}
    alone = [name for name in names if not shard_bytes or name.endswith(".json")]
    for name in alone:
        path, sha256 = root / name, _sha256(root / name)
        files[name] = PackedFile(path.stat().st_size, sha256)
        store.put_file(name, path)
    shards = []
    for part in _parts(root, [name for name in names if name not in files], shard_bytes):
        with tempfile.TemporaryDirectory(prefix="tood-pack-") as scratch:
            shard = _send_shard(store, root, part, Path(scratch) / "shard.tar", files, len(shards))
        shards.append(shard)
        say(f"{store.url}/{shard.name[:19]}... {shard.size / 1e6:,.0f} MB, {len(files):,} of {len(names):,} files")
    return Manifest(files, tuple(shards))


def _names(root: Path) -> list[str]:
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; give the data set's by --root")
    names, problems = [], []
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for entry in [*folders, *files]:
            path = Path(folder, entry)
            kind, name = path.lstat().st_mode, path.relative_to(root).as_posix()
            if stat.S_ISLNK(kind):
                problems.append(f"{name}: a link; copy what it leads to into the folder")
            elif entry in files and not entry.startswith("."):
                if not stat.S_ISREG(kind):
                    problems.append(f"{name}: not a plain file; remove it")
                elif name == MANIFEST or name.startswith("shards/"):
                    problems.append(f"{name}: a name that packing itself needs; rename it")
                else:
                    try:
                        names.append(check_key(name))
                    except StorageError as error:
                        problems.append(str(error))
    if problems:
        more = [f"... and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
        raise DataError("\n  ".join([f"{root}: {len(problems)} names that cannot be packed", *problems[:SHOWN], *more]), problems)
    if not names:
        raise DataError(f"{root}: holds no file; give another folder by --root")
    return sorted(names)


def _parts(root: Path, names: list[str], limit: int) -> Iterator[list[str]]:
    part, size = [], 0
    for name in names:
        part.append(name)
        size += (root / name).stat().st_size
        if size >= limit:
            yield part
            part, size = [], 0
    if part:
        yield part


def _send_shard(store: Store, root: Path, names: list[str], target: Path, files: dict[str, PackedFile], number: int) -> Shard:
    """Write a tar that depends on names and content alone, and store it under its hash."""
    with tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as archive:
        for name in names:
            with (root / name).open("rb") as content:
                member = tarfile.TarInfo(name)
                member.size, member.mode = os.fstat(content.fileno()).st_size, 0o644
                hashing = _Hashing(content)
                archive.addfile(member, hashing)
            files[name] = PackedFile(member.size, hashing.digest.hexdigest(), number)
    sha256 = _sha256(target)
    shard = Shard(f"shards/{sha256}.tar", target.stat().st_size, sha256)
    store.create(shard.name, target)  # one that is there under this name has this content
    return shard


class _Hashing:
    """A file whose bytes are hashed as they are read: the hash is of what the shard got."""

    def __init__(self, file):
        self.file, self.digest = file, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self.file.read(size)
        self.digest.update(data)
        return data


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
