"""A store looked through: is everything whole that readers rely on, and what is mere litter of writes that were cut off?

`check` reads every byte and compares it with its manifest. `litter` finds what no reader sees and no writer goes on with:
parts of uploads to a bucket, files not yet linked to their name in a folder, folders whose manifest was never written, and
what a proof of the store left. Neither asks MLflow; which whole checkpoints may go is `pipeline.registry.retention`'s.
"""

import time
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

from pipeline.errors import IntegrityError, MissingObjectError
from pipeline.storage.checkpoints import MANIFEST, MODELS, read_manifest, remove_checkpoint, verify
from pipeline.storage.pointers import CHECKPOINTS, latest, pointer_key
from pipeline.storage.store import Entry, Store

PROOFS = "check"  # folder of a store: objects with which `opening.check` proves it


class Problem(NamedTuple):
    """Something that a reader would stumble over."""

    key: str  # of the object, or of a folder
    what: str
    advice: str


class Checked(NamedTuple):
    """What a store holds and what is wrong with it."""

    checkpoints: int  # whole or not, but finished
    models: int
    pointers: int
    size: int  # bytes that were read
    problems: tuple[Problem, ...]
    litter: int  # see `litter`


class Litter(NamedTuple):
    """Left by a write that was cut off."""

    key: str
    size: int  # bytes
    age: float  # seconds since something was last written there
    why: str
    goes: bool  # old enough


def folders(store: Store) -> Iterator[tuple[str, list[Entry]]]:
    """(prefix, its objects) of every checkpoint and model, finished or not."""
    depth = {CHECKPOINTS: 3, MODELS: 2}  # checkpoints/<run>/<step>-<digest>, models/<digest>
    for top, parts in depth.items():
        found = defaultdict(list)
        for entry in store.entries(top):
            names = entry.key.split("/")
            if len(names) > parts:  # else a run's pointer to its newest
                found["/".join(names[:parts])].append(entry)
        yield from sorted(found.items())


def is_finished(prefix: str, entries: list[Entry]) -> bool:
    """Was the manifest of this checkpoint or model written, which is the last of it?"""
    return _manifest_key(prefix) in {entry.key for entry in entries}


def check(store: Store) -> Checked:
    """Compare everything with its manifest, to the last byte, and follow every pointer. Raises StorageError of the store itself."""
    counts, problems, size = {CHECKPOINTS: 0, MODELS: 0}, [], 0
    for prefix, entries in folders(store):
        if is_finished(prefix, entries):
            counts[prefix.partition("/")[0]] += 1
            size += sum(entry.size for entry in entries)
            problems += _check_folder(store, prefix)
    pointers = [entry.key for entry in store.entries(CHECKPOINTS) if entry.key.count("/") == 2]
    for key in pointers:
        problems += _check_pointer(store, key)
    waiting = len(litter(store, 0))
    return Checked(counts[CHECKPOINTS], counts[MODELS], len(pointers), size, tuple(problems), waiting)


def litter(store: Store, older_than: float, *, remove: bool = False) -> list[Litter]:
    """What writes left that were cut off; with `remove` it goes, where it is older than `older_than` seconds.

    A write that is under way looks the same, so what is young stays. Raises StorageError.
    """
    now, found = time.time(), []
    for part in store.unfinished():
        age = now - part.modified
        found.append(Litter(part.key, part.size, age, "a write that was cut off", age >= older_than))
        if remove and found[-1].goes:
            store.abandon(part)
    for prefix, entries in folders(store):
        age = now - max(entry.modified for entry in entries)
        if not is_finished(prefix, entries):
            goes = age >= older_than
            if goes and remove:
                goes = not _finished_meanwhile(store, prefix)
                if goes:
                    remove_checkpoint(store, prefix)
            found.append(Litter(prefix, sum(entry.size for entry in entries), age, "its upload never finished", goes))
    for entry in store.entries(PROOFS):
        age = now - entry.modified
        found.append(Litter(entry.key, entry.size, age, "a proof of the store that was cut off", age >= older_than))
        if remove and found[-1].goes:
            store.delete(entry.key)
    return found


def _check_folder(store: Store, prefix: str) -> Iterator[Problem]:
    """A checkpoint, and the model in it, which is of use alone; or a model."""
    advice = "do not use it; a run goes on from an older one if `latest.json` is deleted, a registered model can be put there again"
    try:
        if prefix.startswith(f"{MODELS}/"):
            verify(store, f"{prefix}/model")
            return
        manifest = verify(store, prefix)
        if f"model/{MANIFEST}" in manifest.files:
            model = read_manifest(store, f"{prefix}/model")
            if any(manifest.files.get(f"model/{name}") != file for name, file in model.files.items()):
                yield Problem(f"{prefix}/model/{MANIFEST}", "names other files than the checkpoint's manifest", advice)
    except IntegrityError as error:
        yield Problem(prefix, str(error), advice)
    except MissingObjectError as error:  # removed by another while this looked
        yield Problem(prefix, str(error), "check again; if it stays so, remove what is left of it")


def _check_pointer(store: Store, key: str) -> Iterator[Problem]:
    _, run, name = key.split("/")
    if key != pointer_key(run):
        yield Problem(key, f"{name} is no object of a run's folder", "delete it unless you know what it is")
        return
    advice = "delete it; the run's next checkpoint makes it anew"
    try:
        prefix = latest(store, run)
        if prefix is not None and f"{prefix}/{MANIFEST}" not in store.list(prefix):
            yield Problem(key, f"points to {prefix}, which does not exist", advice)
    except IntegrityError as error:
        yield Problem(key, str(error), advice)


def _finished_meanwhile(store: Store, prefix: str) -> bool:
    try:
        store.get_bytes(_manifest_key(prefix))
    except MissingObjectError:
        return False
    return True


def _manifest_key(prefix: str) -> str:
    return f"{prefix}/model/{MANIFEST}" if prefix.startswith(f"{MODELS}/") else f"{prefix}/{MANIFEST}"
