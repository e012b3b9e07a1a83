"""How a worker hears that it has to go: Ray's notice, a SIGTERM, its driver's word; Ray's store is played by a dictionary."""

import signal
import threading
import time
from types import SimpleNamespace

import pytest

from pipeline import notice


@pytest.fixture
def ray(monkeypatch):
    """Ray as `pipeline.notice` sees it: a notice of preemption, or none, and words under keys."""
    made = SimpleNamespace(preemption_info=None, words={})
    context = SimpleNamespace(preemption_context=made)
    monkeypatch.setattr(notice, "get_train_context", lambda: context)
    monkeypatch.setattr(notice.internal_kv, "_internal_kv_put", lambda key, word, overwrite: made.words.update({key: word}))
    monkeypatch.setattr(notice.internal_kv, "_internal_kv_get", made.words.get)
    monkeypatch.setattr(notice, "_received", [])
    return made


def until(true) -> None:
    end = time.monotonic() + 10
    while not true() and time.monotonic() < end:
        time.sleep(0.01)
    assert true()


def test_a_sigterm_is_remembered_and_a_second_one_is_not_held_back(ray):
    second = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: second.append(number))
    try:
        notice._heed_sigterm()
        assert not notice.told_to_stop()
        signal.raise_signal(signal.SIGTERM)
        assert notice.told_to_stop()
        assert second == []
        signal.raise_signal(signal.SIGTERM)
        assert second == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_driver_waits_until_its_workers_have_stored_and_not_where_none_train(ray, monkeypatch):
    assert not notice.stop_workers("run")
    notice.listen("run")
    assert not notice.told_to_stop()
    answers = []
    driver = threading.Thread(target=lambda: answers.append(notice.stop_workers("run")))
    driver.start()
    until(notice.told_to_stop)
    assert answers == []
    notice.confirm("run")
    driver.join(10)
    assert answers == [True]
    monkeypatch.setattr(notice, "GRACE", 0.2)
    ray.words["tood/run/other"] = notice.TRAINING
    assert not notice.stop_workers("other")  # its workers did not answer


def test_a_worker_whose_node_goes_holds_still_past_the_deadline(ray, monkeypatch):
    slept = []
    monkeypatch.setattr(notice.time, "sleep", slept.append)
    notice.hold_still()
    assert slept == []
    ray.preemption_info = SimpleNamespace(deadline_ms=(time.time() + 30) * 1000)
    assert notice.told_to_stop()
    notice.hold_still()
    assert slept[0] == pytest.approx(30 + notice.UNKNOWN_DEADLINE, abs=2)
