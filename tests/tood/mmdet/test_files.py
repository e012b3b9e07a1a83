"""Checkpoint files of mmdetection: where their weights, classes and configuration are, whatever else they hold."""

import os
import sys
import types
from collections import OrderedDict

import numpy as np
import pytest
import safetensors.torch
import torch

from tood.errors import CheckpointError, ConfigError
from tood.mmdet.files import read_foreign, write_mmdet
from tood.mmdet.text import image_sides, model_of, read_config_text

STATE = {"backbone.conv1.weight": torch.ones(2, 3), "bbox_head.tood_cls.bias": torch.zeros(4)}


@pytest.fixture
def mmengine(monkeypatch):
    """Classes of a package that is there when a checkpoint is written, and gone when it is read."""
    module = types.ModuleType("mmengine")

    class HistoryBuffer:
        def __init__(self):
            self.history = np.arange(5.0)

    class ConfigDict(dict):
        def __reduce_ex__(self, protocol):
            return ConfigDict, (dict(self),), None, None, None

    for made in (HistoryBuffer, ConfigDict):
        made.__module__, made.__qualname__ = "mmengine", made.__name__
        setattr(module, made.__name__, made)
    monkeypatch.setitem(sys.modules, "mmengine", module)
    yield module
    monkeypatch.delitem(sys.modules, "mmengine", raising=False)


@pytest.mark.parametrize("as_zip", [True, False], ids=["zip", "stream"])
def test_a_training_checkpoint_with_objects_of_mmengine(as_zip, mmengine, tmp_path, monkeypatch):
    content = {
        "meta": {
            "epoch": 12,
            "iter": 90_000,
            "cfg": "model = dict(type='TOOD')",
            "seed": np.int64(3),
            "dataset_meta": {"classes": ("a", "b"), "palette": [(1, 2, 3)]},
            "hooks": mmengine.ConfigDict(a=1),
        },
        "state_dict": OrderedDict(STATE),
        "message_hub": {"log_scalars": {"train/loss": mmengine.HistoryBuffer()}},
        "optimizer": {"state": {0: {"momentum_buffer": torch.ones(2)}}, "param_groups": [{"lr": np.float64(0.1)}]},
        "param_schedulers": [{"base_values": [0.1]}],
    }
    torch.save(content, tmp_path / "epoch_12.pth", _use_new_zipfile_serialization=as_zip)
    monkeypatch.delitem(sys.modules, "mmengine")
    found = read_foreign(tmp_path / "epoch_12.pth")
    assert found.state.keys() == STATE.keys()
    assert all(torch.equal(found.state[key], STATE[key]) for key in STATE)
    assert (found.found_in, found.first_code, found.epoch, found.step) == ("state_dict", False, 12, 90_000)
    assert (found.classes, found.config_text) == (("a", "b"), "model = dict(type='TOOD')")
    assert "mmengine" not in sys.modules


@pytest.mark.parametrize("as_zip", [True, False], ids=["zip", "stream"])
def test_a_hostile_checkpoint_runs_nothing_and_its_honest_part_is_read(as_zip, tmp_path):
    trace = tmp_path / "ran"

    class Harmful:
        def __reduce__(self):
            return os.system, (f"touch {trace}",)

    class State(dict):
        def __reduce__(self):
            return dict, (), {"__setstate__": Harmful()}

    torch.save({"state_dict": STATE, "meta": Harmful()}, tmp_path / "x.pth", _use_new_zipfile_serialization=as_zip)
    assert read_foreign(tmp_path / "x.pth").state.keys() == STATE.keys()
    for content in (Harmful(), {"state_dict": Harmful()}, {"state_dict": State()}, [Harmful()]):
        torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=as_zip)
        with pytest.raises(CheckpointError, match="state dict"):
            read_foreign(tmp_path / "x.pth")
    assert not trace.exists()


@pytest.mark.parametrize(
    ("content", "found_in"),
    [
        (STATE, "the file"),
        ({"model": STATE}, "model"),
        ({f"module.{k}": v for k, v in STATE.items()}, "the file"),
        ({"state_dict": STATE, "ema_state_dict": {f"module.{k}": v + 1 for k, v in STATE.items()}}, "state_dict"),
        ({"ema_state_dict": {"steps": torch.tensor(9)} | {f"module.{k}": v for k, v in STATE.items()}}, "ema_state_dict"),
        (
            {"state_dict": STATE | {"ema_backbone_conv1_weight": torch.zeros(1), "data_preprocessor.mean": torch.zeros(3)}},
            "state_dict",
        ),
    ],
)
def test_weights_are_found_wherever_they_are(content, found_in, tmp_path):
    torch.save(content, tmp_path / "x.pth")
    found = read_foreign(tmp_path / "x.pth")
    assert found.found_in == found_in
    assert found.state.keys() == STATE.keys()
    assert all(torch.equal(found.state[key], STATE[key]) for key in STATE)


