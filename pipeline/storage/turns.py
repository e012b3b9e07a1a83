"""One at a time, on any machine: a lease in a pointer of the store."""

import contextlib
import json
import random
import time
import uuid
from collections.abc import Iterator

from pipeline.errors import StorageError
from pipeline.storage.store import Store


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
