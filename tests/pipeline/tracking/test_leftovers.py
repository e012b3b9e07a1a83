"""Runs of dead processes say how they ended; those of the living are left alone."""

import json

import pytest
from mlflow.exceptions import MlflowException

from pipeline.cli import main
from pipeline.errors import TrackingError
from pipeline.tracking import runs as tracking
from pipeline.tracking.access import connect, mlflow_client, resolve_uri
from pipeline.tracking.leftovers import deliver_left, reconcile
from pipeline.tracking.outbox import Outbox
from pipeline.tracking.runs import Run
from pipeline.tracking.spool import Journal, journals


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    uri = resolve_uri("", tmp_path_factory.mktemp("runs"))
    connect(uri)
    return uri


@pytest.fixture
def client(uri):
    return mlflow_client(uri)


@pytest.fixture
def experiment(uri, request):
    return tracking.experiment_id(uri, request.node.name)


def status(client, run):
    return client.get_run(run.run_id).info.status


def die(run):
    """What the system does when the process is killed."""
    run._alive.release()
    run._alive = None


def refuse(*_, **__):
    raise MlflowException("no route to host")


def test_runs_of_the_dead_are_killed(uri, client, experiment):
    def trial(name, sweep):
        return Run.open(uri, experiment, f"{sweep}/{name}", name, {tracking.SWEEP: sweep}).run_id

    alive, dead, done, other = trial("alive", "1"), trial("dead", "1"), trial("done", "1"), trial("other", "2")
    Run.attach(uri, done).finish()
    assert reconcile(uri, experiment, "1", {alive}) == [dead]
    statuses = [client.get_run(run_id).info.status for run_id in (alive, dead, done, other)]
    assert statuses == ["RUNNING", "KILLED", "FINISHED", "RUNNING"]


def test_a_killed_run_is_told_by_its_lock(uri, client, experiment):
    dead, alive = Run.open(uri, experiment, "dead", "dead"), Run.open(uri, experiment, "alive", "alive")
    die(dead)
    assert deliver_left(uri, 20) == [(dead.run_id, 0, "KILLED", "")]
    assert (status(client, dead), status(client, alive)) == ("KILLED", "RUNNING")
    alive.finish()
    assert deliver_left(uri, 20) == []
    assert journals(uri, dead.run_id) == journals(uri, alive.run_id) == []


def test_a_run_that_goes_on_is_its_new_drivers(uri, client, experiment):
    first = Run.open(uri, experiment, "one", "one")
    die(first)
    second = Run.open(uri, experiment, "one", "one")
    assert deliver_left(uri, 20) == [(first.run_id, 0, "", "")]  # nothing to tell of it
    assert status(client, second) == "RUNNING"
    second.finish()
    assert journals(uri, first.run_id) == []


def test_an_end_that_mlflow_missed_is_told_with_its_time(uri, client, experiment, monkeypatch):
    monkeypatch.setattr(tracking, "OUTAGE_SECONDS", 0.2)
    run = Run.open(uri, experiment, "one", "one")
    with monkeypatch.context() as away:
        for name in ("log_batch", "set_terminated"):
            away.setattr(client, name, refuse)
        run.metrics({"a": 1.0}, 3)
        with pytest.raises(TrackingError, match="no route to host"):
            run.finish()
        assert [found.problem for found in deliver_left(uri, 0.2)] != [""]
    assert status(client, run) == "RUNNING"
    assert deliver_left(uri, 20) == [(run.run_id, 1, "FINISHED", "")]
    assert status(client, run) == "FINISHED"
    assert [(m.step, m.value) for m in client.get_metric_history(run.run_id, "a")] == [(3, 1.0)]
    assert journals(uri, run.run_id) == []


def test_what_another_machine_finished_stays_finished(uri, client, experiment):
    here = Run.open(uri, experiment, "one", "one")
    die(here)
    client.set_terminated(here.run_id, "FINISHED")
    assert deliver_left(uri, 20) == [(here.run_id, 0, "", "")]
    assert status(client, here) == "FINISHED"


def test_of_a_run_that_was_removed_for_good_nothing_is_told(uri):
    run_id = "f" * 32
    Journal.create(uri, run_id, "token").release()
    assert deliver_left(uri, 20) == [(run_id, 0, "", "")]
    assert journals(uri, run_id) == []


def test_a_run_that_is_gone_is_a_problem_and_not_the_others(uri, client, experiment, monkeypatch):
    monkeypatch.setattr(tracking, "LAST_SECONDS", 0.2)
    gone, there = Run.open(uri, experiment, "gone", "gone"), Run.open(uri, experiment, "there", "there")
    client.delete_run(gone.run_id)
    for run in (gone, there):
        outbox = Outbox(uri, run.run_id)
        with monkeypatch.context() as away:
            away.setattr(client, "log_batch", refuse)
            outbox.put([tracking.Metric("a", 1.0, 1, 1)])
            assert outbox.flush(0.1)
    found = {one.run_id: one for one in deliver_left(uri, 20, 1)}
    assert "1 points" in found[gone.run_id].problem
    assert found[there.run_id] == (there.run_id, 1, "", "")
    assert len(journals(uri, gone.run_id)) == 2  # its points, and the journal of its living driver
    for path in journals(uri):
        path.unlink()


def test_the_verb_says_what_became_of_each_run(uri, client, experiment, capsys):
    run = Run.open(uri, experiment, "one", "one")
    die(run)
    assert main(["deliver", f"tracking.uri={uri}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["runs"] == [
        {"run_id": run.run_id, "points": 0, "status": "KILLED", "problem": ""},
    ]
    assert main(["deliver", f"tracking.uri={uri}"]) == 0
    assert "nothing is left" in capsys.readouterr().out
