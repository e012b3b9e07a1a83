"""Each run's pointer to its newest checkpoint, with a note on the run: moved forward by compare-and-swap, until it is closed.

checkpoints/<run>/latest.json holds {"step", "prefix", "note", "sha256" of these}, and "closed" once the run was ended for good.
"""

import hashlib
import json
import random
import re
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from pipeline.errors import IntegrityError, StorageError
from pipeline.storage.store import Store, check_key

CHECKPOINTS = "checkpoints"  # folder of a store: checkpoints of runs
NAMED = re.compile(rf"{CHECKPOINTS}/[^/]+/\d+-([0-9a-f]{{12}})$")  # a checkpoint's prefix, which has its manifest's digest
_ATTEMPTS = 100  # each refusal means that another writer got through


class Latest(NamedTuple):
    step: int
    prefix: str
    note: dict[str, Any]  # what was said of the run when it was written
    closed: bool = False  # by `close`


def latest(store: Store, run: str) -> str | None:
    """Prefix of the run's checkpoint of the highest step, None before its first."""
    found = latest_of(store, run)
    return found and found.prefix


def latest_of(store: Store, run: str) -> Latest | None:
    """The run's checkpoint of the highest step with its note, None before its first."""
    data, _ = store.read_pointer(pointer_key(run))
    return None if data is None else _pointer(store, run, data)


def close(store: Store, run: str, chosen: Callable[[dict[str, Any]], str]) -> Latest | None:
    """End a run for good: its pointer names the `chosen` checkpoint, and no writer moves it any more.

    A stopped run's processes may store on for seconds, and each of their checkpoints supersedes others. chosen: of the
    pointer's note the prefix to name; for "" there is no pointer any more. Returns what it says from now on, None where there
    was no pointer, and nothing is done. Raises StorageError.
    """

    def closed(there: Latest | None) -> Latest | None:
        if there is None:
            return None
        prefix = chosen(there.note)
        step = int(prefix.rpartition("/")[2].partition("-")[0]) if prefix else there.step
        return Latest(step, prefix, there.note, closed=True)

    return _move(store, run, closed)


def advance(store: Store, run: str, new: Latest) -> None:
    """Move the pointer, unless it is further already. Raises StorageError, also where the run was closed."""

    def further(there: Latest | None) -> Latest:
        if there and there.closed:
            raise StorageError(f"{store.url_of(pointer_key(run))}: the run was ended for good; train under another name")
        return there if there and there.step > new.step else new

    _move(store, run, further)


def _move(store: Store, run: str, onward: Callable[[Latest | None], Latest | None]) -> Latest | None:
    """Let the pointer say what `onward` makes of what it says (None: no pointer), whoever else writes; a Latest without a
    prefix deletes it. Returns what `onward` made."""
    for _ in range(_ATTEMPTS):
        data, etag = store.read_pointer(pointer_key(run))
        there = None if data is None else _pointer(store, run, data)
        new = onward(there)
        if new == there:
            return new
        if not new.prefix:
            store.delete(pointer_key(run))
            return new
        if store.swap_pointer(pointer_key(run), _pointer_bytes(new), etag):
            return new
        time.sleep(random.uniform(0, 0.1))
    raise StorageError(f"{store.url_of(pointer_key(run))}: other writers kept changing it; is the run started twice?")


def _pointer(store: Store, run: str, data: bytes) -> Latest:
    try:
        pointer = Latest(**{name: value for name, value in json.loads(data).items() if name != "sha256"})
        # An altered one might send a reader elsewhere, or by a later step hold back all that follow.
        named = check_key(pointer.prefix).startswith(f"{run_folder(run)}/{pointer.step:08d}-") and NAMED.fullmatch(pointer.prefix)
        if named and data == _pointer_bytes(pointer):
            return pointer
    except (ValueError, TypeError, AttributeError, StorageError):
        pass
    raise IntegrityError(f"{store.url_of(pointer_key(run))}: not a pointer to a checkpoint of this run; delete it")


def _pointer_bytes(pointer: Latest) -> bytes:
    values = pointer._asdict()
    if not pointer.closed:
        del values["closed"]
    return json.dumps({**values, "sha256": hashlib.sha256(json.dumps(values).encode()).hexdigest()}).encode()


def pointer_key(run: str) -> str:
    """Where the pointer to a run's newest checkpoint lies."""
    return f"{run_folder(run)}/latest.json"


def run_folder(run: str) -> str:
    """Where a run's checkpoints lie."""
    if "/" in run:
        raise StorageError(f"run {run!r}: a run's name in the store has no '/'")
    return check_key(f"{CHECKPOINTS}/{run}")
