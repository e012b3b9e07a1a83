"""The shipped recipes: those that mmdetection has too mean the same as its configurations, key by key."""

import json
from pathlib import Path

import pytest

from pipeline.config import experiment_of
from pipeline.experiment_files import experiment_names, load_values
from tood.config import PredictConfig, build, identity
from tood.detectors import DETECTORS, ModelConfig
from tood.mmdet.configs import model_config_from_mmdet, predict_config_from_mmdet

CONFIGS = Path(__file__).parents[1] / "golden/configs"
RECIPES = {
    "atss_anchor_based_r50_fpn_1x": "atss_r50_fpn_1x",
    "ddod_r50_fpn_1x": "ddod_r50_fpn_1x",
    "fcos_imprv_r50_fpn_1x": "fcos_r50-caffe_fpn_gn-head-center-normbbox-centeronreg-giou_1x",
    "fcos_r50_fpn_1x": "fcos_r50-caffe_fpn_gn-head_1x",
    "gfl_r50_fpn_1x": "gfl_r50_fpn_1x",
    "paa_r50_fpn_1x": "paa_r50_fpn_1x",
    "retinanet_r50_fpn_1x": "retinanet_r50_fpn_1x",
    "tood_anchor_based_r50_fpn_1x": "tood_r50_fpn_anchor-based_1x",
    "tood_r101-dconv-c3-c5_fpn_ms-2x": "tood_r101-dconv-c3-c5_fpn_ms-2x",
    "tood_r101_fpn_ms-2x": "tood_r101_fpn_ms-2x",
    "tood_r50_fpn_1x": "tood_r50_fpn_1x",
    "tood_r50_fpn_anchor-based_1x": "tood_r50_fpn_anchor-based_1x",
    "tood_r50_fpn_ms-2x": "tood_r50_fpn_ms-2x",
    "tood_x101-64x4d-dconv-c4-c5_fpn_ms-2x": "tood_x101-64x4d-dconv-c4-c5_fpn_ms-2x",
    "tood_x101-64x4d_fpn_ms-2x": "tood_x101-64x4d_fpn_ms-2x",
    "vfnet_r50_fpn_1x": "vfnet_r50_fpn_1x",
}
OTHERS = {  # rows without a recorded configuration, and what they share their recipe with
    "atss_r50_fpn_1x": "atss_anchor_based_r50_fpn_1x",
    "tscode_fcos_r50_fpn_1x": "fcos_imprv_r50_fpn_1x",
    "tscode_atss_r50_fpn_1x": "atss_anchor_based_r50_fpn_1x",
    "tscode_gfl_r50_fpn_1x": "gfl_r50_fpn_1x",
    "tscode_tood_r50_fpn_1x": "tood_r50_fpn_1x",
    "foveabox_r50_fpn_1x": "retinanet_r50_fpn_1x",
}


def shipped(name: str):
    return experiment_of(load_values(name))


@pytest.mark.parametrize(("ours", "theirs"), RECIPES.items())
def test_a_recipe_means_the_same_as_mmdetections(ours, theirs):
    recipe = shipped(ours)
    config = json.loads((CONFIGS / f"{theirs}_coco.config.json").read_text())
    model = config["model"]
    assert identity(recipe.model) == identity(build(ModelConfig, model_config_from_mmdet(model)))
    test = model.get("test_cfg") or model["bbox_head"]["test_cfg"]
    assert recipe.predict == build(PredictConfig, predict_config_from_mmdet(test, model["bbox_head"]))

    wrapper, train = config["optim_wrapper"], recipe.train
    optimizer, apart = wrapper["optimizer"], wrapper.get("paramwise_cfg") or {}
    assert train.optimizer == optimizer["type"].lower()
    assert (train.lr, train.momentum) == (optimizer["lr"], optimizer["momentum"])
    assert train.weight_decay == optimizer["weight_decay"]
    assert train.batch_size == train.lr_batch_size == config["auto_scale_lr"]["base_batch_size"] == 16
    assert (train.bias_lr, train.bias_decay) == (apart.get("bias_lr_mult", 1), apart.get("bias_decay_mult", 1))
    assert train.clip_norm == (wrapper.get("clip_grad") or {"max_norm": 0})["max_norm"]
    warmup, steps = config["param_scheduler"]
    assert {"linear": "LinearLR", "constant": "ConstantLR"}[train.warmup] == warmup["type"]
    assert (train.warmup_steps, train.warmup_factor) == (warmup["end"], warmup.get("start_factor", warmup.get("factor")))
    assert (train.epochs, train.milestones) == (config["train_cfg"]["max_epochs"], tuple(steps["milestones"]))
    assert (train.gamma, train.schedule) == (steps["gamma"], "step")

    dataset = config["train_dataloader"]["dataset"]
    read = {step["type"]: step for step in dataset["pipeline"]}
    size = read.get("Resize") or read["RandomResize"]
    low, high = size["scale"] if "RandomResize" in read else ((1333, 0), size["scale"])
    data = recipe.data
    assert ([data.long_side, data.short_side], data.short_side_min) == (high, low[1])
    assert (data.flip, data.keep_empty) == (read["RandomFlip"]["prob"], not dataset["filter_cfg"]["filter_empty_gt"])


@pytest.mark.parametrize(("name", "like"), OTHERS.items())
def test_a_relatives_recipe_differs_in_the_model_alone(name, like):
    ours, other = shipped(name), shipped(like)
    assert (ours.data, ours.train, ours.predict, ours.init) == (other.data, other.train, other.predict, other.init)
    assert ours.model.backbone == other.model.backbone
    assert identity(ours.model) != identity(other.model)
    assert ours.model.detector == name.removesuffix("_r50_fpn_1x")


def test_paa_has_its_longer_schedule():
    short, long = shipped("paa_r50_fpn_1x"), shipped("paa_r50_fpn_1.5x")
    assert (long.train.epochs, long.train.milestones) == (18, (12, 16))
    assert (long.model, long.predict) == (short.model, short.predict)


def test_every_recipe_of_coco_says_what_was_published():
    names = [name for name in experiment_names() if "_fpn_" in name]
    assert {*RECIPES, *OTHERS, "paa_r50_fpn_1.5x"} == set(names)
    assert all("published COCO val AP" in shipped(name).description for name in names)
    assert {shipped(name).model.detector for name in names} <= DETECTORS.keys()
