"""The one interface to the place where checkpoints live: a folder, or a bucket behind s3://.

Objects are of two kinds. Immutable ones are created once and never replaced, so a crash or a race cannot change what a
reader has seen (`put_file`, `put_bytes`). Pointers are small and replaced by compare-and-swap, so that of two writers
who read the same state exactly one wins (`read_pointer`, `swap_pointer`). `pipeline.storage.checkpoints` builds on both.
"""

import contextlib
import hashlib
import json
import random
import re
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from pipeline.errors import IntegrityError, StorageError
from pipeline.tracking.facts import redact

_FORMS = "write /path, file:///path or s3://bucket/prefix"
CHUNK = 1 << 20  # bytes read at a time
_CHARACTER = r"[^\x00-\x1f\x7f/\\\ud800-\udfff]"
_SEGMENT = re.compile(rf"(?![.~ ]){_CHARACTER}+")  # no leading dot, hence neither ".." nor hidden files


def open_store(url: str) -> "Store":
    """The store behind "/path", "file:///path" or "s3://bucket/prefix"; touches neither disk nor network.

    The endpoint of s3:// comes from AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL or MLFLOW_S3_ENDPOINT_URL, the credentials
    from boto3's usual chain. Raises StorageError for another scheme, and for a URL that carries credentials.
    """
    if "://" not in url:
        if re.match(r"[a-z0-9+]{2,}:", url):
            raise StorageError(f"{redact(url)!r} is not a storage URL; {_FORMS}")
        return _folder_store(Path(url).expanduser().absolute())
    parts = urlsplit(url)
    if "@" in parts.netloc:
        raise StorageError(
            f"{redact(url)}: a storage URL must not carry credentials, they would end in logs; "
            "use AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile"
        )
    if parts.query or parts.fragment:
        raise StorageError(f"{redact(url)}: a storage URL has no '?' or '#'; the endpoint is set by AWS_ENDPOINT_URL")
    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        return _folder_store(Path(unquote(parts.path)))
    if parts.scheme == "s3" and parts.netloc:
        from pipeline.storage.s3 import S3Store  # boto3 is loaded only where a bucket is used

        return S3Store(parts.netloc, parts.path.strip("/"))
    raise StorageError(f"{redact(url)!r} is not a storage URL; {_FORMS}")


def _folder_store(root: Path) -> "Store":
    from pipeline.storage.folder import FolderStore

    return FolderStore(root)


def check_key(key: str) -> str:
    """`key` itself if it is a plain relative name ("a/b.c"); else StorageError. Keeps `..` and absolute paths out."""
    if len(key.encode(errors="replace")) > 900 or not all(_SEGMENT.fullmatch(segment) for segment in key.split("/")):
        raise StorageError(
            f"{key!r} is not an object name: relative, parts joined by '/', none starting with a dot, a space or ~, "
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
                raise IntegrityError(f"{self.url_of(key)}: larger than {limit} bytes, which this object never is")
        return bytes(data)

    def get_file(self, key: str, path: Path) -> None:
        """Download the object to `path`, which appears complete or not at all."""
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        try:
            with temporary.open("wb") as file:
                for chunk in self.chunks(key):
                    file.write(chunk)
            temporary.replace(path)
        except OSError as error:
            raise StorageError(f"cannot write {path}: {error.strerror}") from None
        finally:
            temporary.unlink(missing_ok=True)

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


def check(store: Store) -> None:
    """Prove, before work relies on it, that the store can be written, read and listed, deletes, and honours conditions.

    Raises StorageError saying which of these fails; leaves nothing behind.
    """
    name = uuid.uuid4().hex
    fixed, pointer = f"check/{name}/object", f"check/{name}/pointer"
    try:
        store.put_bytes(fixed, b"first")
        _require(not store.create(fixed, b"second"), store, "replaced an object that was to be created only (If-None-Match)")
        _require(store.get_bytes(fixed) == b"first", store, "returned other bytes than were written")
        _require(store.list(f"check/{name}") == [fixed], store, "does not list an object just written")
        _require(store.swap_pointer(pointer, b"1", None), store, "refused to create a pointer")
        _require(not store.swap_pointer(pointer, b"x", None), store, "created a pointer twice (If-None-Match)")
        etag = store.read_pointer(pointer)[1]
        _require(store.swap_pointer(pointer, b"2", etag), store, "refused a pointer's own etag (If-Match)")
        _require(not store.swap_pointer(pointer, b"3", etag), store, "replaced a pointer by an outdated etag (If-Match)")
    finally:
        with contextlib.suppress(StorageError):  # the first error is the one to tell
            store.delete(fixed)
            store.delete(pointer)
    _require(store.list(f"check/{name}") == [], store, "does not delete")


def _require(holds: bool, store: Store, complaint: str) -> None:
    if not holds:
        raise StorageError(f"{store.url}: the store {complaint}; parallel trials would not be safe there, use another store")


@contextlib.contextmanager
def taking_turns(store: Store, key: str, *, lease: float = 120, patience: float = 180) -> Iterator[None]:
    """Hold the pointer `key` for the length of the block, so that only one holder at a time works, on any machine.

    A holder that died is waited for until its `lease` ends (seconds, by the machines' clocks). StorageError after
    `patience` seconds of waiting.
    """
    owner, deadline = uuid.uuid4().hex, time.monotonic() + patience
    while True:
        held, etag = store.read_pointer(key)
        now = time.time()
        ticket = json.dumps({"owner": owner, "until": now + lease}).encode()
        if _lease_end(held) < now and store.swap_pointer(key, ticket, etag):
            break
        if time.monotonic() > deadline:
            raise StorageError(f"{store.url_of(key)}: held by another process for {patience:.0f} s; try again later")
        time.sleep(random.uniform(0.05, 0.25))
    try:
        yield
    finally:
        held, etag = store.read_pointer(key)
        if held == ticket:
            store.swap_pointer(key, json.dumps({"owner": None, "until": 0}).encode(), etag)


def _lease_end(ticket: bytes | None) -> float:
    try:
        return float(json.loads(ticket)["until"])
    except (ValueError, TypeError, KeyError):
        return 0.0  # nobody's, or nothing that a holder wrote
