"""What detector a state dict of mmdetection is of, as far as names and shapes tell: values for `ModelConfig`.

They do not tell everything. What several detectors share is asked for; what is not to be seen at all (where a ResNet
halves its maps, what pixels it reads, how many groups a norm has) is taken as published, and said.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from tood.errors import CheckpointError, ConfigError

# the predictor of classes, which each head names in its own way -> rows of our table that have these names and shapes
CLASS_PREDICTORS = {
    "tood_cls": ("tood", "tood_anchor_based"),
    "vfnet_cls": ("vfnet",),
    "gfl_cls": ("gfl",),
    "retina_cls": ("retinanet",),
    "fovea_cls": ("foveabox",),
    "conv_cls": ("fcos", "fcos_imprv"),
    "atss_cls": ("atss_anchor_based", "paa", "ddod"),
}
_DEPTHS = {(2, False): 18, (6, False): 34, (6, True): 50, (23, True): 101}  # blocks of C4, blocks of three convolutions
_PREDICT = {  # what published models are evaluated with, where it is not the default
    "fcos": {"nms_iou": 0.5},
    "retinanet": {"nms_iou": 0.5},
    "foveabox": {"nms_iou": 0.5},
    "paa": {"score_voting": True},
}


class Inferred(NamedTuple):
    model: dict[str, Any]  # for ModelConfig
    predict: dict[str, Any]  # for PredictConfig
    assumed: tuple[str, ...]  # what the weights do not show, as settings


def infer(state: Mapping[str, Tensor], detector: str | None = None) -> Inferred:
    """`state` has mmdetection's names; `detector` chooses among the rows that they may stand for.

    Raises ConfigError where there is a choice and none was made, CheckpointError where names or shapes are of no detector.
    """
    head = next((name for name in CLASS_PREDICTORS if f"bbox_head.{name}.weight" in state), None)
    if head is None:
        known = ", ".join(f"bbox_head.{name}.weight" for name in CLASS_PREDICTORS)
        raise CheckpointError(
            f"no detector that is known here: none of its parameters is {known}; give --config EXPERIMENT of one that is"
        )
    row = _choose(_rows(head, state), detector)
    backbone, neck = _backbone(state), _neck(state)
    model = {"detector": row, **_head(state, head, row), "neck": neck, "backbone": backbone}
    assumed = []
    if row in ("fcos", "fcos_imprv") and backbone["groups"] == 1 and backbone["depth"] >= 50:
        backbone |= {"style": "caffe", "train_norm": False, "pixels": "bgr_detectron" if row == "fcos" else "bgr"}
        assumed += [f"model.backbone.{key}={backbone[key]}" for key in ("style", "pixels")]
    elif backbone["depth"] >= 50:
        assumed.append("model.backbone.style=pytorch")
    if model["groups"]:
        assumed.append(f"model.groups={model['groups']}")
    return Inferred(model, {"clip": not row.startswith("tood"), **_PREDICT.get(row, {})}, tuple(assumed))


def _rows(head: str, state: Mapping[str, Tensor]) -> tuple[str, ...]:
    if head == "atss_cls":
        return ("ddod",) if "bbox_head.atss_iou.weight" in state else ("atss_anchor_based", "paa")
    if head == "conv_cls":
        return ("fcos_imprv",) if "bbox_head.cls_convs.0.conv.bias" in state and _normed(state, "cls_convs") else ("fcos",)
    return CLASS_PREDICTORS[head]


def _choose(rows: tuple[str, ...], detector: str | None) -> str:
    if detector in rows:
        return detector
    if detector is not None or len(rows) > 1:
        said = f", not of {detector}" if detector is not None else ""
        ways = " or ".join(f"model.detector={row}" for row in rows)
        raise ConfigError(f"names and shapes are those of {' and '.join(rows)}{said}, which they do not tell apart; add {ways}")
    return rows[0]


def _head(state: Mapping[str, Tensor], classes: str, row: str) -> dict[str, Any]:
    stack = "inter_convs" if classes == "tood_cls" else "reg_convs"
    layers = _count(state, f"bbox_head.{stack}")
    if not layers:
        raise CheckpointError(f"bbox_head.{stack}.0.conv.weight is missing: a head without convolutions")
    deformable = [i for i in range(layers) if f"bbox_head.{stack}.{i}.conv.conv_offset.weight" in state]
    kinds = {(): "none", (0,): "first" if row == "ddod" else "first_two", (0, 1): "first_two", (layers - 1,): "last"}
    if row == "ddod" and deformable:
        kinds[0,] = "first"
    values = {
        "layers": layers,
        "channels": _side(state, f"bbox_head.{stack}.0.conv.weight", 0),
        "groups": 32 if _normed(state, stack) else 0,
        "deformable": kinds.get(tuple(deformable), "none"),
    }
    if row == "gfl":
        values["bins"] = _side(state, "bbox_head.gfl_reg.weight", 0) // 4 - 1
    return values


def _backbone(state: Mapping[str, Tensor]) -> dict[str, Any]:
    blocks, bottleneck = _count(state, "backbone.layer3"), "backbone.layer1.0.conv3.weight" in state
    if (blocks, bottleneck) not in _DEPTHS:
        found = f"{blocks} blocks of {3 if bottleneck else 2} convolutions"
        raise CheckpointError(f"backbone.layer3 has {found}; ResNet-{', '.join(map(str, _DEPTHS.values()))} are known here")
    wide, of_group = (_side(state, "backbone.layer1.0.conv2.weight", i) for i in (0, 1))
    first_deformable = [i for i in (2, 3, 4) if f"backbone.layer{i}.0.conv2.conv_offset.weight" in state]
    groups = wide // max(of_group, 1)
    return {
        "depth": _DEPTHS[blocks, bottleneck],
        "groups": groups,
        "width_per_group": of_group if groups > 1 else 64,
        "dcn": {(2, 3, 4): "c3-c5", (3, 4): "c4-c5"}.get(tuple(first_deformable), "none"),
    }


def _neck(state: Mapping[str, Tensor]) -> dict[str, Any]:
    channels = _side(state, "neck.lateral_convs.0.conv.weight", 0)
    from_c5 = _side(state, "neck.fpn_convs.3.conv.weight", 1) != channels
    return {
        "channels": channels,
        "kind": "pafpn" if "neck.pafpn_convs.0.conv.weight" in state else "fpn",
        "extra_from": "input" if from_c5 else "output",
    }


def _normed(state: Mapping[str, Tensor], stack: str) -> bool:
    return f"bbox_head.{stack}.0.gn.weight" in state


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    """Modules in a list, by the highest number of its names."""
    numbers = {key.removeprefix(f"{prefix}.").partition(".")[0] for key in state if key.startswith(f"{prefix}.")}
    return max((int(n) + 1 for n in numbers if n.isdecimal() and len(n) < 4), default=0)


def _side(state: Mapping[str, Tensor], key: str, dimension: int) -> int:
    if key not in state or state[key].ndim <= dimension:
        raise CheckpointError(f"{key} is missing, or has fewer sides than a convolution's weight")
    return state[key].shape[dimension]
