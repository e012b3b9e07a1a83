"""Names and settings of mmdetection 3: its parameters under our names and back, its configurations as ours.

Only what both sides can express; anything else is one clear error, never a silent difference.
"""

import re
from typing import Any

import torch
from torch import Tensor

from tood.boxes import STDS
from tood.errors import CheckpointError, ConfigError
from tood.priors import ANCHOR_SIDE, CENTRE_OFFSET, STRIDES

# mmdetection's module | ours. `*` is a number, the same on both sides; the last name (weight, bias, ...) stays.
_BACKBONE = (
    ("backbone.conv1", "backbone.conv1"),
    ("backbone.bn1", "backbone.bn1"),
    ("backbone.layer*.*.conv*", "backbone.layer*.*.conv*"),
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
)
_TOOD_HEAD = (
    ("bbox_head.inter_convs.*.conv", "head.tower.layers.*.conv"),
    ("bbox_head.inter_convs.*.gn", "head.tower.layers.*.norm"),
    ("bbox_head.cls_decomp.layer_attention.*", "head.tower.class_view.attention.*"),
    ("bbox_head.cls_decomp.reduction_conv.conv", "head.tower.class_view.reduce"),
    ("bbox_head.cls_decomp.reduction_conv.gn", "head.tower.class_view.norm"),
    ("bbox_head.reg_decomp.layer_attention.*", "head.tower.box_view.attention.*"),
    ("bbox_head.reg_decomp.reduction_conv.conv", "head.tower.box_view.reduce"),
    ("bbox_head.reg_decomp.reduction_conv.gn", "head.tower.box_view.norm"),
    ("bbox_head.tood_cls", "head.classes"),
    ("bbox_head.tood_reg", "head.boxes"),
    ("bbox_head.cls_prob_module.0", "head.score_map.reduce"),
    ("bbox_head.cls_prob_module.2", "head.score_map.predict"),
    ("bbox_head.reg_offset_module.0", "head.side_offsets.reduce"),
    ("bbox_head.reg_offset_module.2", "head.side_offsets.predict"),
)
NAMES = (*_BACKBONE, *_NECK, *_TOOD_HEAD)
_LEVEL_SCALE = "bbox_head.scales.{}.scale"  # one scalar a level; ours is the one vector below
_SCALES = "head.scales"


