"""Names and settings of mmdetection 3: its parameters under our names and back, its configurations as ours.

Only what both sides can express; anything else is one clear error, never a silent difference.
"""

import re
from typing import Any

import torch
from torch import Tensor

from tood.data.batches import MULTIPLE, PIXELS
from tood.errors import CheckpointError, ConfigError
from tood.mmdet.heads import HEAD_NAMES, LEVEL_SCALES, head_values, require
from tood.priors import STRIDES

# mmdetection's module | ours. `*` is a number, the same on both sides; the last name (weight, bias, ...) stays.
_BACKBONE = (
    ("backbone.conv1", "backbone.conv1"),
    ("backbone.bn1", "backbone.bn1"),
    ("backbone.layer*.*.conv*", "backbone.layer*.*.conv*"),
    ("backbone.layer*.*.conv*.conv_offset", "backbone.layer*.*.conv*.conv_offset"),
    ("backbone.layer*.*.bn*", "backbone.layer*.*.bn*"),
    ("backbone.layer*.*.downsample.*", "backbone.layer*.*.downsample.*"),
)
_NECK = (
    ("neck.lateral_convs.*.conv", "neck.lateral.*"),
    ("neck.fpn_convs.0.conv", "neck.output.0"),
    ("neck.fpn_convs.1.conv", "neck.output.1"),
    ("neck.fpn_convs.2.conv", "neck.output.2"),
    ("neck.fpn_convs.3.conv", "neck.extra.0"),
    ("neck.fpn_convs.4.conv", "neck.extra.1"),
    ("neck.downsample_convs.*.conv", "neck.downsample.*"),
    ("neck.pafpn_convs.*.conv", "neck.aggregate.*"),
)
_BODY = (*_BACKBONE, *_NECK)
_MEMORY = "objective_memory"  # ours alone: what an objective remembers while it trains
_BIN_VALUES = "bbox_head.integral.project"  # theirs alone: the constants 0..n that GFL's bins stand for


def from_mmdet(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of mmdetection's detector, or of its `bbox_head` alone (names without that prefix), under our names.

    Raises CheckpointError that lists the names which no part of ours answers to.
    """
    if not any(key.startswith(("backbone.", "neck.", "bbox_head.")) for key in state):
        state = {f"bbox_head.{key}": value for key, value in state.items()}
    levels = range(len(STRIDES))
    apart = {pattern.format(level) for pattern in LEVEL_SCALES for level in levels} | {_BIN_VALUES}
    named = _rename({key: value for key, value in state.items() if key not in apart}, (*_BODY, *_all_heads()))
    for pattern, ours in LEVEL_SCALES.items():
        scales = [state[pattern.format(level)] for level in levels if pattern.format(level) in state]
        if scales and len(scales) < len(STRIDES):
            raise CheckpointError(f"{len(scales)} scales in the checkpoint, one for each of {len(STRIDES)} levels expected")
        if scales:
            named[ours] = torch.stack(scales)
    return named


def to_mmdet(state: dict[str, Tensor], head: str) -> dict[str, Tensor]:
    """The reverse of `from_mmdet`, for a detector's state dict or any part of it; raises CheckpointError likewise.

    `head` is mmdetection's type, a key of HEAD_NAMES (`heads.head_type` tells a configuration's).
    """
    scales = set(LEVEL_SCALES.values())
    rest = {key: value for key, value in state.items() if key not in scales and key != _MEMORY}
    named = _rename(rest, [(ours, theirs) for theirs, ours in (*_BODY, *HEAD_NAMES[head])])
    for pattern, ours in LEVEL_SCALES.items():
        for level, scale in enumerate(state.get(ours, ())):
            named[pattern.format(level)] = scale
    if head == "GFLHead" and "head.predictor.boxes.weight" in state:
        bins = len(state["head.predictor.boxes.weight"]) // 4
        named[_BIN_VALUES] = torch.arange(bins, dtype=torch.float32)
    return named


def _all_heads() -> list[tuple[str, str]]:
    return list(dict.fromkeys(pair for names in HEAD_NAMES.values() for pair in names))


def _rename(state: dict[str, Tensor], names) -> dict[str, Tensor]:
    rules = [(re.compile(re.escape(old).replace(r"\*", r"(\d+)")), new.replace("*", "{}")) for old, new in names]
    renamed, unknown = {}, []
    for key, value in state.items():
        module, _, parameter = key.rpartition(".")
        found = ((rule.fullmatch(module), new) for rule, new in rules)
        match, new = next(((m, new) for m, new in found if m), (None, ""))
        if match:
            renamed[f"{new.format(*match.groups())}.{parameter}"] = value
        else:
            unknown.append(key)
    if unknown:
        raise CheckpointError(f"parameters with no counterpart here: {', '.join(unknown)}")
    return renamed


def model_config_from_mmdet(cfg: dict[str, Any]) -> dict[str, Any]:
    """Values for `ModelConfig` that mean the same as mmdetection's resolved `model`, or `bbox_head`, configuration.

    A bare head leaves the backbone at its default. Raises ConfigError for what our detectors cannot express.
    """
    head = cfg.get("bbox_head", cfg)
    values = head_values(head, cfg.get("train_cfg") or head.get("train_cfg") or {})
    return values | (body_config_from_mmdet(cfg) if "backbone" in cfg else {})


def body_config_from_mmdet(cfg: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The same for what comes before the head: values for `BackboneConfig` and `NeckConfig`, and what the backbone reads."""
    return {"backbone": _backbone(cfg["backbone"], cfg.get("data_preprocessor")), "neck": _neck(cfg["neck"])}


