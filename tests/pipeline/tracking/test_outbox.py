"""Points on their way: in order and once, whatever MLflow does meanwhile and whoever dies; and nobody waits for it."""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from mlflow.entities import Metric, RunTag
from mlflow.exceptions import MlflowException

from pipeline.errors import TrackingError
from pipeline.tracking import outbox as module
from pipeline.tracking import runs as tracking
from pipeline.tracking.access import connect, mlflow_client
from pipeline.tracking.outbox import Outbox
from pipeline.tracking.runs import Run
from pipeline.tracking.spool import Journal, journals


@pytest.fixture
def uri(tracking_uri):
    connect(tracking_uri)
    return tracking_uri


@pytest.fixture
def client(uri):
    return mlflow_client(uri)


@pytest.fixture
def run_id(uri, client, request):
    return client.create_run(tracking.experiment_id(uri, request.node.originalname)).info.run_id


def rows(client, run_id, key="a"):
    return [(metric.step, metric.value) for metric in client.get_metric_history(run_id, key)]


def point(step, key="a", value=None):
    return Metric(key, float(step) if value is None else value, int(time.time() * 1000), step)


class Away:
    """A server that is away: hangs, refuses, or takes points and loses its answer, until it is back."""

    def __init__(self, client, how):
        self.real, self.how, self.back = client.log_batch, how, threading.Event()
        self.asked = 0

    def __call__(self, *arguments, **named):
        self.asked += 1
        if self.back.is_set():
            return self.real(*arguments, **named)
        if self.how == "hangs":
            self.back.wait(30)
        if self.how == "loses its answer":
            self.real(*arguments, **named)
        raise MlflowException("no route to host")


@pytest.fixture(params=["hangs", "refuses", "loses its answer"])
def away(client, monkeypatch, request):
    away = Away(client, request.param)
    monkeypatch.setattr(client, "log_batch", away)
    monkeypatch.setattr(module, "CALL_SECONDS", 0.2)
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.05)
    yield away
    away.back.set()


def test_nobody_waits_and_nothing_is_lost_or_doubled(uri, client, run_id, away):
    outbox, began = Outbox(uri, run_id), time.monotonic()
    for step in range(50):
        outbox.put([point(step)])
    assert time.monotonic() - began < 2
    assert outbox.last_step("a") == 49
    assert len(journals(uri, run_id)) == 1
    away.back.set()
    assert outbox.flush(20) == ""
    assert rows(client, run_id) == [(step, float(step)) for step in range(50)]
    assert journals(uri, run_id) == []


def test_what_a_dead_process_left_is_sent_first_and_its_repetition_skipped(uri, client, run_id, away):
    dead = Outbox(uri, run_id)
    for step in range(10):
        dead.put([point(step)])
    assert "10 points" in dead.flush(0.1)  # its journal is nobody's now, as after its death
    away.back.set()
    alive = Outbox(uri, run_id)
    for step in range(5, 15):  # goes on from a checkpoint, with other values
        alive.put([point(step, value=-1.0)])
    assert alive.flush(20) == ""
    time.sleep(0.3)  # for a request of the dead one's that was under way
    assert rows(client, run_id) == [(step, float(step) if step < 10 else -1.0) for step in range(15)]
    assert journals(uri, run_id) == []


def test_a_process_that_gave_up_may_go_on(uri, client, run_id, away):
    outbox = Outbox(uri, run_id)
    outbox.put([point(0)])
    left = outbox.flush(0.1)
    assert f"1 points of run {run_id} could not be delivered within 0 s" in left
    assert str(journals(uri, run_id)[0]) in left
    outbox.put([point(1)])
    away.back.set()
    assert outbox.flush(20) == ""
    assert rows(client, run_id) == [(0, 0.0), (1, 1.0)]


