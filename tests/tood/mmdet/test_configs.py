"""Names and settings of mmdetection: there and back, and what cannot be expressed."""

import pytest
import torch

from tood.config import build
from tood.detectors import ModelConfig, build_detector
from tood.errors import CheckpointError, ConfigError
from tood.mmdet.configs import from_mmdet, model_config_from_mmdet, predict_config_from_mmdet, to_mmdet

HEAD = {
    "type": "TOODHead",
    "num_classes": 3,
    "in_channels": 32,
    "feat_channels": 16,
    "stacked_convs": 2,
    "norm_cfg": {"type": "GN", "num_groups": 4},
    "anchor_type": "anchor_based",
    "loss_bbox": {"type": "GIoULoss", "loss_weight": 1.5},
    "train_cfg": {"alpha": 0.5, "beta": 4, "assigner": {"type": "TaskAlignedAssigner", "topk": 7}, "initial_epoch": 2},
}
MODEL = {
    "backbone": {"type": "ResNet", "depth": 18, "frozen_stages": -1, "norm_eval": False},
    "neck": {"type": "FPN", "start_level": 1, "add_extra_convs": "on_output", "num_outs": 5, "out_channels": 32},
    "bbox_head": HEAD,
}


@pytest.fixture(scope="module")
def detector():
    return build_detector(build(ModelConfig, model_config_from_mmdet(MODEL)), 3)


def test_names_go_there_and_back(detector):
    state = detector.state_dict()
    theirs = to_mmdet(state, "TOODHead")
    assert {"bbox_head.inter_convs.1.gn.weight", "neck.fpn_convs.4.conv.bias", "bbox_head.scales.4.scale"} <= set(theirs)
    back = from_mmdet(theirs)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_a_head_comes_without_its_prefix(detector):
    theirs = {
        name.removeprefix("bbox_head."): v for name, v in to_mmdet(detector.state_dict(), "TOODHead").items() if "bbox_head" in name
    }
    assert theirs["scales.0.scale"].shape == ()
    detector.head.load_state_dict({name.removeprefix("head."): v for name, v in from_mmdet(theirs).items()})


def test_unknown_names_are_all_listed():
    state = {"backbone.conv1.weight": torch.zeros(1), "bbox_head.sabl_cls.bias": torch.zeros(1), "mask_head.x": torch.zeros(1)}
    with pytest.raises(CheckpointError, match=r"bbox_head\.sabl_cls\.bias, mask_head\.x"):
        from_mmdet(state)
    with pytest.raises(CheckpointError, match=r"head\.odd\.weight"):
        to_mmdet({"head.odd.weight": torch.zeros(1)}, "TOODHead")


def test_a_missing_level_is_an_error():
    with pytest.raises(CheckpointError, match="2 scales"):
        from_mmdet({f"scales.{i}.scale": torch.ones(()) for i in range(2)})


def test_a_configuration_keeps_its_meaning():
    config = build(ModelConfig, model_config_from_mmdet(MODEL))
    assert (config.detector, config.prior, config.box) == ("tood_anchor_based", "anchor", "delta")
    assert (config.layers, config.channels, config.groups, config.neck.channels) == (2, 16, 4, 32)
    assert (config.backbone.depth, config.backbone.frozen_stages, config.backbone.norm_eval) == (18, 0, False)
    objective = config.objective
    assert (objective.alpha, objective.beta, objective.m, objective.warmup_epochs) == (0.5, 4, 7, 2)
    assert objective.box_weight == objective.warmup.box_weight == 1.5


def test_prediction_settings_keep_their_meaning():
    nms = {"type": "nms", "iou_threshold": 0.7}
    values = predict_config_from_mmdet({"nms_pre": 50, "score_thr": 0.2, "nms": nms, "max_per_img": 9, "min_bbox_size": 3})
    assert values == {
        "score_threshold": 0.2,
        "nms_iou": 0.7,
        "per_level": 50,
        "max_detections": 9,
        "min_size": 3,
        "clip": False,
        "score_voting": False,
    }


@pytest.mark.parametrize(
    ("part", "change", "where"),
    [
        ("backbone", {"frozen_stages": 0}, "frozen_stages"),
        ("neck", {"add_extra_convs": "on_lateral"}, "neck.add_extra_convs"),
        ("bbox_head", {"num_dcn": 3}, "bbox_head.num_dcn"),
        ("bbox_head", {"type": "SABLHead"}, "bbox_head.type"),
        ("bbox_head", {"loss_cls": {"type": "QualityFocalLoss", "loss_weight": 2.0}}, "loss_cls.loss_weight"),
        ("bbox_head", {"anchor_generator": {"octave_base_scale": 4}}, "octave_base_scale"),
        ("bbox_head", {"train_cfg": {"allowed_border": 0}}, "allowed_border"),
    ],
)
def test_what_cannot_be_expressed_is_an_error(part, change, where):
    with pytest.raises(ConfigError, match=where):
        model_config_from_mmdet(MODEL | {part: MODEL[part] | change})


def test_soft_nms_is_an_error():
    with pytest.raises(ConfigError, match="soft_nms"):
        predict_config_from_mmdet({"nms": {"type": "soft_nms", "iou_threshold": 0.5}})