def predict_config_from_mmdet(test_cfg: dict[str, Any], head: dict[str, Any] | None = None) -> dict[str, Any]:
    """Values for `PredictConfig` that mean the same as mmdetection's `test_cfg`. Raises ConfigError likewise.

    `head` is its `bbox_head` configuration, TOOD's where it is not given.
    """
    head = head or {"type": "TOODHead"}
    nms = test_cfg.get("nms", {"type": "nms", "iou_threshold": 0.5})
    require(nms, "test_cfg.nms", type="nms", class_agnostic=False)
    unlimited = 1_000_000  # more (point, class) pairs than a level is ever asked for
    return {
        "score_threshold": test_cfg.get("score_thr", 0.05),
        "nms_iou": nms.get("iou_threshold", 0.5),
        "per_level": test_cfg["nms_pre"] if test_cfg.get("nms_pre", -1) > 0 else unlimited,
        "max_detections": test_cfg.get("max_per_img", 100),
        "min_size": test_cfg.get("min_bbox_size", 0),
        "clip": head["type"] != "TOODHead",
        "score_voting": head["type"] == "PAAHead" and head.get("score_voting", True),
    }


def _backbone(backbone: dict, preprocessor: dict | None = None) -> dict[str, Any]:
    backbone = {key: value for key, value in backbone.items() if value is not None}
    if backbone["type"] not in ("ResNet", "ResNeXt"):
        raise ConfigError(f"backbone.type: {backbone['type']!r} cannot be expressed here; 'ResNet' and 'ResNeXt' can")
    plain = {"deep_stem": False, "avg_down": False, "stem_channels": 64, "base_channels": 64, "plugins": None, "conv_cfg": None}
    require(backbone, "backbone", num_stages=4, strides=[1, 2, 2, 2], dilations=[1, 1, 1, 1], **plain)
    norm = backbone.get("norm_cfg", {})
    require(norm, "backbone.norm_cfg", type="BN")
    frozen = backbone.get("frozen_stages", -1)
    if frozen == 0:
        raise ConfigError("backbone.frozen_stages: 0 freezes the stem alone, which cannot be expressed here; use -1 or 1..4")
    groups = backbone.get("groups", 1) if backbone["type"] == "ResNeXt" else 1
    return {
        "depth": backbone["depth"],
        "groups": groups,
        "width_per_group": backbone.get("base_width", 4) if groups > 1 else 64,
        "style": backbone.get("style", "pytorch") if backbone["depth"] >= 50 else "pytorch",  # smaller blocks have one style
        "dcn": _deformable_stages(backbone),
        "frozen_stages": max(frozen, 0),
        "norm_eval": backbone.get("norm_eval", True),
        "train_norm": norm.get("requires_grad", True),
        "pixels": _pixels(preprocessor),
    }


def _deformable_stages(backbone: dict) -> str:
    stages = tuple(backbone.get("stage_with_dcn", ())) if "dcn" in backbone else ()
    if not any(stages):
        return "none"
    ours = {(False, True, True, True): "c3-c5", (False, False, True, True): "c4-c5"}
    if stages not in ours:
        raise ConfigError(f"backbone.stage_with_dcn: {list(stages)} cannot be expressed here; C3 to C5 and C4 to C5 can")
    only = {"deform_groups": 1, "deformable_groups": 1, "fallback_on_stride": False}
    require(backbone["dcn"], "backbone.dcn", type="DCNv2", **only)
    return ours[stages]


def _pixels(preprocessor: dict | None) -> str:
    """What mmdetection reads with OpenCV is BGR, so that `bgr_to_rgb` says which order mean and std are in."""
    if preprocessor is None:
        return "rgb"
    require(preprocessor, "data_preprocessor", pad_size_divisor=MULTIPLE, rgb_to_bgr=False)
    mean, std, bgr = tuple(preprocessor["mean"]), tuple(preprocessor["std"]), not preprocessor.get("bgr_to_rgb", False)
    for name, pixels in PIXELS.items():
        if pixels == (mean, std, bgr):
            return name
    raise ConfigError(
        f"data_preprocessor: mean {list(mean)}, std {list(std)}, bgr_to_rgb={not bgr} cannot be expressed here; "
        f"what backbone.pixels={' | '.join(PIXELS)} stands for can"
    )


def _neck(neck: dict) -> dict[str, Any]:
    kinds, sources = {"FPN": "fpn", "PAFPN": "pafpn"}, {"on_output": "output", "on_input": "input", True: "input"}
    if neck["type"] not in kinds:
        raise ConfigError(f"neck.type: {neck['type']!r} cannot be expressed here; {', '.join(kinds)} can")
    if neck.get("add_extra_convs", False) not in sources:
        raise ConfigError(f"neck.add_extra_convs: {neck.get('add_extra_convs')!r} cannot be expressed here; {list(sources)} can")
    plain = {"norm_cfg": None, "conv_cfg": None, "act_cfg": None, "upsample_cfg": {"mode": "nearest"}}
    require(neck, "neck", start_level=1, end_level=-1, num_outs=len(STRIDES), **plain)
    return {
        "channels": neck["out_channels"],
        "kind": kinds[neck["type"]],
        "extra_from": sources[neck["add_extra_convs"]],
        "relu_before_extra": neck.get("relu_before_extra_convs", False),
    }
