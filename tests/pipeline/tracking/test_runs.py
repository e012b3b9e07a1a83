import logging
import math
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from matplotlib.figure import Figure
from mlflow import environment_variables
from mlflow.exceptions import MlflowException
from PIL import Image

from pipeline.errors import TrackingError
from pipeline.tracking import runs as tracking
from pipeline.tracking.access import connect, mlflow_client, resolve_uri
from pipeline.tracking.past_runs import history
from pipeline.tracking.runs import Run


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    uri = resolve_uri("", tmp_path_factory.mktemp("runs"))
    connect(uri)
    return uri


@pytest.fixture(scope="module")
def client(uri):
    return mlflow_client(uri)


@pytest.fixture
def experiment(uri, request):
    return tracking.experiment_id(uri, request.node.name)


@pytest.fixture
def run(uri, experiment):
    return Run.open(uri, experiment, "one", "first run")


def points(client, run, key):
    return [(metric.step, metric.value) for metric in client.get_metric_history(run.run_id, key)]


def test_experiment_is_made_once_by_many(uri, client):
    with ThreadPoolExecutor(6) as pool:
        ids = set(pool.map(lambda _: tracking.experiment_id(uri, "raced"), range(12)))
    assert len(ids) == 1
    experiment = client.get_experiment(ids.pop())
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    assert experiment.artifact_location.startswith("file:///")
    assert experiment.artifact_location.endswith("/artifacts")


def test_experiment_keeps_artifacts_where_it_is_told(uri, client, tmp_path):
    experiment = tracking.experiment_id(uri, "placed", tmp_path.as_uri())
    run = Run.open(uri, experiment, "one", "one")
    run.text("hello", "notes/a.txt")
    assert (tmp_path / run.run_id / "artifacts/notes/a.txt").read_text() == "hello"


def test_deleted_experiment_is_not_written_to(uri, client):
    client.delete_experiment(tracking.experiment_id(uri, "gone"))
    with pytest.raises(TrackingError, match=r"'gone' .* is deleted; restore it"):
        tracking.experiment_id(uri, "gone")


def test_same_identity_is_the_same_run(uri, client, experiment):
    first = Run.open(uri, experiment, "sweep-1/trial:a", "trial a", {"tries": 1})
    first.finish("FAILED")
    again = Run.open(uri, experiment, "sweep-1/trial:a", "trial a", {"tries": 2})
    other = Run.open(uri, experiment, "sweep-1/trial:b", "trial b")
    assert again.run_id == first.run_id != other.run_id
    found = client.get_run(again.run_id)
    assert found.info.status == "RUNNING"
    assert found.info.run_name == "trial a"
    assert found.data.tags["tries"] == "2"


def test_identity_cannot_break_the_search(uri, experiment):
    with pytest.raises(TrackingError, match="identity"):
        Run.open(uri, experiment, "it's", "x")


def test_params_are_numbers_and_words(client, run):
    run.params({"alpha": 1.0, "lr": 1e-5, "m": 13, "head": "t_head", "ema": True, "absent": None})
    logged = client.get_run(run.run_id).data.params
    assert logged == {"alpha": "1", "lr": "1e-05", "m": "13", "head": "t_head", "ema": "true"}
    with pytest.raises(TrackingError, match=r"parameter steps: .*neither a number nor a word"):
        run.params({"steps": [8, 11]})


def test_params_may_come_again_but_not_change(client, run):
    run.params({"alpha": 1.0})
    run.params({"alpha": 1, "beta": 6.0})
    with pytest.raises(TrackingError, match=r"parameter alpha of run .*already logged as 1, now 2"):
        run.params({"beta": 6, "alpha": 2, "m": 4})
    assert client.get_run(run.run_id).data.params == {"alpha": "1", "beta": "6"}


def test_metrics_by_step_and_epoch(client, run):
    for epoch in (1, 2):
        run.metrics({"val/AP": 0.1 * epoch, "train/loss": 1 / epoch}, step=10 * epoch, epoch=epoch)
    assert points(client, run, "val/AP") == [(10, 0.1), (20, 0.2)]
    assert points(client, run, "epoch") == [(10, 1), (20, 2)]


def test_history_is_over_epochs(uri, run):
    for step, epoch in ((5, 0.5), (10, 1), (15, 1.5), (20, 2)):
        run.metrics({"train/loss": 1 / step}, step, epoch)
    run.metrics({"val/AP": 0.1}, 10, 1)
    run.metrics({"val/AP": 0.2}, 20, 2)
    assert history(uri, run.run_id, "val/AP") == [(1, 0.1), (2, 0.2)]
    assert [epoch for epoch, _ in history(uri, run.run_id, "train/loss")] == [0.5, 1, 1.5, 2]
    assert history(uri, run.run_id, "never") == []


