"""Costs: by hand on a head small enough, to the multiply-accumulate beside mmdetection's counter, and beside the papers."""

import json
from pathlib import Path

import pytest
import torch

from tood.config import build
from tood.cost import count_cost
from tood.detectors import ModelConfig, build_detector
from tood.mmdet.configs import model_config_from_mmdet
from tood.priors import make_priors

CONFIGS = Path(__file__).parents[1] / "golden/configs"
POINTS = sum((800 // s) * (1280 // s) for s in (8, 16, 32)) + 13 * 20 + 7 * 10


def cost(**choices):
    return count_cost(build(ModelConfig, choices))


def recorded(name: str) -> tuple[ModelConfig, dict]:
    config = json.loads((CONFIGS / f"{name}.config.json").read_text())["model"]
    return build(ModelConfig, model_config_from_mmdet(config)), json.loads((CONFIGS / f"{name}.state_dict.json").read_text())


@pytest.mark.parametrize("name", sorted(p.name.removesuffix(".config.json") for p in CONFIGS.glob("*.config.json")))
def test_parameters_are_the_peers_and_so_is_the_work_but_for_how_norms_count(name):
    """Its counter knows neither deformable convolutions nor the star's; of a GroupNorm it counts 5 a value where we count 2."""
    model, theirs = recorded(name)
    ours = count_cost(model)
    assert (ours.params, ours.trainable_params) == (theirs["num_parameters"], theirs["num_trainable_parameters"])
    assert ours.head_params == theirs["parameters_by_part"]["bbox_head"]
    if model.deformable == model.backbone.dcn == "none" and model.refinement == "none":
        assert ours.gmac == pytest.approx(theirs["mmengine_flops_1280x800"] / 1e9, rel=1e-3)


def test_a_parallel_head_costs_what_its_convolutions_and_norms_do():
    convolutions = 8 * 9 * 256 * 256 + 9 * 256 * (80 + 4 + 1)
    norms = 8 * 256 * 2
    assert cost(detector="atss").head_gmac == pytest.approx(POINTS * (convolutions + norms) / 1e9, rel=1e-12)


def test_a_deformable_convolution_counts_as_dense_and_its_offsets_beside_it():
    plain, deformable = (cost(detector="gfl", deformable=d).head_gmac for d in ("none", "first"))
    assert deformable - plain == pytest.approx(2 * POINTS * 9 * 256 * 18 / 1e9, rel=1e-9)
    with_masks = cost(detector="gfl", deformable="last").head_gmac
    assert with_masks - plain == pytest.approx(2 * POINTS * 9 * 256 * 27 / 1e9, rel=1e-9)


def test_tood_has_the_published_parameters():
    assert cost().params == 32_200_494


def test_classes_and_size_count():
    config = build(ModelConfig, {"channels": 32, "groups": 8, "neck": {"channels": 32}, "backbone": {"depth": 18}})
    one, two = (count_cost(config, classes=3, height=h, width=256) for h in (256, 512))
    assert two.gmac == pytest.approx(2 * one.gmac, rel=1e-3)
    assert count_cost(config, classes=4, height=256, width=256).head_params - one.head_params == 32 * 9 + 1


def test_nothing_without_content_stays_behind():
    config = build(ModelConfig, {"channels": 8, "groups": 2, "neck": {"channels": 8}, "backbone": {"depth": 18}})
    images = torch.zeros(1, 3, 64, 64)
    detector = build_detector(config, 2).eval()
    with torch.no_grad():
        before = detector.dense(images)
        count_cost(config, classes=2, height=64, width=64)
        after = detector.dense(images)
    torch.testing.assert_close(before.boxes, after.boxes)
    assert make_priors(((8, 8), (4, 4), (2, 2), (1, 1), (1, 1)), torch.device("cpu")).centres.sum() > 0
