"""Checkpoints in a store: written so that a reader sees a whole one or none, read so that no altered byte gets through.

    checkpoints/<run>/latest.json                  pointer to the newest and a note on it, moved by compare-and-swap
    checkpoints/<run>/<step>-<digest>/
        model/model.safetensors, model/manifest.json   a model, of use alone
        training.safetensors                           what resuming needs besides
        manifest.json                                  written last: it makes the checkpoint exist

A manifest names each file with its sha256 and size, so the sha256 of its own bytes, the digest, stands for everything.
"""

import hashlib
import json
import re
import shutil
import uuid
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from pipeline.errors import IntegrityError, MissingObjectError, StorageError
from pipeline.storage.folder import FolderStore
from pipeline.storage.opening import open_store
from pipeline.storage.pointers import NAMED, Latest, advance, close, pointer_key, run_folder
from pipeline.storage.store import Store, check_key

MODELS = "models"  # folder of a store: models put there by hand
MANIFEST = "manifest.json"
DESCRIBED = "model/MLmodel"  # beside a checkpoint's model, from before it is registered on


class Readable(Protocol):
    """What `fetch` needs of a place; every Store has it."""

    def get_bytes(self, key: str) -> bytes: ...
    def chunks(self, key: str) -> Any: ...
    def url_of(self, key: str) -> str: ...


class File(NamedTuple):
    sha256: str
    size: int  # bytes


class Manifest(NamedTuple):
    digest: str  # sha256 of the manifest's own bytes
    files: dict[str, File]  # by name relative to the manifest's folder
    values: dict[str, Any]  # the whole document
    raw: bytes


def upload_checkpoint(store: Store, folder: Path, run: str, note: dict[str, Any] | None = None) -> str:
    """Store the checkpoint in `folder` and move the run's pointer to it; returns its prefix in the store.

    note: plain values that the pointer keeps beside it, so that they become true in one step with the checkpoint.

    Safe to repeat after a crash: what is there already is kept. Raises IntegrityError if the folder does not match its
    own manifest, StorageError if the store fails; the checkpoint then does not exist for readers.
    """
    manifest = verify(FolderStore(folder), "")
    unnamed = set(FolderStore(folder).list()) - set(manifest.files) - {MANIFEST}
    if unnamed:
        raise IntegrityError(f"{folder}: {', '.join(sorted(unnamed))} is not named by {MANIFEST}")
    prefix = _prefix(folder, run, manifest)
    if not _is_stored(store, prefix, manifest):
        wanted = sorted(manifest.files, key=lambda name: (Path(name).name == MANIFEST, name))
        for name in wanted:
            store.put_file(f"{prefix}/{name}", folder / name)
        store.put_bytes(f"{prefix}/{MANIFEST}", manifest.raw)
        # Files of an upload cut off long ago may have been cleaned away while this one found them there.
        there = set(store.list(prefix))
        for name in wanted:
            if f"{prefix}/{name}" not in there:
                store.put_file(f"{prefix}/{name}", folder / name)
    advance(store, run, Latest(manifest.values["step"], prefix, note or {}))
    return prefix


def prefix_of(folder: Path, run: str) -> str:
    """Where `upload_checkpoint` will put the checkpoint in `folder`."""
    return _prefix(folder, run, read_manifest(FolderStore(folder), ""))


def fetch(store: Readable, prefix: str, destination: Path, expected_digest: str | None = None) -> Path:
    """Download the folder whose manifest lies at `prefix` ("" = the store's top), verifying every byte on its way.

    Only files that the manifest names are read, never more bytes than it says. `destination` appears as a whole folder
    after the last hash was compared, or not at all; one already there is accepted if it is the same and intact.
    `expected_digest`: the sha256 that manifest.json itself must have. Raises IntegrityError for altered bytes,
    MissingObjectError where there is no manifest, StorageError.
    """
    manifest = read_manifest(store, prefix, expected_digest)
    try:
        if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
            return _require_same(destination, manifest)
        destination.parent.mkdir(parents=True, exist_ok=True)
        incoming = destination.with_name(f".{destination.name}.{uuid.uuid4().hex}")
        incoming.mkdir()
        try:
            for name, file in manifest.files.items():
                path = incoming / name
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("xb") as target:
                    _stream(store, _join(prefix, name), file, target.write)
            (incoming / MANIFEST).write_bytes(manifest.raw)
            incoming.rename(destination)
        finally:
            shutil.rmtree(incoming, ignore_errors=True)
    except OSError as error:
        raise StorageError(f"cannot write {destination}: {error.strerror}; check the folder, its rights and disk") from None
    return destination


def fetch_url(url: str, destination: Path, expected_digest: str | None = None) -> Path:
    """`fetch` from a folder named by its URL, as the model registry keeps it."""
    return fetch(open_store(url), "", destination, expected_digest)


