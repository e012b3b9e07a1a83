"""Where a data set is read from when data.root is an address: an S3 bucket, or a web server. Nothing here writes."""

import itertools
import random
import re
import time
from collections.abc import Iterator
from typing import Any, Protocol
from urllib.parse import quote, urlsplit

from pipeline.errors import ChangedObjectError, MissingObjectError, StorageError
from pipeline.storage.opening import open_store
from pipeline.storage.store import CHUNK, ObjectInfo, check_key
from pipeline.tracking.facts import redact

ATTEMPTS = 5  # of a request that the network or a busy server broke
CONNECTIONS = 32  # kept open to a web server
_BUSY = (408, 425, 429, 500, 502, 503, 504)


class Source(Protocol):
    """Files under names like "images/a.jpg" beneath `url`. Threads may share a source."""

    url: str

    def info(self, name: str) -> ObjectInfo:
        """Size and version of a file; MissingObjectError if there is none."""

    def chunks(self, name: str, start: int = 0, version: str | None = None) -> Iterator[bytes]:
        """A file's bytes from `start` on, of this version alone; ChangedObjectError where that is gone."""

    def listing(self, folder: str = "") -> dict[str, ObjectInfo] | None:
        """All files beneath a folder; None where the source cannot list."""


def is_remote(root: str) -> bool:
    """Is data.root an address, and not a folder?"""
    return re.match(r"(?i)[a-z][a-z0-9+.-]+:/", root) is not None


def open_source(url: str) -> Source:
    """The source behind s3://bucket/prefix or http(s)://host/path. Raises StorageError for any other address.

    Credentials: for S3 by boto3's usual chain, for the web by ~/.netrc; reading and, for S3 without a manifest, listing
    are all that is asked of them.
    """
    scheme = url.partition(":")[0].lower()
    if scheme == "s3":
        return open_store(url)
    if scheme in ("http", "https"):
        return WebSource(url)
    raise StorageError(f"data.root: {redact(url)!r} is no address that data comes from; give a folder, s3://... or https://...")


class WebSource:
    """Files of a web server, by GET; broken downloads go on where they were cut, where the server can do that."""

    def __init__(self, url: str):
        import requests
        from requests.adapters import HTTPAdapter

        try:
            parts = urlsplit(url)
            sound = "@" not in parts.netloc and bool(parts.hostname) and parts.port != 0  # a port that is none raises
        except ValueError:
            sound = False
        if not sound:
            raise StorageError(f"data.root: {redact(url)} must name a host and no credentials; put those into ~/.netrc")
        if parts.query or parts.fragment:
            raise StorageError(f"data.root: {redact(url)}: an address of a folder has no '?' or '#'; leave them out")
        self.url = url.rstrip("/")
        self._session = requests.Session()
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(pool_maxsize=CONNECTIONS))
        # what a retry may mend: no connection, a silent or cut one
        self._broken = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)
        self._refused = requests.RequestException

    def info(self, name: str) -> ObjectInfo:
        for attempt in itertools.count(1):
            try:
                with self._request("HEAD", name) as reply:
                    if reply.status_code in (403, 405, 501):  # some servers answer GET alone
                        return ObjectInfo(None, None)
                    self._check(reply, name)
                    length = reply.headers.get("Content-Length", "")
                    return ObjectInfo(int(length) if length.isdecimal() else None, _version(reply))
            except (_BusyError, *self._broken) as error:
                self._pause(name, error, attempt)

    def chunks(self, name: str, start: int = 0, version: str | None = None) -> Iterator[bytes]:
        offset, breaks = start, 0
        while True:
            try:
                with self._request("GET", name, offset, version) as reply:
                    self._check(reply, name)
                    if offset and version and _version(reply) not in (version, None):
                        raise ChangedObjectError(f"cannot read {self._address(name)}: the file has changed; try again")
                    version = version or _version(reply)
                    skip = offset if reply.status_code == 200 else 0  # a server without ranges begins anew
                    for chunk in reply.iter_content(CHUNK):
                        skipped, skip = chunk[skip:], max(0, skip - len(chunk))
                        if skipped:
                            offset += len(skipped)
                            yield skipped
                    return
            except (_BusyError, *self._broken) as error:
                breaks += 1
                self._pause(name, error, breaks)

    def listing(self, folder: str = "") -> None:
        """Web servers list in no agreed form."""

    def _request(self, method: str, name: str, start: int = 0, version: str | None = None) -> Any:
        headers = {"Accept-Encoding": "identity"}  # sizes and ranges are the file's own
        if start:
            headers |= {"Range": f"bytes={start}-"} | ({"If-Range": version} if version else {})
        try:
            return self._session.request(
                method, self._address(name), headers=headers, stream=True, timeout=(5, 60), allow_redirects=True
            )
        except self._broken:
            raise
        except self._refused as error:
            raise StorageError(f"cannot read {self._address(name)}: {redact(str(error))}") from None

    def _check(self, reply: Any, name: str) -> None:
        status, where = reply.status_code, f"cannot read {self._address(name)}"
        if self.url.startswith("https:") and not reply.url.startswith("https:"):
            raise StorageError(f"{where}: it is redirected to an address without encryption; set data.root to where it leads")
        if status in (404, 410):
            raise MissingObjectError(f"{where}: there is no such file")
        if status == 416:
            raise ChangedObjectError(f"{where}: the file has become shorter; try again")
        if status in _BUSY:
            raise _BusyError(f"the server answers {status}", reply.headers.get("Retry-After", ""))
        if status in (401, 403):
            raise StorageError(f"{where}: the server refuses it ({status}); give credentials in ~/.netrc")
        if status not in (200, 206):
            raise StorageError(f"{where}: the server answers {status}")

    def _pause(self, name: str, error: Exception, attempt: int) -> None:
        """Wait before the next attempt, with jitter; after the last one a StorageError."""
        if attempt >= ATTEMPTS:
            said = str(error) if isinstance(error, _BusyError) else f"no connection ({type(error).__name__})"
            raise StorageError(f"cannot read {self._address(name)}: {said}; check the address, and that the server runs")
        wanted = getattr(error, "seconds", "")
        time.sleep(min(30.0, float(wanted)) if wanted.isdecimal() else random.uniform(0, 0.2 * 2**attempt))

    def _address(self, name: str) -> str:
        return f"{self.url}/{quote(check_key(name))}"


class _BusyError(Exception):
    def __init__(self, said: str, seconds: str):
        super().__init__(said)
        self.seconds = seconds  # that the server asks to wait


def _version(reply: Any) -> str | None:
    tag = reply.headers.get("ETag", "")
    return tag if tag and not tag.startswith("W/") else reply.headers.get("Last-Modified")
