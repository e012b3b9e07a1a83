"""One holder at a time, on any machine: a lock in a pointer of the object store, kept alive by a heartbeat.

Who holds it renews it every `beat` seconds; a holder that was killed loses it `lease` seconds after its last beat, by the
machines' clocks, and at once to whoever asks on its own machine.
"""

import json
import os
import platform
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from pipeline.errors import StorageError
from pipeline.storage.process import has_ended, this_process
from pipeline.storage.store import Store

LEASE, BEAT = 60.0, 10.0  # seconds


class Held:
    """A lock that this process has, unless another took it after a silence."""

    def __init__(self, store: Store, key: str, lease: float):
        self._store, self._key, self._lease = store, key, lease
        self._owner = uuid.uuid4().hex
        who = f"process {os.getpid()} on {platform.node()}"
        self._ticket = {"owner": self._owner, "who": who, "process": this_process(), "since": time.time()}
        self._lost = False

    def check(self) -> None:
        """Raises StorageError once another process has the lock."""
        if self._lost:
            raise StorageError(
                f"{self._store.url_of(self._key)}: another process took this lock after {self._lease:.0f} s without contact to "
                "the store; this one stops, run the same command again once the other is done"
            )

    def _take(self, what: str, patience: float, say: Callable[[str], None] | None) -> None:
        begun, first = time.monotonic(), None
        while True:
            raw, etag = self._store.read_pointer(self._key)
            held = _read(raw)
            sign = held["owner"], held.get("beat")
            free = held["until"] < time.time() or has_ended(held.get("process"))
            if say and not first and not free:
                first, patience = sign, max(patience, 1.2 * self._lease)
                say(f"waiting for a sign of life of {held.get('who', 'an unknown process')}, which had {what}")
            waited = time.monotonic() - begun > patience
            if free or (waited and sign == first):  # silent for longer than a lease, whatever its machine's clock says
                if self._store.swap_pointer(self._key, self._bytes(), etag):
                    return
            elif waited or (say and sign != first):
                raise StorageError(_refusal(self._store.url_of(self._key), what, held))
            time.sleep(random.uniform(0.05, 0.25))

    def _renew(self) -> None:
        raw, etag = self._store.read_pointer(self._key)
        if _read(raw)["owner"] != self._owner:
            self._lost = True
        else:
            self._store.swap_pointer(self._key, self._bytes(), etag)

    def _give_up(self) -> None:
        raw, etag = self._store.read_pointer(self._key)
        if _read(raw)["owner"] == self._owner:
            self._store.swap_pointer(self._key, json.dumps({"owner": None, "until": 0}).encode(), etag)

    def _bytes(self) -> bytes:
        now = time.time()
        return json.dumps(self._ticket | {"until": now + self._lease, "beat": now}).encode()


@contextmanager
def hold(
    store: Store,
    key: str,
    what: str,
    *,
    patience: float = 0,
    say: Callable[[str], None] | None = None,
    lease: float = LEASE,
    beat: float = BEAT,
) -> Iterator[Held]:
    """Hold the lock `key` for the length of the block. what: whose it is, in words.

    Raises StorageError after `patience` seconds of waiting (at once by default) that names who holds it and since when.
    With `say`, which is told of it, a holder that may have been killed elsewhere is waited for: until it gives a sign of life,
    which raises, or there was none for longer than its lease.
    """
    held = Held(store, key, lease)
    held._take(what, patience, say)
    over = threading.Event()

    def keep() -> None:
        while not over.wait(beat):
            with suppress(StorageError):  # a store out of reach for a while is asked again at the next beat
                held._renew()

    keeper = threading.Thread(target=keep, daemon=True)
    keeper.start()
    try:
        yield held
    finally:
        over.set()
        keeper.join()
        with suppress(StorageError):  # then its lease ends by itself
            held._give_up()


def _refusal(where: str, what: str, held: dict[str, Any]) -> str:
    since, beat = (time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(held.get(key, 0))) for key in ("since", "beat"))
    left = max(1, held["until"] - time.time())
    return (
        f"{what} runs already: held by {held.get('who', 'an unknown process')} since {since}, last sign of life {beat} ({where}); "
        f"wait for it, or, if it was killed, {left:.0f} s until its lock ends"
    )


def _read(raw: bytes | None) -> dict[str, Any]:
    try:
        values = json.loads(raw)
        return values | {"until": float(values["until"]), "owner": values["owner"]}
    except (ValueError, TypeError, KeyError):
        return {"until": 0.0, "owner": None}  # nobody's, or nothing that a holder wrote