def verify(store: Readable, prefix: str, expected_digest: str | None = None) -> Manifest:
    """Compare a stored folder with its manifest to the last byte, keeping nothing. Raises as `fetch` does."""
    manifest = read_manifest(store, prefix, expected_digest)
    for name, file in manifest.files.items():
        _stream(store, _join(prefix, name), file, lambda chunk: None)
    return manifest


def remove_checkpoint(store: Store, prefix: str) -> None:
    """Delete a checkpoint, its manifest first, so that nobody begins to read what is going away."""
    store.delete(f"{prefix}/{MANIFEST}")
    for key in store.list(prefix):
        store.delete(key)


def remove_superseded(store: Store, prefix: str) -> None:
    """Delete a checkpoint that its run needs no more, unless it was to be registered: that is `tood models gc`'s to judge."""
    if f"{prefix}/{DESCRIBED}" not in store.list(prefix):
        remove_checkpoint(store, prefix)


def close_run(store: Store, run: str, chosen: Callable[[dict[str, Any]], str]) -> Latest | None:
    """End a run for good, as `pointers.close` does, and delete all of it but the chosen checkpoint. Raises StorageError."""
    closed = close(store, run, chosen)
    if closed is not None:
        remove_others(store, run, {closed.prefix} - {""})
    return closed


def remove_others(store: Store, run: str, keep: Collection[str]) -> None:
    """Delete all checkpoints of a run but those at the prefixes `keep` and those that were to be registered, and what unfinished
    uploads of it left."""
    folder = run_folder(run)
    found = {f"{folder}/{key.removeprefix(folder + '/').split('/')[0]}" for key in store.list(folder)}
    for prefix in found - {pointer_key(run), *keep}:
        remove_superseded(store, prefix)


def read_manifest(store: Readable, prefix: str, expected_digest: str | None = None) -> Manifest:
    """The manifest at `prefix`, its names and hashes checked for form and its own digest against `expected_digest`."""
    key = _join(prefix, MANIFEST)
    url = store.url_of(key)
    try:
        raw = store.get_bytes(key)
    except MissingObjectError:
        raise MissingObjectError(f"{url} does not exist: no checkpoint here, or its upload never finished; give another") from None
    digest = hashlib.sha256(raw).hexdigest()
    if expected_digest is not None and digest != expected_digest:
        raise IntegrityError(f"{url}: sha256 is {digest}, expected {expected_digest}; it is not what was registered")
    named = NAMED.match(prefix)
    if named and not digest.startswith(named[1]):
        raise IntegrityError(f"{url}: sha256 is {digest}, its folder is named after another; the manifest was altered or damaged")
    try:
        values = json.loads(raw)
        files = {name: File(entry["sha256"], entry["size"]) for name, entry in values["files"].items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise IntegrityError(f"{url}: not a manifest, which is JSON with files: name -> sha256, size; give another") from None
    for name, file in files.items():
        check_key(name)
        if name == MANIFEST or not _is_sha256(file.sha256) or type(file.size) is not int or file.size < 0:
            raise IntegrityError(f"{url}: the entry of {name!r:.200} is not a sha256 and a size in bytes; give another")
    return Manifest(digest, files, values, raw)


def _stream(store: Readable, key: str, file: File, write: Callable[[bytes], Any]) -> None:
    url, digest, size = store.url_of(key), hashlib.sha256(), 0
    try:
        for chunk in store.chunks(key):
            size += len(chunk)
            if size > file.size:
                raise IntegrityError(f"{url}: larger than the {file.size} bytes of its manifest; use another")
            digest.update(chunk)
            write(chunk)
    except MissingObjectError:
        raise IntegrityError(
            f"{url}: its manifest names it, but it does not exist; the checkpoint is damaged, use another"
        ) from None
    if digest.hexdigest() != file.sha256:
        raise IntegrityError(
            f"{url}: sha256 is {digest.hexdigest()} ({size} bytes), its manifest says {file.sha256} "
            f"({file.size} bytes); the file was altered or damaged, use another"
        )


def _require_same(destination: Path, manifest: Manifest) -> Path:
    if not (destination / MANIFEST).is_file() or (destination / MANIFEST).read_bytes() != manifest.raw:
        raise StorageError(f"{destination} exists and is something else; remove it or choose another destination")
    verify(FolderStore(destination), "")
    return destination


def _is_stored(store: Store, prefix: str, manifest: Manifest) -> bool:
    """The manifest is written last, so where it is the files are."""
    try:
        return store.get_bytes(f"{prefix}/{MANIFEST}") == manifest.raw
    except MissingObjectError:
        return False


def _prefix(folder: Path, run: str, manifest: Manifest) -> str:
    step = manifest.values.get("step")
    if type(step) is not int or step < 0:
        raise IntegrityError(f"{folder / MANIFEST}: step is {step!r}, expected a count of steps")
    return f"{run_folder(run)}/{step:08d}-{manifest.digest[:12]}"


def _join(prefix: str, name: str) -> str:
    return f"{prefix}/{name}" if prefix else name


def _is_sha256(text: Any) -> bool:
    return isinstance(text, str) and re.fullmatch(r"[0-9a-f]{64}", text) is not None
