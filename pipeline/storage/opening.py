"""From an address to a store, and the proof that it does what this project relies on."""

import contextlib
import re
import uuid
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pipeline.errors import StorageError
from pipeline.storage.folder import FolderStore
from pipeline.storage.store import Store
from pipeline.tracking.facts import redact

_FORMS = "write /path, file:///path or s3://bucket/prefix"


def open_store(url: str) -> Store:
    """The store behind "/path", "file:///path" or "s3://bucket/prefix"; touches neither disk nor network.

    The endpoint of s3:// comes from AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL or MLFLOW_S3_ENDPOINT_URL, the credentials
    from boto3's usual chain. Raises StorageError for another scheme, and for a URL that carries credentials.
    """
    if "\0" in url:
        raise StorageError(f"{redact(url)!r} is not a storage URL; {_FORMS}")
    if "://" not in url:
        if re.match(r"[a-z0-9+]{2,}:", url):
            raise StorageError(f"{redact(url)!r} is not a storage URL; {_FORMS}")
        return FolderStore(Path(url).expanduser().absolute())
    try:
        parts = urlsplit(url)
    except ValueError:
        raise StorageError(f"{redact(url)!r} is not a storage URL; {_FORMS}") from None
    if "@" in parts.netloc:
        raise StorageError(
            f"{redact(url)}: a storage URL must not carry credentials, they would end in logs; "
            "use AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile"
        )
    if parts.query or parts.fragment:
        raise StorageError(
            f"{redact(url)}: a storage URL has no '?' or '#'; leave them out, and set an endpoint by AWS_ENDPOINT_URL"
        )
    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        return FolderStore(Path(unquote(parts.path)))
    if parts.scheme == "s3" and parts.netloc:
        from pipeline.storage.s3 import S3Store  # boto3 is loaded only where a bucket is used

        return S3Store(parts.netloc, parts.path.strip("/"))
    raise StorageError(f"{redact(url)!r} is not a storage URL; {_FORMS}")


def check(store: Store) -> None:
    """Prove, before work relies on it, that the store can be written, read and listed, deletes, and honours conditions.

    Raises StorageError saying which of these fails; leaves nothing behind.
    """
    name = uuid.uuid4().hex
    fixed, pointer = f"check/{name}-object", f"check/{name}-pointer"

    def left() -> list[str]:
        return [key for key in store.list("check") if name in key]

    try:
        store.put_bytes(fixed, b"first")
        _require(not store.create(fixed, b"second"), store, "replaced an object that was to be created only (If-None-Match)")
        _require(store.get_bytes(fixed) == b"first", store, "returned other bytes than were written")
        _require(left() == [fixed], store, "does not list an object just written")
        _require(store.swap_pointer(pointer, b"1", None), store, "refused to create a pointer")
        _require(not store.swap_pointer(pointer, b"x", None), store, "created a pointer twice (If-None-Match)")
        etag = store.read_pointer(pointer)[1]
        _require(store.swap_pointer(pointer, b"2", etag), store, "refused a pointer's own etag (If-Match)")
        _require(not store.swap_pointer(pointer, b"3", etag), store, "replaced a pointer by an outdated etag (If-Match)")
    finally:
        with contextlib.suppress(StorageError):  # the first error is the one to tell
            store.delete(fixed)
            store.delete(pointer)
    _require(left() == [], store, "does not delete")


def _require(holds: bool, store: Store, complaint: str) -> None:
    if not holds:
        raise StorageError(f"{store.url}: the store {complaint}; parallel trials would not be safe there, use another store")
