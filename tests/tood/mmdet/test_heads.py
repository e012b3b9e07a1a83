"""Backbones and necks of mmdetection: names there and back, and what their configurations mean here."""

import itertools

import pytest
import torch

from tood.backbone import Backbone
from tood.config import BackboneConfig, NeckConfig, build
from tood.errors import ConfigError
from tood.mmdet.configs import body_config_from_mmdet, from_mmdet, to_mmdet
from tood.neck import FeaturePyramid

BACKBONE = {"type": "ResNet", "depth": 50, "num_stages": 4, "frozen_stages": 1, "norm_cfg": {"type": "BN", "requires_grad": True}}
NECK = {"type": "FPN", "start_level": 1, "add_extra_convs": "on_output", "num_outs": 5, "out_channels": 32}
DCN = {"type": "DCNv2", "deform_groups": 1, "fallback_on_stride": False}
C3_TO_C5, C4_TO_C5 = [False, True, True, True], [False, False, True, True]


def translated(backbone: dict | None = None, neck: dict | None = None, pixels: dict | None = None):
    values = body_config_from_mmdet(
        {"backbone": BACKBONE | (backbone or {}), "neck": NECK | (neck or {}), "data_preprocessor": pixels}
    )
    return build(BackboneConfig, values["backbone"]), build(NeckConfig, values["neck"])


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({}, BackboneConfig()),
        ({"frozen_stages": -1, "norm_eval": False}, BackboneConfig(frozen_stages=0, norm_eval=False)),
        ({"style": "caffe", "norm_cfg": {"type": "BN", "requires_grad": False}}, BackboneConfig(style="caffe", train_norm=False)),
        ({"depth": 18, "style": "caffe"}, BackboneConfig(depth=18)),  # its blocks have one style
        ({"dcn": DCN, "stage_with_dcn": C3_TO_C5}, BackboneConfig(dcn="c3-c5")),
        ({"dcn": DCN, "stage_with_dcn": tuple(C4_TO_C5)}, BackboneConfig(dcn="c4-c5")),
        ({"dcn": DCN}, BackboneConfig()),
        ({"dcn": None, "stage_with_dcn": C3_TO_C5}, BackboneConfig()),
        ({"type": "ResNeXt", "depth": 101, "groups": 64}, BackboneConfig(depth=101, groups=64, width_per_group=4)),
        ({"type": "ResNeXt", "depth": 101, "groups": 32, "base_width": 8}, BackboneConfig(101, groups=32, width_per_group=8)),
        ({"type": "ResNeXt"}, BackboneConfig()),
    ],
)
def test_a_backbone_keeps_its_meaning(theirs, ours):
    assert translated(backbone=theirs)[0] == ours


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({}, NeckConfig(channels=32)),
        ({"type": "PAFPN"}, NeckConfig(channels=32, kind="pafpn")),
        ({"add_extra_convs": "on_input"}, NeckConfig(channels=32, extra_from="input")),
        ({"add_extra_convs": True}, NeckConfig(channels=32, extra_from="input")),
        ({"relu_before_extra_convs": True}, NeckConfig(channels=32, relu_before_extra=True)),
    ],
)
def test_a_neck_keeps_its_meaning(theirs, ours):
    assert translated(neck=theirs)[1] == ours


@pytest.mark.parametrize(
    ("preprocessor", "pixels"),
    [
        (None, "rgb"),
        ({"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375], "bgr_to_rgb": True}, "rgb"),
        ({"mean": [103.53, 116.28, 123.675], "std": [1.0, 1.0, 1.0], "bgr_to_rgb": False}, "bgr"),
        ({"mean": [102.9801, 115.9465, 122.7717], "std": [1.0, 1.0, 1.0], "pad_size_divisor": 32}, "bgr_detectron"),
    ],
)
def test_pixels_keep_their_meaning(preprocessor, pixels):
    assert translated(pixels=preprocessor)[0].pixels == pixels


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("backbone", {"type": "SwinTransformer"}, "backbone.type: 'SwinTransformer' cannot"),
        ("backbone", {"frozen_stages": 0}, "backbone.frozen_stages"),
        ("backbone", {"deep_stem": True}, "backbone.deep_stem"),
        ("backbone", {"avg_down": True}, "backbone.avg_down"),
        ("backbone", {"dilations": (1, 1, 1, 2)}, "backbone.dilations"),
        ("backbone", {"norm_cfg": {"type": "GN"}}, "backbone.norm_cfg.type"),
        ("backbone", {"dcn": {"type": "DCN"}, "stage_with_dcn": C3_TO_C5}, "backbone.dcn.type"),
        ("backbone", {"dcn": DCN | {"deform_groups": 2}, "stage_with_dcn": C3_TO_C5}, "backbone.dcn.deform_groups"),
        ("backbone", {"dcn": DCN, "stage_with_dcn": [True] * 4}, "backbone.stage_with_dcn"),
        (
            "backbone",
            {"type": "ResNeXt", "depth": 101, "groups": 32},
            "groups: depth=101 groups=32 width_per_group=4 is no network",
        ),
        ("neck", {"type": "BiFPN"}, "neck.type: 'BiFPN' cannot"),
        ("neck", {"add_extra_convs": "on_lateral"}, "neck.add_extra_convs: 'on_lateral' cannot"),
        ("neck", {"add_extra_convs": False}, "neck.add_extra_convs"),
        ("neck", {"start_level": 0}, "neck.start_level"),
        ("neck", {"num_outs": 6}, "neck.num_outs"),
        ("neck", {"norm_cfg": {"type": "GN"}}, "neck.norm_cfg"),
        ("pixels", {"mean": [0.0] * 3, "std": [1.0] * 3}, r"data_preprocessor: mean \[0\.0, .*bgr_to_rgb=False cannot"),
        ("pixels", {"mean": [0.0] * 3, "std": [1.0] * 3, "pad_size_divisor": 128}, "data_preprocessor.pad_size_divisor"),
    ],
)
def test_what_cannot_be_expressed_is_an_error(part, change, message):
    with pytest.raises(ConfigError, match=message):
        translated(**{part: change})


@pytest.mark.parametrize(
    ("backbone", "neck"),
    list(itertools.product([{}, {"dcn": DCN, "stage_with_dcn": C4_TO_C5}], [{}, {"type": "PAFPN", "add_extra_convs": "on_input"}])),
)
def test_names_go_there_and_back(backbone, neck):
    ours, width = translated(backbone, neck)
    with torch.device("meta"):
        body = Backbone(ours)
        parts = {"backbone": body, "neck": FeaturePyramid(body.channels, width.channels, width.kind, width.extra_from)}
    state = {f"{part}.{name}": value for part, module in parts.items() for name, value in module.state_dict().items()}
    theirs = to_mmdet(state, "TOODHead")
    assert ("backbone.layer3.5.conv2.conv_offset.bias" in theirs) == bool(backbone)
    assert {"neck.lateral_convs.2.conv.weight", "neck.fpn_convs.3.conv.weight", "neck.fpn_convs.4.conv.bias"} <= theirs.keys()
    paths = {"neck.downsample_convs.0.conv.weight", "neck.downsample_convs.1.conv.bias", "neck.pafpn_convs.1.conv.weight"}
    assert (paths <= theirs.keys()) == bool(neck)
    assert theirs["neck.fpn_convs.3.conv.weight"].shape[1] == (2048 if neck else 32)
    back = from_mmdet(theirs)
    assert back.keys() == state.keys()
    assert all(back[name] is state[name] for name in state)
