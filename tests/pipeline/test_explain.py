"""`tood explain` as a person runs it: pictures, their account, whose annotations they use, and what MLflow holds."""

import json
import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient
from PIL import Image

from pipeline.cli import main
from tests.pipeline.bad_inputs import make_place


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return make_place(tmp_path_factory.mktemp("place"))


def explain(place: Path, out: Path, *words: str) -> list[str]:
    return ["explain", *words, "--checkpoint", str(place / "model"), "--output", str(out)]


def test_annotated_images_of_either_split_and_one_that_is_not(place, tmp_path, capsys):
    stranger = shutil.copy(place / "data/val/2.png", tmp_path / "2.png")
    images = [str(place / "data/val/1.png"), str(place / "data/train/3.png"), str(stranger)]
    words = explain(place, tmp_path / "out", *images, "--experiment", str(place / "tiny.yaml"))
    assert main([*words, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert json.loads((tmp_path / "out/explanations.json").read_text()) == summary
    assert [image["annotated"] for image in summary] == [True, True, False]
    assert [image["picture"] for image in summary] == ["0001-1.png", "0002-3.png", "0003-2.png"]
    for image in summary:
        assert Image.open(tmp_path / "out" / image["picture"]).width > 1000
    for split, image_id, image in (("val", 1, summary[0]), ("train", 3, summary[1])):
        content = json.loads((place / f"data/{split}.json").read_text())
        truth = [a for a in content["annotations"] if a["image_id"] == image_id]
        objects = image["models"][str(place / "model")]
        assert [o["number"] for o in objects] == list(range(1, len(truth) + 1))
        for o, a in zip(objects, truth, strict=True):
            x, y, width, height = a["bbox"]
            assert o["box"] == pytest.approx([x, y, x + width, y + height], abs=0.1)
            assert o["class"] == ["red", "green", "blue"][a["category_id"] - 1]
            assert o["localisation"]["iou"] >= o["classification"]["iou"] - 1e-4
            assert o["classification"]["score"] >= o["localisation"]["score"] - 1e-4
    (only,) = summary[2]["models"][str(place / "model")]
    assert only["number"] is None
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "0003-2.png: no annotations, so the best detection" in printed
    assert "at the surest point" in printed


def test_two_checkpoints_stand_one_above_the_other(place, tmp_path, capsys):
    other = shutil.copytree(place / "model", tmp_path / "other")
    image = str(place / "data/val/1.png")
    assert main(explain(place, tmp_path / "one", image)) == 0
    assert main([*explain(place, tmp_path / "two", image, "--json"), "--checkpoint", str(other)]) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(summary[0]["models"]) == [str(place / "model"), str(other)]
    sizes = [Image.open(tmp_path / f"{folder}/0001-1.png").size for folder in ("one", "two")]
    assert sizes[0][0] == sizes[1][0]
    assert sizes[0][1] < sizes[1][1]


def test_one_object_alone(place, tmp_path, capsys):
    image, data = str(place / "data/val/1.png"), ["--experiment", str(place / "tiny.yaml")]
    assert main([*explain(place, tmp_path / "all", image), *data, "--json"]) == 0
    (every,) = json.loads(capsys.readouterr().out)[0]["models"].values()
    last = len(every)
    assert main([*explain(place, tmp_path / "one", image), *data, "--object", str(last), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["models"] == {str(place / "model"): every[-1:]}
    for number, words in ((last + 1, data), (1, [])):
        assert main([*explain(place, tmp_path / "none", image), *words, "--object", str(number)]) == 2
        assert f"--object {number}: {image} has" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_pictures_are_logged(place, tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = MlflowClient(uri)
    words = explain(place, tmp_path / "out", str(place / "data/val/1.png"), "--set", f"tracking.uri={uri}")
    assert main([*words, "--set", "tracking.experiment=looks"]) == 0
    (run,) = client.search_runs([client.get_experiment_by_name("looks").experiment_id])
    assert (run.info.status, run.data.tags["tood.kind"]) == ("FINISHED", "explain")
    stored = [f.path for f in client.list_artifacts(run.info.run_id, "explain")]
    assert stored == ["explain/0001-1.png", "explain/explanations.json"]
