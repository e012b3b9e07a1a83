"""data.root as an address: the data set is fetched once a node, and everything else sees a local folder.

`local_data` is that step. With a manifest (`tood data pack`) every file is compared with its sha256; without one, with the
size and the ETag that the source announces, and its hash is kept from then on. Fetched data are used as they are while each
file has the size and the time of change that it was fetched with; `verify` hashes them again.
"""

import functools
import hashlib
import json
import os
import posixpath
import reprlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.config import CacheConfig
from pipeline.data.fetch import Fetch
from pipeline.data.manifest import Manifest, read_manifest
from pipeline.data.room import Place
from pipeline.data.source import Source, is_remote, open_source
from pipeline.errors import MissingObjectError, StorageError
from pipeline.storage.store import ObjectInfo, check_key
from tood.atomic import write_file
from tood.config import DataConfig, SplitConfig, build
from tood.errors import ConfigError, DataError
from tood.results import read_json

SPLITS = ("train", "val")
SHOWN = 20  # problems that an error's message spells out


def cache_of(values: Mapping[str, Any]) -> CacheConfig:
    """The cache that an experiment's values describe."""
    return build(CacheConfig, values.get("cache") or {}, "cache")


def local_data(
    data: DataConfig,
    cache: CacheConfig,
    splits: Sequence[str] = SPLITS,
    *,
    images: bool = True,
    verify: bool = False,
    say: Callable[[str], None] | None = None,
) -> DataConfig:
    """The same data in a folder of this machine: `data` itself, or with the root that the cache gave it.

    Fetches what is missing of the splits' annotations and of the images that these list; of several processes on a node
    one does it and the others wait. What is there stays until this process ends. images=False: the annotations alone.
    say: where progress goes; by default to stderr, since stdout may be somebody's JSON.

    Raises ConfigError, DataError with all missing files, or StorageError where source or disk fail.
    """
    if not is_remote(data.root):
        return data
    say = say or functools.partial(print, file=sys.stderr, flush=True)
    if data.source == "digits":
        raise ConfigError(f"data.root: {data.root} is an address, and data.source=digits is made on the spot; give a folder")
    source = open_source(data.root)
    manifest = read_manifest(source)
    place = Place(cache_folder(cache), _key(source, manifest, data))
    with place.fetching(lambda: say(f"{source.url}: another process of this machine fetches it; waiting")):
        fetch = Fetch(source, manifest, place, int(cache.max_gb * 1e9), say)
        try:
            for split in splits:
                _bring_split(fetch, getattr(data, split), split, images, verify, say)
            fetch.finish()
        except OSError as error:
            raise StorageError(f"{error.filename or place.folder}: {error.strerror or error}; see cache.dir") from None
    return replace(data, root=str(place.files))


def cache_folder(cache: CacheConfig) -> Path:
    if cache.dir:
        return Path(cache.dir).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "tood/data"


def _key(source: Source, manifest: Manifest | None, data: DataConfig) -> str:
    """Name of the data set's folder in the cache: another content at the same address is another data set."""
    if manifest:
        version: Any = manifest.version
    else:
        version = [(name, *_announced(source, name)) for name in sorted({getattr(data, split).annotations for split in SPLITS})]
    return hashlib.sha256(json.dumps([source.url, version]).encode()).hexdigest()[:20]


def _announced(source: Source, name: str) -> tuple[int | None, str | None]:
    try:
        return tuple(source.info(_plain(name, "data.train.annotations or data.val.annotations")))
    except MissingObjectError:  # a split that nobody may want
        return None, None


def _bring_split(fetch: Fetch, config: SplitConfig, split: str, images: bool, verify: bool, say: Callable[[str], None]) -> None:
    annotations, url = _plain(config.annotations, f"data.{split}.annotations"), fetch.source.url
    try:
        missing = _bring(fetch, [annotations], lambda: {annotations: fetch.source.info(annotations)}, verify, say)
    except MissingObjectError:
        missing = [annotations]
    if missing:
        raise DataError(f"{url}/{annotations}: no such file; set data.root and data.{split}.annotations")
    if not images:
        return
    folder, names = _images(fetch, config, split, annotations)
    missing = _bring(fetch, names, lambda: fetch.source.listing(folder), verify, say)
    if missing:
        _refuse(f"{url}: {annotations} lists images that are not there", missing)


def _bring(
    fetch: Fetch, names: list[str], announced: Callable[[], dict[str, ObjectInfo] | None], verify: bool, say: Callable[[str], None]
) -> list[str]:
    """Fetch what is missing and, to verify, what is damaged; the names of files that the source does not have."""
    for again in (False, True):
        wanted = any(name not in fetch.have for name in names)
        if missing := fetch.bring(names, announced() if wanted and not fetch.manifest else None):
            return missing
        if again or not verify:
            break
        if bad := fetch.damaged(names):
            say(f"{fetch.place.files}: {len(bad)} damaged, to be fetched again: {', '.join(bad[:SHOWN])}")
    return []


def _images(fetch: Fetch, config: SplitConfig, split: str, annotations: str) -> tuple[str, list[str]]:
    """The folder of a split's images and the names of all that its annotations list, relative to the data set's root.

    The list is kept beside the data: of 100,000 images, reading the annotations anew for each process would take a while.
    """
    folder = posixpath.normpath(config.images or ".")
    if folder != ".":
        _plain(folder, f"data.{split}.images")
    about = [folder, annotations, fetch.have[annotations].sha256]
    kept = fetch.place.folder / "lists" / f"{hashlib.sha256(json.dumps(about).encode()).hexdigest()}.json"
    if kept.is_file():
        return folder, json.loads(kept.read_text())
    document = read_json(fetch.place.files / annotations)
    entries = document.get("images") if isinstance(document, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise DataError(f"{fetch.source.url}/{annotations}: not a COCO file: expected an object with a list of images")
    names, problems = {}, []
    for entry in entries:
        try:
            names[check_key(posixpath.normpath(f"{folder}/{_inside(entry.get('file_name'))}"))] = None
        except StorageError:
            problems.append(f"file_name {reprlib.repr(entry.get('file_name'))}")
    if problems:
        _refuse(f"{fetch.source.url}/{annotations}: names that are no files beneath data.{split}.images", problems)
    write_file(kept, json.dumps(list(names)).encode())
    return folder, list(names)


def _inside(name: Any) -> str:
    if not isinstance(name, str) or not name or name.startswith("/") or ".." in name.split("/"):
        raise StorageError(f"{name!r} is not inside its folder")
    return name


def _plain(name: str, key: str) -> str:
    """A name relative to data.root, as it is written in the source."""
    try:
        return check_key(posixpath.normpath(_inside(name)))
    except StorageError:
        raise ConfigError(f"{key}: {name!r} must be a plain name relative to data.root, which is an address") from None


def _refuse(what: str, problems: list[str]) -> None:
    more = [f"... and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
    raise DataError("\n  ".join([f"{what} ({len(problems)})", *problems[:SHOWN], *more]), [f"{what}: {p}" for p in problems])
