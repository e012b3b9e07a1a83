"""What a packed data set holds: every file with its sha256, alone or inside a shard (a tar of many files).

manifest.json lies beside the data and is written last and once, so that a data set that has one is whole and stays so:

    {"format": "tood-data-1",
     "shards": [["shards/<sha256>.tar", bytes, sha256], ...],
     "files": {"images/a.jpg": [bytes, sha256, index of its shard or null], ...}}
"""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from pipeline.data.source import Source
from pipeline.errors import IntegrityError, MissingObjectError, StorageError
from pipeline.storage.store import check_key

MANIFEST = "manifest.json"
FORMAT = "tood-data-1"
LARGEST = 1 << 30  # bytes of a manifest: some eight million files
_SHA256 = re.compile(r"[0-9a-f]{64}")


class Shard(NamedTuple):
    name: str
    size: int
    sha256: str


class PackedFile(NamedTuple):
    size: int
    sha256: str
    shard: int | None = None  # index among the shards; None: a file of its own


@dataclass(frozen=True)
class Manifest:
    files: dict[str, PackedFile]
    shards: tuple[Shard, ...] = ()

    def to_bytes(self) -> bytes:
        content = {"format": FORMAT, "shards": self.shards, "files": dict(sorted(self.files.items()))}
        return json.dumps(content, separators=(",", ":")).encode()

    @property
    def version(self) -> str:
        """Changes with any byte of any file."""
        return hashlib.sha256(self.to_bytes()).hexdigest()


def read_manifest(source: Source) -> Manifest | None:
    """The manifest of a source, None where it has none. Raises IntegrityError for one that is not sound."""
    data = bytearray()
    try:
        for chunk in source.chunks(MANIFEST):
            data += chunk
            if len(data) > LARGEST:
                raise IntegrityError(f"{source.url}/{MANIFEST}: larger than {LARGEST} bytes; pack the data anew")
    except MissingObjectError:
        return None
    return parse_manifest(bytes(data), f"{source.url}/{MANIFEST}")


def parse_manifest(data: bytes, where: str) -> Manifest:
    """Raises IntegrityError that says what is wrong: names that leave the folder, sizes, hashes, shards."""
    try:
        content = json.loads(data)
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']!r:.40}, this program reads {FORMAT!r}")
        shards = tuple(Shard(*entry) for entry in content["shards"])
        files = {name: PackedFile(*entry) for name, entry in content["files"].items()}
        for entry in shards:
            _check(entry.name, entry)
        for name, entry in files.items():
            _check(name, entry)
            if entry.shard is not None and (type(entry.shard) is not int or not 0 <= entry.shard < len(shards)):
                raise ValueError(f"{name!r:.200} is in shard {entry.shard!r:.40}, which it does not list")
        folders = {str(parent) for name in files for parent in PurePosixPath(name).parents}
        if both := sorted(folders & files.keys()):
            raise ValueError(f"{both[0]!r:.200} is a file and a folder")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, StorageError) as error:
        said = str(error) if type(error) in (ValueError, json.JSONDecodeError, StorageError) else "its parts have another form"
        raise IntegrityError(f"{where}: not a manifest that `tood data pack` wrote: {said}; pack the data anew") from None
    return Manifest(files, shards)


def _check(name: Any, entry: Shard | PackedFile) -> None:
    check_key(name)
    if type(entry.size) is not int or entry.size < 0:
        raise ValueError(f"{name!r:.200} has the size {entry.size!r:.40}")
    if not isinstance(entry.sha256, str) or not _SHA256.fullmatch(entry.sha256):
        raise ValueError(f"{name!r:.200} has the sha256 {entry.sha256!r:.40}")
