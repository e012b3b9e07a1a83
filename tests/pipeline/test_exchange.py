"""`tood import` and `tood export` as a person runs them: there and back, with other programs' files, and what is refused."""

import json
import os
from pathlib import Path

import pytest
import torch

from pipeline.cli import main
from tests.pipeline.bad_inputs import make_place
from tood.checkpoint import load_model

CONFIGURATION = """
model = dict(
    type='TOOD',
    data_preprocessor=dict(type='DetDataPreprocessor', mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], pad_size_divisor=32),
    backbone=dict(type='ResNet', depth=18, norm_cfg=dict(type='BN', requires_grad=True), style='pytorch'),
    neck=dict(type='FPN', out_channels=16, start_level=1, add_extra_convs='on_output', num_outs=5),
    bbox_head=dict(type='TOODHead', in_channels=16, feat_channels=16, stacked_convs=2, norm_cfg=dict(type='GN', num_groups=4)),
    train_cfg=dict(alpha=1, beta=6, allowed_border=-1, pos_weight=-1),
    test_cfg=dict(nms_pre=1000, score_thr=0.01, nms=dict(type='nms', iou_threshold=0.65), max_per_img=50))
test_pipeline = [dict(type='Resize', scale=(96, 64), keep_ratio=True)]
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return make_place(tmp_path_factory.mktemp("place"))


@pytest.fixture(scope="module")
def theirs(place) -> Path:
    """The place's model as a checkpoint of mmdetection."""
    file = place / "theirs.pth"
    assert main(["export", str(place / "model"), "--format", "mmdet", "--output", str(file)]) == 0
    return file