def from_mmdet(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of mmdetection's detector, or of its `bbox_head` alone (names without that prefix), under our names.

    Raises CheckpointError that lists the names which no part of ours answers to.
    """
    if not any(key.startswith(("backbone.", "neck.", "bbox_head.")) for key in state):
        state = {f"bbox_head.{key}": value for key, value in state.items()}
    level_keys = [_LEVEL_SCALE.format(level) for level in range(len(STRIDES))]
    named = _rename({key: value for key, value in state.items() if key not in level_keys}, NAMES)
    scales = [state[key] for key in level_keys if key in state]
    if scales and len(scales) < len(STRIDES):
        raise CheckpointError(f"{len(scales)} scales in the checkpoint, one for each of {len(STRIDES)} levels expected")
    return named | ({_SCALES: torch.stack(scales)} if scales else {})


def to_mmdet(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The reverse of `from_mmdet`, for a detector's state dict or any part of it; raises CheckpointError likewise."""
    named = _rename({key: value for key, value in state.items() if key != _SCALES}, [(b, a) for a, b in NAMES])
    if _SCALES in state:
        named |= {_LEVEL_SCALE.format(level): scale for level, scale in enumerate(state[_SCALES])}
    return named


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
    training = cfg.get("train_cfg") or head.get("train_cfg") or {}
    _require(head, "bbox_head", type="TOODHead", num_dcn=0)
    anchor_free = head.get("anchor_type", "anchor_free") == "anchor_free"
    norm = head.get("norm_cfg", {"type": "GN", "num_groups": 32})
    _require(norm, "bbox_head.norm_cfg", type="GN")
    _require_square_anchors(head)
    values = {
        "detector": "tood" if anchor_free else "tood_anchor_based",
        "tower": "t_head",
        "aligner": "both",
        "prior": "point" if anchor_free else "anchor",
        "box": "distance" if anchor_free else "delta",
        "layers": head.get("stacked_convs", 4),
        "channels": head.get("feat_channels", 256),
        "groups": norm["num_groups"],
        "neck": {"channels": head["in_channels"]},
        "objective": _objective(head, training),
    }
    if "backbone" in cfg:
        values |= {"backbone": _backbone(cfg["backbone"]), "neck": _neck(cfg["neck"])}
    return values


def predict_config_from_mmdet(test_cfg: dict[str, Any]) -> dict[str, Any]:
    """Values for `PredictConfig` that mean the same as mmdetection's `test_cfg`. Raises ConfigError likewise."""
    nms = test_cfg.get("nms", {"type": "nms", "iou_threshold": 0.5})
    _require(nms, "test_cfg.nms", type="nms", class_agnostic=False)
    unlimited = 1_000_000  # more (point, class) pairs than a level is ever asked for
    return {
        "score_threshold": test_cfg.get("score_thr", 0.05),
        "nms_iou": nms.get("iou_threshold", 0.5),
        "per_level": test_cfg["nms_pre"] if test_cfg.get("nms_pre", -1) > 0 else unlimited,
        "max_detections": test_cfg.get("max_per_img", 100),
        "min_size": test_cfg.get("min_bbox_size", 0),
        "clip": False,
    }


def _objective(head: dict, training: dict) -> dict[str, Any]:
    focal, quality = head.get("initial_loss_cls", {}), head.get("loss_cls", {})
    _require(focal, "bbox_head.initial_loss_cls", type="FocalLoss", use_sigmoid=True, activated=True, loss_weight=1.0)
    _require(quality, "bbox_head.loss_cls", type="QualityFocalLoss", use_sigmoid=True, activated=True, loss_weight=1.0)
    _require(head.get("loss_bbox", {}), "bbox_head.loss_bbox", type="GIoULoss", eps=1e-6)
    _require(training, "train_cfg", allowed_border=-1, pos_weight=-1)
    initial, aligned = training.get("initial_assigner", {}), training.get("assigner", {})
    _require(initial, "train_cfg.initial_assigner", type="ATSSAssigner")
    _require(aligned, "train_cfg.assigner", type="TaskAlignedAssigner")
    box_weight = head.get("loss_bbox", {}).get("loss_weight", 1.0)
    return {
        "name": "task_aligned",
        "alpha": training.get("alpha", 1),
        "beta": training.get("beta", 6),
        "m": aligned.get("topk", 13),
        "candidates": "all",
        "gamma": quality.get("beta", 2.0),
        "box_weight": box_weight,
        "warmup_epochs": training.get("initial_epoch", 4),
        "warmup": {
            "topk": initial.get("topk", 9),
            "focal_alpha": focal.get("alpha", 0.25),
            "focal_gamma": focal.get("gamma", 2.0),
            "box_weight": box_weight,
            "ignore_crowd": max(initial.get("ignore_iof_thr", -1), 0),
        },
    }


def _backbone(backbone: dict) -> dict[str, Any]:
    _require(backbone, "backbone", type="ResNet", style="pytorch", num_stages=4, dcn=None)
    frozen = backbone.get("frozen_stages", -1)
    if frozen == 0:
        raise ConfigError("backbone.frozen_stages: 0 freezes the stem alone, which cannot be expressed here; use -1 or 1..4")
    return {
        "depth": backbone["depth"],
        "frozen_stages": max(frozen, 0),
        "norm_eval": backbone.get("norm_eval", True),
    }


def _neck(neck: dict) -> dict[str, Any]:
    _require(neck, "neck", type="FPN", start_level=1, num_outs=len(STRIDES), relu_before_extra_convs=False)
    if neck.get("add_extra_convs") != "on_output":
        raise ConfigError(f"neck.add_extra_convs: {neck.get('add_extra_convs')!r} is not 'on_output', the only way here")
    return {"channels": neck["out_channels"]}


def _require_square_anchors(head: dict) -> None:
    anchors, coder = head.get("anchor_generator", {}), head.get("bbox_coder", {})
    _require(
        anchors,
        "bbox_head.anchor_generator",
        ratios=[1.0],
        octave_base_scale=ANCHOR_SIDE,
        scales_per_octave=1,
        strides=list(STRIDES),
        center_offset=CENTRE_OFFSET,
    )
    _require(coder, "bbox_head.bbox_coder", target_means=[0.0] * 4, target_stds=list(STDS))


def _require(part: dict, where: str, **only: Any) -> None:
    """Each key, where it is given, must have the one value that can be expressed."""
    for key, value in only.items():
        given = part.get(key, value)
        if (list(given) if isinstance(given, tuple) else given) != value:
            raise ConfigError(f"{where}.{key}: {given!r} cannot be expressed here; {value!r} can")