def test_safetensors_are_state_dicts_too(tmp_path):
    safetensors.torch.save_file(STATE, tmp_path / "x.safetensors")
    assert read_foreign(tmp_path / "x.safetensors").state.keys() == STATE.keys()


def test_names_of_the_first_code_become_those_of_mmdetection_3(tmp_path):
    names = (
        "cls_decomp.la_conv1",
        "reg_decomp.la_conv2",
        "cls_prob_conv1",
        "cls_prob_conv2",
        "reg_offset_conv1",
        "reg_offset_conv2",
    )
    torch.save({f"bbox_head.{name}.weight": torch.ones(1) for name in names}, tmp_path / "x.pth")
    found = read_foreign(tmp_path / "x.pth")
    assert found.first_code
    assert [key.removeprefix("bbox_head.").removesuffix(".weight") for key in found.state] == [
        "cls_decomp.layer_attention.0",
        "reg_decomp.layer_attention.2",
        "cls_prob_module.0",
        "cls_prob_module.2",
        "reg_offset_module.0",
        "reg_offset_module.2",
    ]


@pytest.mark.parametrize(
    ("content", "message"), [({"epoch": 3}, "no state dict.*it has: epoch"), ([1], r"holds an object \(list\)")]
)
def test_files_without_weights_are_errors(content, message, tmp_path):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=message):
        read_foreign(tmp_path / "x.pth")


def test_what_is_written_loads_as_plain_values_and_keeps_the_recipe(tmp_path):
    recipe = {"model": {"detector": "tood"}}
    write_mmdet(tmp_path / "x.pth", STATE, classes=["a", "b"], recipe=recipe, epoch=12, step=90)
    content = torch.load(tmp_path / "x.pth", weights_only=True)
    assert content["state_dict"].keys() == STATE.keys()
    assert content["meta"]["dataset_meta"] == {"classes": ("a", "b")}
    found = read_foreign(tmp_path / "x.pth")
    assert (found.recipe, found.classes, found.epoch, found.step) == (recipe, ("a", "b"), 12, 90)


FIRST_CODE = """
model = dict(
    type='TOOD', pretrained='torchvision://resnet50',
    backbone=dict(type='ResNet', depth=50),
    bbox_head=dict(type='TOODHead', num_dcn_on_head=2,
        initial_loss_cls=dict(type='FocalLossWithProb', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
        loss_cls=dict(type='TaskAlignedFocalLoss', use_sigmoid=True, gamma=1.5, loss_weight=1.0)))
train_cfg = dict(alpha=1, beta=6, allowed_border=-1)
test_cfg = {'score_thr': 0.05, "nms": dict(iou_threshold=0.6)}
img_norm_cfg = dict(mean=[123.675, 116.28, 103.53], std=(58.395, 57.12, 57.375), to_rgb=True)
test_pipeline = [dict(type='LoadImageFromFile'), dict(type='MultiScaleFlipAug', img_scale=(1333, 800))]
lr = open('x')
"""


def test_the_configuration_of_the_first_code_is_put_into_the_form_of_mmdetection_3():
    assigned = read_config_text(FIRST_CODE)
    model = model_of(assigned)
    assert model["train_cfg"]["allowed_border"] == -1
    assert model["test_cfg"]["nms"] == {"iou_threshold": 0.6}
    assert model["data_preprocessor"]["bgr_to_rgb"] is True
    assert (model["bbox_head"]["num_dcn"], "num_dcn_on_head" in model["bbox_head"]) == (2, False)
    assert model["bbox_head"]["loss_cls"]["type"] == "QualityFocalLoss"
    assert model["bbox_head"]["loss_cls"]["beta"] == 1.5
    assert model["bbox_head"]["initial_loss_cls"]["gamma"] == 2.0
    assert image_sides(assigned) == {"long_side": 1333, "short_side": 800}


@pytest.mark.parametrize(
    "text",
    [
        "model = dict(bbox_head=dict(x=open('y')))",
        "model = dict(bbox_head=dict(x=[i for i in range(9)]))",
        "model = dict(bbox_head=dict(**other))",
        "model = dict(bbox_head=dict(x=-'a'))",
        "model = __import__('os').system('true')",
        "model = dict(",
        "model = 3",
        "other = dict()",
        "model = " + "(" * 5000,
    ],
)
def test_anything_but_plain_values_is_an_error(text):
    with pytest.raises(ConfigError, match=r"the configuration in the file .*--config"):
        read_config_text(text)
