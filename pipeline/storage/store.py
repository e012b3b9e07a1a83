"""The one interface to the place where checkpoints live: a folder, or a bucket behind s3://.

Objects are of two kinds. Immutable ones are created once and never replaced, so a crash or a race cannot change what a
reader has seen (`put_file`, `put_bytes`). Pointers are small and replaced by compare-and-swap, so that of two writers
who read the same state exactly one wins (`read_pointer`, `swap_pointer`). `pipeline.storage.checkpoints` builds on both.
"""

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import IntegrityError, StorageError

CHUNK = 1 << 20  # bytes read at a time
_CHARACTER = r"[^\x00-\x1f\x7f/\\\ud800-\udfff]"
_SEGMENT = re.compile(rf"(?![.~ ]){_CHARACTER}+")  # no leading dot, hence neither ".." nor hidden files


def check_key(key: str) -> str:
    """`key` itself if it is a plain relative name ("a/b.c"); else StorageError. Keeps `..` and absolute paths out."""
    if len(key.encode(errors="replace")) > 900 or not all(_SEGMENT.fullmatch(segment) for segment in key.split("/")):
        raise StorageError(
            f"{key!r:.200} is not an object name; use a relative one, parts joined by '/', none starting with a dot, a space or ~, "
            "without backslashes and control characters"
        )
    return key


class ObjectInfo(NamedTuple):
    size: int | None  # bytes; None where a server does not say
    version: str | None  # changes with the content: an ETag, or a date


class Entry(NamedTuple):
    """An object as a listing shows it."""

    key: str
    size: int  # bytes
    modified: float  # when it was written, seconds since 1970 by the store's clock


class Unfinished(NamedTuple):
    """A write that is under way, or was cut off: no reader sees it."""

    key: str  # of the object that it was to be, or a name for a person
    size: int  # bytes, where the place tells
    modified: float  # when it began or was last added to, seconds since 1970
    id: str  # for the store alone


class Store(ABC):
    """Objects under keys like "checkpoints/run/00000012-ab34/manifest.json".

    Every method raises StorageError when the place cannot be reached or refuses. Threads may share a store; another
    process opens its own from `url`.
    """

    url: str

    @abstractmethod
    def create(self, key: str, source: Path | bytes) -> bool:
        """Write a new object whole or not at all. False, and nothing changed, if `key` exists."""

    @abstractmethod
    def chunks(self, key: str) -> Iterator[bytes]:
        """The object's bytes in order; MissingObjectError if there is none."""

    @abstractmethod
    def entries(self, prefix: str = "") -> "list[Entry]":
        """All objects beneath the folder `prefix` ("" = everything), sorted by key."""

    @abstractmethod
    def read_pointer(self, key: str) -> tuple[bytes | None, str | None]:
        """Content and etag to swap against; (None, None) if there is no such pointer."""

    @abstractmethod
    def swap_pointer(self, key: str, data: bytes, expected_etag: str | None) -> bool:
        """Replace the pointer only if its etag still is `expected_etag` (None: only if absent). False if it is not."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove the object; nothing happens if there is none."""

    @abstractmethod
    def unfinished(self) -> "list[Unfinished]":
        """Writes under way or cut off. What is old will not be finished: who writes begins anew."""

    @abstractmethod
    def abandon(self, part: Unfinished) -> None:
        """Remove what was written so far; nothing happens if it is gone, or was finished meanwhile."""

    @abstractmethod
    def url_of(self, key: str) -> str:
        """Absolute URL of an object or of a folder of objects."""

    def list(self, prefix: str = "") -> "list[str]":
        """Keys of all objects beneath the folder `prefix` ("" = everything), sorted."""
        return [entry.key for entry in self.entries(prefix)]

    def put_file(self, key: str, path: Path) -> None:
        """Create `key` from a file. Existing equal content is success, different content an IntegrityError."""
        if not self.create(key, path):
            self._require_equal(key, file_chunks(path))

    def put_bytes(self, key: str, data: bytes) -> None:
        """Create `key` from memory, as `put_file` does."""
        if not self.create(key, data):
            self._require_equal(key, iter([data]))

    def get_bytes(self, key: str, limit: int = 16 << 20) -> bytes:
        """The whole object; IntegrityError if it is larger than `limit` bytes."""
        data = bytearray()
        for chunk in self.chunks(key):
            data += chunk
            if len(data) > limit:
                raise IntegrityError(
                    f"{self.url_of(key)}: larger than {limit} bytes, which this object never is; remove it, or put it there again"
                )
        return bytes(data)

    def _require_equal(self, key: str, wanted: Iterator[bytes]) -> None:
        ours, theirs = _sha256(wanted), _sha256(self.chunks(key))
        if ours != theirs:
            raise IntegrityError(
                f"{self.url_of(key)} exists with other content: sha256 {theirs}, to be written {ours}; objects are "
                "never replaced, so delete the stored one if it is wrong"
            )


def file_chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            yield chunk


def _sha256(chunks: Iterator[bytes]) -> str:
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()