def test_a_disk_that_takes_nothing_costs_a_line_alone(uri, client, run_id, monkeypatch, caplog):
    def full(*_):
        raise OSError(28, "No space left on device")

    away = Away(client, "refuses")
    monkeypatch.setattr(client, "log_batch", away)
    monkeypatch.setattr(Journal, "create", full)
    outbox = Outbox(uri, run_id)
    with caplog.at_level(logging.WARNING):
        for step in range(3):
            outbox.put([point(step)])
    assert len([record for record in caplog.records if "memory alone" in record.message]) == 1
    assert "the disk did not take them" in outbox.flush(0.1)
    away.back.set()
    assert outbox.flush(20) == ""
    assert len(rows(client, run_id)) == 3


def test_an_error_that_nobody_thought_of_stops_nothing(uri, client, run_id, monkeypatch):
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.05)
    real, errors = client.log_batch, [ValueError("odd"), KeyError("odder")]

    def odd(*arguments, **named):
        if errors:
            raise errors.pop()
        return real(*arguments, **named)

    monkeypatch.setattr(client, "log_batch", odd)
    outbox = Outbox(uri, run_id)
    outbox.put([point(0)])
    assert outbox.flush(20) == ""
    assert rows(client, run_id) == [(0, 0.0)]


def test_what_is_refused_holds_up_nothing_else(uri, client, run_id, caplog):
    outbox = Outbox(uri, run_id)
    with caplog.at_level(logging.WARNING):
        outbox.put([point(0), point(0, key="x" * 300), RunTag("fine", "1"), RunTag("y" * 300, "1"), point(1), point(2)])
    assert outbox.flush(20) == ""
    assert [record.message.count("is left out: ") for record in caplog.records] == [1, 1]
    assert rows(client, run_id) == [(0, 0.0), (1, 1.0), (2, 2.0)]
    assert client.get_run(run_id).data.tags["fine"] == "1"
    assert journals(uri, run_id) == []


def test_what_is_inherited_while_others_are_under_way_is_sent_too(uri, client, run_id, monkeypatch):
    dead = Outbox(uri, run_id)
    with monkeypatch.context() as away:
        away.setattr(client, "log_batch", Away(client, "refuses"))
        dead.put([point(step) for step in range(3)])
    alive, slow, real = Outbox(uri, run_id), threading.Event(), client.log_batch

    def wait(*arguments, **named):
        slow.wait(20)
        return real(*arguments, **named)

    monkeypatch.setattr(module, "CALL_SECONDS", 0.1)
    monkeypatch.setattr(client, "log_batch", wait)
    alive.put([point(step) for step in range(3, 6)])
    dead._give_up()  # dies only now
    threading.Timer(0.3, slow.set).start()
    assert alive.flush(20) == ""
    assert sorted(rows(client, run_id)) == [(step, float(step)) for step in range(6)]


def test_the_last_step_is_an_error_where_mlflow_is_away(uri, run_id, monkeypatch, client):
    def refuse(*_):
        raise MlflowException("no route to host")

    monkeypatch.setattr(client, "get_metric_history", refuse)
    with pytest.raises(TrackingError, match="no route to host"):
        Outbox(uri, run_id).last_step("a")


WORKER = """
import os, signal, sys
from mlflow.exceptions import MlflowException
from pipeline.tracking.access import mlflow_client
from pipeline.tracking.runs import Run

uri, run_id = sys.argv[1:]
client = mlflow_client(uri)

def refuse(*_, **__):
    raise MlflowException("no route to host")

run = Run.attach(uri, run_id)
run.metrics({"a": 0.0}, 0)
client.log_batch = refuse
for step in range(1, 100):
    run.metrics({"a": float(step)}, step)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_points_of_a_killed_process_are_sent_by_the_next(uri, client, run_id):
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run([sys.executable, "-c", WORKER, uri, run_id], env=environment, timeout=60, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert rows(client, run_id) == [(0, 0.0)]
    assert len(journals(uri, run_id)) == 1
    resumed = Run.attach(uri, run_id)
    resumed.metrics({"a": 100.0}, 100)
    assert rows(client, run_id) == [(step, float(step)) for step in range(101)]