def run(capsys, *words) -> dict:
    assert main([*map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_out_to_mmdetection_and_back_is_the_same_model(place, theirs, tmp_path, capsys):
    content = torch.load(theirs, weights_only=True)
    assert content["meta"]["dataset_meta"]["classes"] == ("red", "green", "blue")
    assert {"bbox_head.inter_convs.1.gn.weight", "bbox_head.scales.4.scale"} <= content["state_dict"].keys()
    found = run(capsys, "import", theirs, "--output", tmp_path / "ours")
    before, after = load_model(place / "model"), load_model(tmp_path / "ours")
    assert found["tensors"] == len(before.weights)
    assert found["source"] == "the recipe in the file"
    assert str(place) not in theirs.read_bytes().decode("latin-1")  # no path of this machine travels along
    assert before.weights.keys() == after.weights.keys()
    assert all(torch.equal(after.weights[key], before.weights[key]) for key in before.weights)
    assert (after.info.names, after.info.epoch) == (before.info.names, before.info.epoch)
    images = str(place / "data/val")
    for name, model in (("a", place / "model"), ("b", tmp_path / "ours")):
        assert main(["predict", str(model), images, "--output", str(tmp_path / name), "--threshold", "0"]) == 0
    boxes = [json.loads((tmp_path / name / "predictions.json").read_text()) for name in ("a", "b")]
    assert [(b["image_id"], b["bbox"], b["score"]) for b in boxes[0]] == [(b["image_id"], b["bbox"], b["score"]) for b in boxes[1]]


def test_a_configuration_in_the_file_says_pixels_and_sizes(theirs, tmp_path, capsys):
    state = torch.load(theirs, weights_only=True)["state_dict"]
    torch.save({"state_dict": state, "meta": {"cfg": CONFIGURATION, "epoch": 7}}, tmp_path / "x.pth")
    words = ["import", tmp_path / "x.pth", "--output", tmp_path / "m", "--classes", "a,b,c", "predict.max_detections=9"]
    assert run(capsys, *words)["source"] == "mmdetection's configuration"
    info = load_model(tmp_path / "m").info
    assert (info.names, info.category_ids, info.epoch) == (["a", "b", "c"], [1, 2, 3], 7)
    assert info.config["model"]["backbone"]["pixels"] == "bgr"
    assert (info.config["data"]["long_side"], info.config["data"]["short_side"]) == (96, 64)
    assert info.config["predict"]["nms_iou"] == 0.65
    assert info.config["predict"]["max_detections"] == 9


def test_a_bare_state_dict_needs_what_it_does_not_say(place, theirs, tmp_path, capsys):
    torch.save(torch.load(theirs, weights_only=True)["state_dict"], tmp_path / "bare.pth")
    words = ["import", str(tmp_path / "bare.pth"), "--output", str(tmp_path / "m")]
    assert main(words) == 2
    assert "add model.detector=tood or model.detector=tood_anchor_based" in capsys.readouterr().err
    classes = ["--classes", str(place / "data/val.json")]
    assert main([*words, *classes, "model.detector=tood"]) == 2  # no name or shape tells the groups: as published, which cannot be
    assert "channels: 16 is not a multiple of groups=32" in capsys.readouterr().err
    assert run(capsys, *words, *classes, "model.detector=tood", "model.groups=4")["assumed"] == []
    info = load_model(tmp_path / "m").info
    assert (info.names, info.config["model"]["groups"]) == (["red", "green", "blue"], 4)
    assert main([*words, "--config", str(place / "tiny.yaml")]) == 0
    assert "its recipe is from" in capsys.readouterr().out


def test_registering_measures_first(place, theirs, tmp_path, capsys):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    words = ["import", theirs, "--output", tmp_path / "m", "--register", "squares", "--config", place / "tiny.yaml"]
    found = run(capsys, *words, f"output={tmp_path / 'runs'}", f"tracking.uri={uri}")
    assert found["version"] == "models:/squares/1"
    info = load_model(tmp_path / "m").info
    assert 0 <= info.metrics["val/AP"] <= 1
    assert info.dataset not in ("", "none")
    pulled = ["pull", "models:/squares/1", "--set", f"tracking.uri={uri}", "--output", str(tmp_path / "pulled")]
    assert main(pulled) == 0


def test_a_hostile_file_is_refused_and_nothing_runs(tmp_path, capsys):
    class Harmful:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    torch.save(Harmful(), tmp_path / "x.pth")
    assert main(["import", str(tmp_path / "x.pth"), "--output", str(tmp_path / "m")]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert "system), not a state dict" in message
    assert [p.name for p in tmp_path.iterdir()] == ["x.pth"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("import {tmp}/none.pth --output {tmp}/m", "none.pth: cannot be read: No such file"),
        ("import {place}/weights.pth --output {tmp}/m", "weights.pth: "),
        ("import {theirs} --output {tmp}/m --classes red,green", "2 class names were given, but"),
        ("import {theirs} --output {tmp}/m --config demo", "the weights are not those of a task_aligned detector"),
        ("import {theirs} --output {tmp}/m model.channels=32", "of another shape: bbox_head."),
        ("import {theirs} --output {tmp}/m model.detector=gfl", "not of gfl"),
        ("import {theirs} --output {tmp}/m model.chanels=32", "did you mean 'channels'"),
        ("import {theirs}", "required: --output"),
        ("export {place}/none --format onnx --output {tmp}/x.onnx", "no such model folder"),
        ("export {place}/model --format onnx --output {tmp}/x.pth", "ends in .onnx"),
        ("export {place}/model --format mmdet --output {tmp}/x.pth --no-nms", "--no-nms, --size, --dynamic and --image"),
        ("export {place}/model --format onnx --output {tmp}/x.onnx --size 20x20", "'20x20' is not HEIGHTxWIDTH"),
        ("export {place}/model --format onnx --output {tmp}/x.onnx --size 64x64 --dynamic", "not allowed with argument"),
        ("export {place}/model --format torch --output {tmp}/x.pt2 --image {tmp}/none.jpg", "no such image"),
    ],
)
def test_one_clear_error(words, message, place, theirs, tmp_path, capsys):
    assert main(words.format(place=place, theirs=theirs, tmp=tmp_path).split()) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert "Traceback" not in error
    assert not list(tmp_path.iterdir())


def test_a_program_is_written_and_compared(place, tmp_path, capsys):
    words = ["export", place / "model", "--format", "torch", "--output", tmp_path / "x.pt2", "--size", "64x96", "--no-nms"]
    found = run(capsys, *words, "--image", place / "data/val/1.png")
    assert found["deviation"]["compared"] > 0
    assert found["deviation"]["box"] <= 0.05
    assert found["deviation"]["score"] <= 1e-4
    assert [p.name for p in tmp_path.iterdir()] == ["x.pt2"]
