"""Checkpoints of mmdetection as models of ours and back: every published detector, by names and shapes, and what cannot be."""

import json
from pathlib import Path

import pytest
import torch

from tood.config import build
from tood.detectors import DETECTORS, ModelConfig, build_detector
from tood.errors import CheckpointError, ConfigError
from tood.mmdet.configs import model_config_from_mmdet, predict_config_from_mmdet
from tood.mmdet.conversion import class_names, describe, mmdet_head, mmdet_weights, our_weights
from tood.mmdet.files import Foreign
from tood.mmdet.inference import infer

GOLDEN = Path(__file__).parents[2] / "golden/configs"
PUBLISHED = sorted(path.name.removesuffix(".state_dict.json") for path in GOLDEN.glob("*.state_dict.json"))
TINY = {"channels": 32, "layers": 2, "backbone": {"depth": 18}, "neck": {"channels": 32}}


def recorded(name: str) -> tuple[dict[str, torch.Tensor], dict]:
    """Every name and shape of a published checkpoint (numbers without memory), and its `model` configuration."""
    entries = json.loads((GOLDEN / f"{name}.state_dict.json").read_text())["state_dict"]
    with torch.device("meta"):
        state = {key: torch.empty(e["shape"], dtype=getattr(torch, e["dtype"])) for key, e in entries.items()}
    return state, json.loads((GOLDEN / f"{name}.config.json").read_text())["model"]


def foreign(state: dict, **facts) -> Foreign:
    known = {
        "found_in": "state_dict",
        "first_code": False,
        "classes": (),
        "config_text": None,
        "recipe": None,
        "epoch": 0,
        "step": 0,
    }
    return Foreign(state, **known | facts)


@pytest.fixture
def numbers_without_memory(monkeypatch):
    """`isfinite` has no answer for them."""
    monkeypatch.setattr(torch.Tensor, "isfinite", lambda self: torch.ones(1, dtype=torch.bool))


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.usefixtures("numbers_without_memory")
def test_every_published_checkpoint_is_told_by_names_and_shapes_and_goes_back(name):
    state, published = recorded(name)
    config = build(ModelConfig, model_config_from_mmdet(published))
    inferred = infer(state, "fcos" if "gn-head_1x" in name else config.detector)
    told = build(ModelConfig, inferred.model)
    assert {key: getattr(told, key) for key in told.__dataclass_fields__ if key != "detector"} == {
        key: getattr(config, key) for key in config.__dataclass_fields__ if key != "detector"
    }
    theirs = predict_config_from_mmdet(published.get("test_cfg") or published["bbox_head"]["test_cfg"], published["bbox_head"])
    assert {key: inferred.predict.get(key, default) for key, default in (("nms_iou", 0.6), ("score_voting", False))} == {
        key: theirs[key] for key in ("nms_iou", "score_voting")
    }
    assert inferred.predict["clip"] == theirs["clip"]
    names = class_names(state, told, ())
    assert (len(names), names[0], names[-1]) == (80, "person", "toothbrush")
    weights = our_weights(state, told, len(names))
    back = mmdet_weights(weights, told)
    assert {key: tensor.shape for key, tensor in back.items()} == {key: tensor.shape for key, tensor in state.items()}


@pytest.mark.parametrize("detector", ["tood", "gfl", "paa", "vfnet", "retinanet", "fcos", "fcos_imprv", "foveabox", "ddod"])
def test_numbers_go_there_and_back(detector):
    config = build(ModelConfig, TINY | {"detector": detector})
    weights = build_detector(config, 3).state_dict()
    theirs = mmdet_weights(weights, config)
    again = our_weights(theirs, config, 3)
    assert again.keys() == weights.keys()
    assert all(torch.equal(again[key], weights[key]) for key in weights if key != "objective_memory")


def test_what_two_detectors_share_is_asked_for():
    state = mmdet_weights(build_detector(build(ModelConfig, TINY), 3).state_dict(), build(ModelConfig, TINY))
    with pytest.raises(ConfigError, match=r"tood and tood_anchor_based, .* add model\.detector=tood or"):
        infer(state)
    with pytest.raises(ConfigError, match="not of gfl"):
        infer(state, "gfl")
    assert build(ModelConfig, infer(state, "tood_anchor_based").model).prior == "anchor"


