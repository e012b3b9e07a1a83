"""A trained model is opened with what its user changes, and looks at images in the ways that are asked for."""

import json
from pathlib import Path

import pytest

from pipeline import detect
from pipeline.cli import main
from pipeline.config import experiment_of
from pipeline.detect import evaluate_model, open_model, predict
from pipeline.experiment_files import load_values
from pipeline.verbs import models as verbs
from tests.tiny import COLOURS, write_experiment
from tood.checkpoint import ModelInfo, save_model
from tood.config import TTAConfig, identity
from tood.detectors import build_detector
from tood.errors import ConfigError


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    experiment = experiment_of(load_values(str(write_experiment(folder))))
    weights = build_detector(experiment.model, len(COLOURS)).state_dict()
    info = ModelInfo(identity(experiment), experiment.hash, list(COLOURS), [1, 2, 3], 1, 4, {}, "0" * 64, {})
    save_model(folder / "model", weights, info)
    return folder / "model"


def test_a_user_may_ask_for_further_views(model, tmp_path):
    images = [str(model.parent / "data/val/1.png")]
    found = {}
    for name, values in (("plain", None), ("flipped", {"predict": {"tta": {"flip": True}}})):
        predict(model, images, tmp_path / name, 0.0, values)
        found[name] = json.loads((tmp_path / name / "predictions.json").read_text())
    assert found["plain"] != found["flipped"]
    assert min(map(len, found.values())) > 0
    *_, detector = open_model(model, {"predict": {"tta": {"scales": [1, 2]}}})
    assert detector.predict_config.tta == TTAConfig(scales=(1.0, 2.0))
    with pytest.raises(ConfigError, match=r"predict: tta: its views are merged by NMS"):
        open_model(model, {"predict": {"nms": False, "tta": {"flip": True}}})


def test_what_reading_dropped_is_nothing_to_be_found(model, tmp_path):
    val = model.parent / "data/val.json"
    content = json.loads(val.read_text())
    bad = [
        content["annotations"][0] | {"id": 900 + i, "bbox": box} for i, box in enumerate([[], [5, 5, 0, 10], [200, 200, 10, 10]])
    ]
    (tmp_path / "val.json").write_text(json.dumps(content | {"annotations": bad + content["annotations"]}))
    place = {"root": str(model.parent / "data"), "val": {"annotations": str(val), "images": "val"}}
    clean, _ = evaluate_model(model, {"data": place})
    place |= {"val": {"annotations": str(tmp_path / "val.json"), "images": "val"}, "invalid_boxes": "drop"}
    dropped, _ = evaluate_model(model, {"data": place})
    assert dropped.summary == clean.summary


def test_a_long_prediction_says_how_far_it_is_and_a_short_one_what_it_found(model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(verbs, "SAY_SECONDS", 0.0)
    for count in (2, verbs.FEW + 1):
        images = [str(model.parent / "data/val/1.png")] * count
        assert main(["predict", str(model), *images, "--output", str(tmp_path / str(count)), "--threshold", "0"]) == 0
        said = capsys.readouterr()
        assert f"image {count}/{count} img/s" in said.err
        assert len(said.out.splitlines()) == (3 if count == 2 else 2)
        assert said.out.splitlines()[-1].startswith(f"{count} pictures")


def test_models_of_one_name_in_two_registries_are_kept_apart(tmp_path, monkeypatch):
    digests = {"http://one": "1" * 64, "http://two": "2" * 64}
    monkeypatch.setattr(detect, "resolve", lambda name, tracking: ("models:/demo/1", digests[tracking]))
    monkeypatch.setattr(detect, "pull", lambda version, tracking, folder: folder)
    one, two = (detect.find_model("models:/demo@champion", tracking, tmp_path) for tracking in digests)
    assert {one.parent, two.parent} == {tmp_path}
    assert one != two
    assert one == detect.find_model("models:/demo/1", "http://one", tmp_path)


def test_what_an_experiment_says_of_training_images_is_no_matter_when_a_model_is_used(model):
    """The experiment whose data it is may train for longer than the model was."""
    _, recipe, _ = open_model(model, {"data": {"short_side": 48, "augment": {"mosaic": 1.0, "last_epochs_off": 15}}})
    assert (recipe.data.short_side, recipe.data.augment.mosaic) == (48, 0)