def test_metrics_never_crash_on_odd_values_and_names(client, run):
    run.metrics({"train/loss": math.nan, "val/AP@50": math.inf, "val/AP/a 'b' & c": 0.5, "../x": 1}, step=0)
    assert math.isnan(points(client, run, "train/loss")[0][1])
    assert len(points(client, run, "val/AP_50")) == 1
    assert points(client, run, "val/AP/a _b_ _ c") == [(0, 0.5)]


def test_steps_repeated_after_a_resume_leave_one_point(uri, client, run):
    for step in range(6):
        run.metrics({"train/loss": 1 / (1 + step)}, step)
    resumed = Run.attach(uri, run.run_id)
    assert resumed.last_step("train/loss") == 5
    for step in range(3, 9):
        resumed.metrics({"train/loss": 1 / (1 + step)}, step)
    assert points(client, run, "train/loss") == [(step, 1 / (1 + step)) for step in range(9)]
    assert resumed.last_step("train/loss") == 8
    assert resumed.last_step("never") is None


def test_the_best_value_is_the_latest_that_was_said(uri, client, run):
    run.best("val/AP", 0.02)
    gone_on_with = Run.attach(uri, run.run_id)
    for value in (0.03, 0.03):
        gone_on_with.best("val/AP", value)
    assert client.get_run(run.run_id).data.metrics["best_AP"] == 0.03
    assert [m.value for m in client.get_metric_history(run.run_id, "best_AP")] == [0.02, 0.03]


def test_one_step_twice_in_a_call_chain_is_one_point(client, run):
    run.metrics({"a": 1.0}, 0)
    run.metrics({"a": 2.0}, 0)
    assert points(client, run, "a") == [(0, 1.0)]


def test_address_and_id_travel(uri, client, run):
    run.metrics({"a": 1.0}, 0)
    travelled = pickle.loads(pickle.dumps(run))
    assert (travelled.uri, travelled.run_id) == (uri, run.run_id)
    travelled.metrics({"a": 1.0}, 0)
    travelled.metrics({"a": 2.0}, 1)
    assert points(client, run, "a") == [(0, 1.0), (1, 2.0)]


def test_undelivered_metrics_are_sent_later(uri, client, run, monkeypatch, caplog):
    def refuse(*_, **__):
        raise MlflowException("no route to host")

    monkeypatch.setattr(tracking, "OUTAGE_SECONDS", 0.2)
    monkeypatch.setattr(tracking, "LAST_SECONDS", 0.2)
    with monkeypatch.context() as broken, caplog.at_level(logging.WARNING):
        broken.setattr(client, "log_batch", refuse)
        run.metrics({"a": 1.0}, 0)
        run.metrics({"a": 2.0}, 1)
        assert run.last_step("a") == 1
        with pytest.raises(TrackingError, match=r"2 points .* within 0 s: .*no route to host.* `tood deliver`"):
            run.finish()
        run.finish("FAILED")  # the reason for the failure goes first
    assert [record.message.count("kept and sent later") for record in caplog.records][:2] == [1, 0]
    assert run.deliver()
    assert points(client, run, "a") == [(0, 1.0), (1, 2.0)]


def test_artifacts(client, run, tmp_path):
    (tmp_path / "weights.bin").write_bytes(b"123")
    figure = Figure()
    figure.subplots().plot([1, 2])
    run.text("report", "report.md")
    run.document({"b": [1, 2], "a": {"c": 0.5}}, "config.yaml")
    run.document({"b": 1}, "config.json")
    run.figure(figure, "figures/pr.png")
    run.image(Image.new("RGB", (8, 8)), "detections/sheet.png")
    run.file(tmp_path / "weights.bin", "files")
    paths = {item.path for folder in ("", "figures", "detections", "files") for item in client.list_artifacts(run.run_id, folder)}
    assert {"report.md", "config.yaml", "config.json", "figures/pr.png", "detections/sheet.png", "files/weights.bin"} <= paths
    local = client.download_artifacts(run.run_id, "config.yaml", str(tmp_path))
    with open(local) as file:
        assert file.read() == "b:\n- 1\n- 2\na:\n  c: 0.5\n"


def test_pictures_of_several_steps_are_one_row_with_a_slider(client, run):
    for step in (1, 3):
        run.picture(Image.new("RGB", (8, 8)), "detections", step)
    stored = [item.path for item in client.list_artifacts(run.run_id, "images")]
    assert sorted(path.split("+")[:3] for path in stored if path.endswith(".png")) == [
        ["images/detections", "step", "1"],
        ["images/detections", "step", "3"],
    ]
    assert client.get_run(run.run_id).data.tags["mlflow.loggedImages"] == "True"


def test_artifact_that_cannot_be_stored_costs_a_line_and_a_tag(uri, client, tmp_path, caplog):
    (tmp_path / "store").write_text("a file where a folder should be")
    run = Run.open(uri, tracking.experiment_id(uri, "unwritable", (tmp_path / "store").as_uri()), "one", "one")
    with caplog.at_level(logging.WARNING):
        run.text("a", "a.txt")
        run.text("b", "b.txt")
    assert len(caplog.records) == 1
    assert "\n" not in caplog.records[0].message
    assert client.get_run(run.run_id).data.tags["tood.artifacts_missing"] == "a.txt b.txt"
    run.metrics({"val/AP": 0.5}, 0)
    run.finish()
    assert client.get_run(run.run_id).info.status == "FINISHED"