def test_what_does_not_fit_is_listed_all_at_once():
    config = build(ModelConfig, TINY)
    state = mmdet_weights(build_detector(config, 3).state_dict(), config)
    state["bbox_head.tood_cls.bias"] = torch.zeros(4)
    state["bbox_head.odd.weight"] = state.pop("bbox_head.tood_reg.weight")
    state["neck.fpn_convs.0.conv.bias"] = torch.full((32,), torch.nan)
    with pytest.raises(CheckpointError) as caught:
        our_weights(state, config, 3)
    for part in (
        "1 unknown: bbox_head.odd.weight",
        "1 missing: bbox_head.tood_reg.weight",
        "1 of another shape: bbox_head.tood_cls.bias [4] instead of [3]",
        "1 not finite: neck.fpn_convs.0.conv.bias",
    ):
        assert part in str(caught.value)


def test_counters_and_constants_may_be_absent_and_half_precision_becomes_whole():
    config = build(ModelConfig, TINY | {"detector": "gfl"})
    full = mmdet_weights(build_detector(config, 3).state_dict(), config)
    state = {k: v.half() for k, v in full.items() if not k.endswith(("num_batches_tracked", "integral.project"))}
    weights = our_weights(state, config, 3)
    assert weights["backbone.bn1.num_batches_tracked"] == 0
    assert weights["head.predictor.boxes.weight"].dtype == torch.float32


@pytest.mark.parametrize(
    ("given", "message"),
    [(("a", "b"), "2 class names were given, but bbox_head.tood_cls.weight tells 3"), (("a", "b", "a"), "not all different")],
)
def test_class_names_must_be_those_of_the_weights(given, message):
    config = build(ModelConfig, TINY)
    state = {"bbox_head.tood_cls.weight": torch.zeros(3, 32, 3, 3)}
    with pytest.raises(CheckpointError, match=message):
        class_names(state, config, given)
    assert class_names(state, config, ()) == ("class_0", "class_1", "class_2")


def test_a_recipe_of_ours_speaks_first():
    found = describe(foreign({}, recipe={"model": {"detector": "gfl"}, "train": {"epochs": 1}}, config_text="model = 1"))
    assert found.values == {"model": {"detector": "gfl"}}


def test_a_configuration_that_cannot_be_expressed_is_an_error_that_says_so():
    text = (
        "model = dict(backbone=dict(type='SwinTransformer'), neck=dict(type='FPN'), bbox_head=dict(type='TOODHead', in_channels=8))"
    )
    with pytest.raises(ConfigError, match=r"configuration in the file: backbone\.type: 'SwinTransformer'.*--config EXPERIMENT"):
        describe(foreign({}, config_text=text))
    with pytest.raises(ConfigError, match="is not mmdetection's"):
        describe(foreign({}, config_text="model = dict(bbox_head=dict(depth=3))"))


@pytest.mark.parametrize("row", DETECTORS)
def test_only_rows_that_mean_the_same_there_go_out(row):
    config = build(ModelConfig, {"detector": row})
    theirs = {"tood", "tood_anchor_based", "atss_anchor_based", "fcos", "fcos_imprv", "gfl", "retinanet", "foveabox", "paa"}
    if row in theirs | {"vfnet", "ddod"}:
        assert mmdet_head(config).endswith("Head")
    else:
        with pytest.raises(ConfigError, match="export in another format"):
            mmdet_head(config)


@pytest.mark.parametrize(
    "change",
    [
        {"detector": "atss"},  # points there would be anchors here, under the same names
        {"detector": "gfl", "bin_width": 0.5},
        {"detector": "gfl", "deformable": "last"},
        {"detector": "tood", "conv_bias": True},
        {"detector": "atss_anchor_based", "centre_offset": 0.5},
    ],
)
def test_choices_that_mmdetection_does_not_have_are_errors(change):
    with pytest.raises(ConfigError, match="has no such choice"):
        mmdet_head(build(ModelConfig, change))
