"""`tood analyze` as a person runs it: files, table, JSON, and what MLflow holds afterwards."""

import json
from pathlib import Path

import pytest
from mlflow import MlflowClient
from PIL import Image

from pipeline.analyze import metrics_of, table
from pipeline.cli import main
from pipeline.tracking.runs import experiment_id
from tests.pipeline.bad_inputs import make_place

ARTIFACTS = ["alignment.png", "analysis.json", "analysis.txt", "confusions.png", "errors.png"]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return make_place(tmp_path_factory.mktemp("place"))


def analyze(place: Path, out: Path, *more: str) -> list[str]:
    return ["analyze", str(place / "model"), str(place / "tiny.yaml"), "--output", str(out), "--threshold", "0.01", *more]


def test_figures_table_and_pictures(place, tmp_path, capsys):
    assert main(analyze(place, tmp_path / "out", "--json")) == 0
    figures = json.loads(capsys.readouterr().out)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ARTIFACTS
    assert json.loads((tmp_path / "out/analysis.json").read_text()) == figures
    assert figures["images"] == 8
    assert figures["annotations"] == "val.json"
    assert figures["objects"]["all"]["objects"] == sum(figures["objects"][s]["objects"] for s in ("small", "medium", "large"))
    for name in ("alignment", "errors", "confusions"):
        assert Image.open(tmp_path / f"out/{name}.png").width > 400
    assert main(["evaluate", "--model", str(place / "model"), str(place / "tiny.yaml"), "--json"]) == 0
    assert figures["AP50"] == pytest.approx(json.loads(capsys.readouterr().out)["AP50"], abs=1e-12)

    assert main(analyze(place, tmp_path / "out")) == 0
    printed = capsys.readouterr().out
    assert (tmp_path / "out/analysis.txt").read_text() in printed
    for word in ("PCC of rankings, top 50", "objects without such a point", "localisation", "redundant"):
        assert word in printed
    assert not (place / "runs").exists()  # nothing was asked of MLflow


def test_a_run_of_its_own_is_found_again(place, tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = MlflowClient(uri)
    for _ in range(2):
        assert main(analyze(place, tmp_path / "out", f"tracking.uri={uri}")) == 0
    (run,) = client.search_runs([client.get_experiment_by_name("tiny").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.tags["tood.kind"] == "analyze"
    figures = json.loads((tmp_path / "out/analysis.json").read_text())
    assert run.data.metrics == pytest.approx(metrics_of(figures))
    assert run.data.params["threshold"] == "0.01"
    assert sorted(Path(f.path).name for f in client.list_artifacts(run.info.run_id, "analysis")) == ARTIFACTS
    assert run.inputs.dataset_inputs[0].dataset.name == "val"
    assert main(analyze(place, tmp_path / "out", f"tracking.uri={uri}", "predict.nms_iou=0.5")) == 0
    assert len(client.search_runs([run.info.experiment_id])) == 2  # another question, another run


def test_into_a_run_that_is_named(place, tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = MlflowClient(uri)
    run_id = client.create_run(experiment_id(uri, "trainings")).info.run_id
    client.log_metric(run_id, "val/AP", 0.5, step=4)
    assert main(analyze(place, tmp_path / "out", f"tracking.uri={uri}", "--run", run_id)) == 0
    run = client.get_run(run_id)
    assert run.data.metrics["val/AP"] == 0.5
    assert "analysis/correct_boxes" in run.data.metrics
    assert client.get_metric_history(run_id, "analysis/AP50")[0].step == 4  # the checkpoint's step
    assert sorted(Path(f.path).name for f in client.list_artifacts(run_id, "analysis")) == ARTIFACTS
    assert run.info.status == "RUNNING"  # it is somebody else's
    assert not run.data.params
    assert client.get_experiment_by_name("tiny") is None


def test_a_run_that_is_not_there_is_found_out_before_any_work(place, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("pipeline.analyze.analyse", lambda *arguments, **options: pytest.fail("the work was begun"))
    assert main(analyze(place, tmp_path / "out", f"tracking.uri=sqlite:///{tmp_path}/mlflow.db", "--run", "0" * 32)) == 2
    error = capsys.readouterr().err
    assert error.count("error: ") == 1
    assert "0" * 32 in error


def test_the_environments_mlflow_is_used(place, tmp_path, monkeypatch):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert main(analyze(place, tmp_path / "out", "tracking.experiment=looks")) == 0
    assert len(MlflowClient(uri).search_runs([MlflowClient(uri).get_experiment_by_name("looks").experiment_id])) == 1


def test_a_table_of_what_is_not_defined(place, tmp_path):
    assert main(analyze(place, tmp_path / "out")) == 0
    figures = json.loads((tmp_path / "out/analysis.json").read_text())
    of_none = {"objects": 0, "pcc_top50": None, "iou_top10": None, "without_positive": 0}
    of_none |= {"share_without_positive": None, "positives": None}
    figures["objects"]["large"] = of_none
    figures["confusion"]["matrix"] = [[3, 0, 0, 1], [2, 5, 0, 0], [0, 0, 0, 0], [7, 0, 0, 0]]
    lines = table(figures).splitlines()
    assert next(line for line in lines if line.startswith("PCC")).split()[-1] == "-"
    assert [line for line in lines if "taken for" in line] == [f"{'green taken for red':<30}{2:>9}"]
    assert "analysis/pcc_top50_large" not in metrics_of(figures)
    figures["confusion"]["matrix"] = [[0] * 4] * 4
    assert "no confusions between classes" in table(figures)
