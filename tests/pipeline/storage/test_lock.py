"""The lock of a suite: one holder, told by name; alive by its heartbeat; free again after a silence."""

import json
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.errors import StorageError
from pipeline.storage.lock import hold
from pipeline.storage.opening import open_store
from pipeline.storage.process import this_process

KEY = "locks/s"
TELL = "import json; from pipeline.storage.process import this_process; print(json.dumps(this_process()))"


@pytest.fixture
def store(place, request):
    return open_store(f"{place}/{request.node.originalname}")


def ticket(store) -> dict:
    return json.loads(store.read_pointer(KEY)[0])


def test_the_second_is_refused_at_once_and_told_who_holds_it_since_when(store):
    with hold(store, KEY, "suite s"):
        started = time.monotonic()
        with (
            pytest.raises(StorageError, match=r"suite s runs already: held by process \d+ on \S+ since 20\d\d-\d\d-\d\d"),
            hold(store, KEY, "suite s"),
        ):
            pass
        assert time.monotonic() - started < 1
    with hold(store, KEY, "suite s"):  # given up
        pass
    assert ticket(store)["until"] == 0


def test_it_is_given_up_when_the_block_fails(store):
    with pytest.raises(KeyboardInterrupt), hold(store, KEY, "suite s"):
        raise KeyboardInterrupt
    assert ticket(store)["until"] == 0


def test_a_heartbeat_keeps_it_beyond_its_lease(store):
    with hold(store, KEY, "suite s", lease=0.4, beat=0.1) as held:
        time.sleep(0.8)
        held.check()
        with pytest.raises(StorageError), hold(store, KEY, "suite s"):
            pass


def test_a_dead_holders_lock_is_free_after_its_lease_and_the_dead_one_notices_if_it_lives(store):
    with hold(store, KEY, "suite s", lease=0.2, beat=60) as silent:
        time.sleep(0.3)
        with hold(store, KEY, "suite s"):
            silent._renew()
            with pytest.raises(StorageError, match="another process took this lock"):
                silent.check()
            owner = ticket(store)["owner"]
        assert owner != silent._owner


def test_of_many_at_once_one_gets_it(store):
    got, refused, gate = [], [], threading.Barrier(8)

    def attempt() -> None:
        gate.wait()
        try:
            with hold(store, KEY, "suite s"):
                got.append(1)
                deadline = time.monotonic() + 30
                while len(got) + len(refused) < 8 and time.monotonic() < deadline:
                    time.sleep(0.05)
        except StorageError:
            refused.append(1)

    threads = [threading.Thread(target=attempt) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(got), len(refused)) == (1, 7)


def test_with_patience_each_waits_for_its_turn(store):
    inside, most, lock = 0, 0, threading.Lock()

    def work(_) -> None:
        nonlocal inside, most
        with hold(store, KEY, "suite s", patience=60):
            with lock:
                inside += 1
                most = max(most, inside)
            time.sleep(0.02)
            with lock:
                inside -= 1

    with ThreadPoolExecutor(5) as threads:
        list(threads.map(work, range(5)))
    assert (inside, most) == (0, 1)


def test_patience_outlasts_a_dead_holder(store):
    _, etag = store.read_pointer(KEY)
    assert store.swap_pointer(KEY, json.dumps({"owner": "dead", "until": time.time() + 0.5}).encode(), etag)
    with pytest.raises(StorageError, match="held by an unknown process"), hold(store, KEY, "suite s"):
        pass
    with hold(store, KEY, "suite s", patience=10):
        pass


def put(store, **changes) -> None:
    _, etag = store.read_pointer(KEY)
    values = {"owner": "other", "who": "process 7 on far", "until": time.time() + 60, "beat": 1} | changes
    assert store.swap_pointer(KEY, json.dumps(values).encode(), etag)


@pytest.mark.skipif(this_process() is None, reason="the system does not tell of processes")
def test_a_holder_that_was_killed_on_this_machine_is_in_nobodys_way(store):
    child = subprocess.run([sys.executable, "-c", TELL], capture_output=True, check=True)
    put(store, process=json.loads(child.stdout))
    with hold(store, KEY, "suite s") as held:
        assert ticket(store)["owner"] == held._owner


def test_a_silent_holder_elsewhere_is_waited_for_and_one_that_lives_is_not(store):
    said = []
    put(store, until=time.time() + 1)
    with hold(store, KEY, "run r", say=said.append):
        assert said == ["waiting for a sign of life of process 7 on far, which had run r"]
    with hold(store, KEY, "run r", beat=0.3):
        started = time.monotonic()
        with pytest.raises(StorageError, match="run r runs already"), hold(store, KEY, "run r", say=said.append):
            pass
        assert time.monotonic() - started < 20  # a beat, and not a lease
    assert len(said) == 2


def test_a_silent_holder_whose_clock_is_ahead_is_waited_for_by_ones_own(store):
    put(store, until=time.time() + 3600)
    started = time.monotonic()
    with hold(store, KEY, "run r", say=lambda line: None, lease=1) as held:
        assert time.monotonic() - started > 1
        assert ticket(store)["owner"] == held._owner
    put(store, until=time.time() + 3600)
    with pytest.raises(StorageError, match="run r runs already"), hold(store, KEY, "run r", lease=1):
        pass  # nobody is told, so nobody waits
