"""The doctor: each check has its own time, a fault is one row with its remedy, and nothing is left behind where nothing was."""

import json
import time
from pathlib import Path

import pytest

from pipeline.cli import main
from pipeline.config import experiment_of
from pipeline.doctor.examination import run
from pipeline.doctor.finding import Finding, Patient, render
from pipeline.errors import StorageError
from pipeline.experiment_files import load_values
from tests.servers import free_ports
from tests.tiny import write_experiment


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return write_experiment(tmp_path_factory.mktemp("tiny"))


def examined(capsys, *words: str) -> tuple[int, dict[str, list[dict]]]:
    code = main(["doctor", *words, "--json"])
    outcome = json.loads(capsys.readouterr().out)
    rows: dict[str, list[dict]] = {}
    for finding in outcome["findings"]:
        rows.setdefault(finding["check"], []).append(finding)
    problems = sum(f["state"] == "problem" for found in rows.values() for f in found)
    assert (outcome["problems"], code) == (problems, int(problems > 0))
    return code, rows


def test_a_sound_place_has_no_problem_and_stays_as_it_was(tiny, capsys):
    code, rows = examined(capsys, str(tiny))
    assert code == 0, rows
    assert list(rows) == ["versions", "gpu", "disk", "ray", "tracking", "storage", "data"]
    assert not (tiny.parent / "runs").exists()


def test_named_places_are_written_to_and_left_clean(tiny, tmp_path, capsys):
    settings = [f"storage.url={tmp_path}/store", f"tracking.uri=sqlite:///{tmp_path}/mlflow.db"]
    code, rows = examined(capsys, str(tiny), *settings)
    assert code == 0, rows
    assert "conditional writes" in rows["storage"][0]["says"]
    assert "a metric and an artifact were written" in rows["tracking"][1]["says"]
    examined(capsys, str(tiny), *settings)  # a second visit uses the same run
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    ids = [client.get_experiment_by_name("tood-doctor").experiment_id]
    assert [r.info.status for r in client.search_runs(ids)] == ["FINISHED"]
    assert not [p for p in (tmp_path / "store").rglob("*") if p.is_file() and ".locks" not in p.parts]


def test_every_fault_is_a_row_with_a_remedy(tiny, capsys):
    (port,) = free_ports(1)
    settings = [f"tracking.uri=http://127.0.0.1:{port}", f"storage.url={tiny}/store", "data.root=/nowhere", "init=/none"]
    code, rows = examined(capsys, str(tiny), *settings, "ray.gpus_per_worker=1")
    assert code == 1
    for check, said, do in (
        ("tracking", "cannot be reached", "start the server"),
        ("storage", "cannot write", ""),
        ("data", "/nowhere/train.json", "set data.root"),
        ("init", "/none does not exist", "give a model folder"),
    ):
        assert rows[check][0]["state"] == "problem"
        assert said in rows[check][0]["says"]
        assert do in rows[check][0]["do"]


def test_what_cannot_be_used_at_all_is_exit_code_2(tiny, capsys):
    assert main(["doctor", str(tiny), "train.epoch=3"]) == 2
    assert main(["doctor", "--cluster", "none", "--profiles", "none.yaml"]) == 2
    assert main(["doctor", "one", "two"]) == 2
    assert capsys.readouterr().err.count("error: ") == 3


def test_checks_run_side_by_side_each_within_its_own_time(tiny):
    patient = Patient(experiment_of(load_values(str(tiny))), True, None)

    def hangs(patient):
        time.sleep(30)
        yield Finding("hangs", "ok", "never")

    def breaks(patient):
        yield 1 / 0

    def refuses(patient):
        raise StorageError("cannot write s3://x: no such bucket; create it")

    def fine(patient):
        time.sleep(0.2)
        yield Finding("fine", "ok", "good")

    begin = time.monotonic()
    checks = [("hangs", hangs, 0.3), ("breaks", breaks, 5), ("refuses", refuses, 5), ("fine", fine, 5), ("fine2", fine, 5)]
    found = list(run(patient, checks))
    assert time.monotonic() - begin < 3
    assert [f.state for f in found] == ["problem", "problem", "problem", "ok", "ok"]
    assert "no answer within 0.3 s" in found[0].says
    assert "ZeroDivisionError" in found[1].says
    assert (found[2].says, found[2].do) == ("cannot write s3://x: no such bucket", "create it")
    assert found[3].seconds >= 0.2


def test_rows_keep_to_a_hundred_columns():
    text = render(Finding("tracking", "problem", "word " * 60, "do " * 60))
    assert max(map(len, text.splitlines())) <= 100
    assert "-> do" in text