def test_artifact_store_that_hangs_is_left_behind(run, client, monkeypatch, tmp_path):
    hang = threading.Event()
    monkeypatch.setattr(client, "log_artifact", lambda *_: hang.wait(30))
    (tmp_path / "a.bin").touch()
    begin = time.monotonic()
    run.file(tmp_path / "a.bin", seconds=0.2)
    assert time.monotonic() - begin < 5
    hang.set()
    assert client.get_run(run.run_id).data.tags["tood.artifacts_missing"] == "a.bin"


def test_what_describes_a_run_never_ends_the_work(uri, client, run, monkeypatch, caplog):
    def refuse(*_, **__):
        raise MlflowException("no route to host")

    with monkeypatch.context() as broken, caplog.at_level(logging.WARNING):
        for name in ("log_batch", "log_inputs", "log_text"):
            broken.setattr(client, name, refuse)
        run.dataset("bccd/val", "0" * 64, "validation", 87)
        run.description("about it")
        run.text("a", "a.txt")
    assert run.deliver()
    tags = client.get_run(run.run_id).data.tags
    assert tags["mlflow.note.content"] == "about it"
    assert tags["data.validation.fingerprint"] == "0" * 64
    assert tags["tood.artifacts_missing"] == "a.txt"


def test_what_work_needs_is_waited_for(uri, client, experiment, monkeypatch):
    answers = {}

    def away(name):
        real = getattr(client, name)

        def once(*arguments, **named):
            answers[name] = answers.get(name, 0) + 1
            result = real(*arguments, **named)
            if answers[name] == 1:
                raise MlflowException("the connection broke before the answer came")
            return result

        return once

    for name in ("create_run", "log_batch", "set_terminated"):
        monkeypatch.setattr(client, name, away(name))
    run = Run.open(uri, experiment, "patient", "patient", {"a": 1})
    run.params({"alpha": 1})
    run.finish()
    monkeypatch.undo()
    (found,) = client.search_runs([experiment])  # made once, although it was asked for again
    assert (found.data.tags["a"], found.data.params["alpha"], found.info.status) == ("1", "1", "FINISHED")
    assert answers == {"create_run": 1, "log_batch": 3, "set_terminated": 1}


def test_dataset_once_with_its_whole_fingerprint(client, run):
    for _ in range(2):
        run.dataset("bccd/val", "0123456789abcdef" * 4, "validation", 87)
    found = client.get_run(run.run_id)
    (used,) = found.inputs.dataset_inputs
    assert (used.dataset.name, used.tags[0].value) == ("bccd/val", "validation")
    assert ("0123456789abcdef" * 4).startswith(used.dataset.digest)
    assert found.data.tags["data.validation.fingerprint"] == "0123456789abcdef" * 4


def test_nothing_logged_holds_credentials(client, run, monkeypatch, tmp_path):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter22secret")
    run.tags({"cmd": "x --key hunter22secret", "url": "http://a:hunter22secret@h"})
    run.description("password=hunter22secret")
    run.params({"init": "s3://a:hunter22secret@b/c"})
    run.text("token: hunter22secret", "log.txt")
    data = client.get_run(run.run_id).data
    with open(client.download_artifacts(run.run_id, "log.txt", str(tmp_path))) as file:
        assert "hunter22secret" not in str(data.to_dictionary()) + file.read()


@pytest.mark.parametrize("status", ["FINISHED", "FAILED", "KILLED"])
def test_status(status, uri, client, experiment):
    run = Run.open(uri, experiment, status, status)
    run.finish(status)
    assert client.get_run(run.run_id).info.status == status


def test_a_run_ends_once(uri, client, experiment):
    run = Run.open(uri, experiment, "trial/1", "first")
    run.finish()
    ended = client.get_run(run.run_id).info.end_time
    found = Run.find(uri, experiment, "trial/1")  # as a sweep does, long after its trials
    found.finish()
    assert (found.run_id, client.get_run(run.run_id).info.end_time) == (run.run_id, ended)
    found.finish("FAILED")
    assert client.get_run(run.run_id).info.status == "FAILED"
    assert Run.find(uri, experiment, "trial/2") is None


def test_errors_say_where(uri):
    with pytest.raises(TrackingError, match=r"run 00ff: .*not found"):
        Run.attach(uri, "00ff").tags({"a": 1})


def test_mlflow_gives_up_soon_and_leaves_stdout_alone(capsys, run):
    assert environment_variables.MLFLOW_HTTP_REQUEST_TIMEOUT.get() <= 30
    assert environment_variables.MLFLOW_HTTP_REQUEST_MAX_RETRIES.get() <= 3
    run.finish()
    assert capsys.readouterr().out == ""
