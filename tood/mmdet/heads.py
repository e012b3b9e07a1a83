"""The heads of mmdetection 3, type by type: their parameter names beside ours, their configurations as our choices."""

from collections.abc import Callable
from typing import Any

from tood.boxes import STDS
from tood.errors import ConfigError
from tood.priors import ANCHOR_SIDE, STRIDES

Names = tuple[tuple[str, str], ...]  # (mmdetection's module, ours); `*` is a number, the same on both sides

_PARALLEL: Names = (
    ("bbox_head.cls_convs.*.conv", "head.tower.classes.*.conv"),
    ("bbox_head.cls_convs.*.conv.conv_offset", "head.tower.classes.*.conv.conv_offset"),
    ("bbox_head.cls_convs.*.gn", "head.tower.classes.*.norm"),
    ("bbox_head.reg_convs.*.conv", "head.tower.boxes.*.conv"),
    ("bbox_head.reg_convs.*.conv.conv_offset", "head.tower.boxes.*.conv.conv_offset"),
    ("bbox_head.reg_convs.*.gn", "head.tower.boxes.*.norm"),
)


def _predictors(classes: str, boxes: str, quality: str | None = None) -> Names:
    names = ((f"bbox_head.{classes}", "head.predictor.classes"), (f"bbox_head.{boxes}", "head.predictor.boxes"))
    return (*names, (f"bbox_head.{quality}", "head.predictor.quality")) if quality else names


HEAD_NAMES: dict[str, Names] = {
    "TOODHead": (
        ("bbox_head.inter_convs.*.conv", "head.tower.layers.*.conv"),
        ("bbox_head.inter_convs.*.conv.conv_offset", "head.tower.layers.*.conv.conv_offset"),
        ("bbox_head.inter_convs.*.gn", "head.tower.layers.*.norm"),
        ("bbox_head.cls_decomp.layer_attention.*", "head.tower.class_view.attention.*"),
        ("bbox_head.cls_decomp.reduction_conv.conv", "head.tower.class_view.reduce"),
        ("bbox_head.cls_decomp.reduction_conv.gn", "head.tower.class_view.norm"),
        ("bbox_head.reg_decomp.layer_attention.*", "head.tower.box_view.attention.*"),
        ("bbox_head.reg_decomp.reduction_conv.conv", "head.tower.box_view.reduce"),
        ("bbox_head.reg_decomp.reduction_conv.gn", "head.tower.box_view.norm"),
        *_predictors("tood_cls", "tood_reg"),
        ("bbox_head.cls_prob_module.0", "head.predictor.score_map.reduce"),
        ("bbox_head.cls_prob_module.2", "head.predictor.score_map.predict"),
        ("bbox_head.reg_offset_module.0", "head.predictor.side_offsets.reduce"),
        ("bbox_head.reg_offset_module.2", "head.predictor.side_offsets.predict"),
    ),
    "ATSSHead": (*_PARALLEL, *_predictors("atss_cls", "atss_reg", "atss_centerness")),
    "PAAHead": (*_PARALLEL, *_predictors("atss_cls", "atss_reg", "atss_centerness")),
    "DDODHead": (*_PARALLEL, *_predictors("atss_cls", "atss_reg", "atss_iou")),
    "FCOSHead": (*_PARALLEL, *_predictors("conv_cls", "conv_reg", "conv_centerness")),
    "GFLHead": (*_PARALLEL, *_predictors("gfl_cls", "gfl_reg")),
    "RetinaHead": (*_PARALLEL, *_predictors("retina_cls", "retina_reg")),
    "FoveaHead": (*_PARALLEL, *_predictors("fovea_cls", "fovea_reg")),
    "VFNetHead": (
        *_PARALLEL,
        *_predictors("vfnet_cls", "vfnet_reg"),
        ("bbox_head.vfnet_reg_conv.conv", "head.predictor.refinement.coarse.conv"),
        ("bbox_head.vfnet_reg_conv.gn", "head.predictor.refinement.coarse.norm"),
        ("bbox_head.vfnet_reg_refine_dconv", "head.predictor.refinement.box_star"),
        ("bbox_head.vfnet_reg_refine", "head.predictor.refinement.boxes"),
        ("bbox_head.vfnet_cls_dconv", "head.predictor.refinement.class_star"),
    ),
}
# one scalar a level there, one vector here
LEVEL_SCALES = {
    "bbox_head.scales.{}.scale": "head.predictor.scales",
    "bbox_head.scales_refine.{}.scale": "head.predictor.refinement.scales",
}
_HEAD_OF_OBJECTIVE = {
    "task_aligned": "TOODHead",
    "atss": "ATSSHead",
    "paa": "PAAHead",
    "ddod": "DDODHead",
    "fcos": "FCOSHead",
    "gfl": "GFLHead",
    "retinanet": "RetinaHead",
    "foveabox": "FoveaHead",
    "vfnet": "VFNetHead",
}


def head_type(model: Any) -> str:
    """mmdetection's head for our ModelConfig. Raises ConfigError where mmdetection has none."""
    interactive = model.objective.name == "task_aligned"
    if model.context != "none" or (model.tower, model.aligner) != (("t_head", "both") if interactive else ("parallel", "none")):
        raise ConfigError(
            f"tower={model.tower} aligner={model.aligner} context={model.context} with objective={model.objective.name}: "
            "mmdetection has no such head; export in our own format"
        )
    return _HEAD_OF_OBJECTIVE[model.objective.name]


def head_values(head: dict[str, Any], training: dict[str, Any]) -> dict[str, Any]:
    """Our choices for a resolved `bbox_head` and `train_cfg`. Raises ConfigError for what cannot be expressed."""
    translate = _TRANSLATIONS.get(head["type"])
    if translate is None:
        raise ConfigError(f"bbox_head.type: {head['type']!r} cannot be expressed here; {', '.join(_TRANSLATIONS)} can")
    require(training, "train_cfg", allowed_border=-1, pos_weight=-1)
    norm = head.get("norm_cfg", {"type": "GN", "num_groups": 32} if head["type"] not in _WITHOUT_NORM else None)
    if norm is not None:
        require(norm, "bbox_head.norm_cfg", type="GN")
    return {
        "layers": head.get("stacked_convs", 4),
        "channels": head.get("feat_channels", 256),
        "groups": norm["num_groups"] if norm else 0,
        "neck": {"channels": head["in_channels"]},
    } | translate(head, training)


_WITHOUT_NORM = ("RetinaHead", "FoveaHead")


def _tood(head: dict, training: dict) -> dict[str, Any]:
    anchor_free = head.get("anchor_type", "anchor_free") == "anchor_free"
    deformable = head.get("num_dcn", 0)
    if deformable not in (0, 2):
        raise ConfigError(f"bbox_head.num_dcn: {deformable} cannot be expressed here; 0 and 2 can")
    _square_anchors(head)
    focal, quality = head.get("initial_loss_cls", {}), head.get("loss_cls", {})
    require(focal, "bbox_head.initial_loss_cls", type="FocalLoss", use_sigmoid=True, activated=True, loss_weight=1.0)
    require(quality, "bbox_head.loss_cls", type="QualityFocalLoss", use_sigmoid=True, activated=True, loss_weight=1.0)
    initial, aligned = training.get("initial_assigner", {}), training.get("assigner", {})
    require(initial, "train_cfg.initial_assigner", type="ATSSAssigner")
    require(aligned, "train_cfg.assigner", type="TaskAlignedAssigner")
    box_weight = _giou(head, "loss_bbox")
    return {
        "detector": "tood" if anchor_free else "tood_anchor_based",
        "deformable": "first_two" if deformable else "none",
        "objective": {
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
                "box_weight": box_weight,
                "ignore_crowd": max(initial.get("ignore_iof_thr", -1), 0),
                "count_empty": False,
            }
            | _focal(focal),
        },
    }


def _atss(head: dict, training: dict) -> dict[str, Any]:
    _square_anchors(head)
    weights = {"box_weight": _giou(head, "loss_bbox"), "quality_weight": _cross_entropy(head, "loss_centerness")}
    objective = {"name": "atss"} | weights | _class_focal(head) | _atss_assigner(training.get("assigner", {}))
    return {"detector": "atss_anchor_based", "objective": objective}


def _paa(head: dict, training: dict) -> dict[str, Any]:
    _square_anchors(head)
    assigner = training.get("assigner", {})
    threshold = assigner.get("pos_iou_thr", 0.1)
    require(assigner, "train_cfg.assigner", type="MaxIoUAssigner", neg_iou_thr=threshold, min_pos_iou=0, ignore_iof_thr=-1)
    require(head, "bbox_head", covariance_type="diag", reg_decoded_bbox=True)
    objective = {
        "name": "paa",
        "potential_iou": threshold,
        "topk": head.get("topk", 9),
        "box_weight": _giou(head, "loss_bbox"),
        "quality_weight": _cross_entropy(head, "loss_centerness"),
    } | _class_focal(head)
    return {"detector": "paa", "objective": objective}


def _ddod(head: dict, training: dict) -> dict[str, Any]:
    _square_anchors(head)
    classes, boxes = training.get("assigner", {}), training.get("reg_assigner", {})
    topk = _atss_assigner(classes, ignore=False)["topk"]
    require(boxes, "train_cfg.reg_assigner", type="ATSSAssigner", topk=topk, ignore_iof_thr=-1)
    objective = {
        "name": "ddod",
        "topk": topk,
        "class_alpha": classes.get("alpha", 0.8),
        "box_alpha": boxes.get("alpha", 0.5),
        "quality_weight": _cross_entropy(head, "loss_iou"),
        "box_weight": _giou(head, "loss_bbox"),
    } | _class_focal(head)
    return {"detector": "ddod", "deformable": "first" if head.get("use_dcn", True) else "none", "objective": objective}


def _fcos(head: dict, _training: dict) -> dict[str, Any]:
    ranges = [[-1, 64], [64, 128], [128, 256], [256, 512]]
    given = [list(pair) for pair in head.get("regress_ranges", ranges)]
    if given[:4] != ranges:
        raise ConfigError(f"bbox_head.regress_ranges: {given} cannot be expressed here; FCOS's own can")
    box_loss = head.get("loss_bbox", {"type": "IoULoss"})
    if box_loss["type"] not in ("IoULoss", "GIoULoss"):
        raise ConfigError(f"bbox_head.loss_bbox.type: {box_loss['type']!r} cannot be expressed here; IoULoss and GIoULoss can")
    bias = head.get("conv_bias", "auto")
    return {
        "detector": "fcos_imprv",
        "box": "distance_relu" if head.get("norm_on_bbox", False) else "distance_px",
        "quality_from": "boxes" if head.get("centerness_on_reg", False) else "classes",
        "conv_bias": bias is True,
        "deformable": "last" if head.get("dcn_on_last_conv", False) else "none",
        "objective": {
            "name": "fcos",
            "radius": head.get("center_sample_radius", 1.5) if head.get("center_sampling", False) else 0.0,
            "box_loss": "giou" if box_loss["type"] == "GIoULoss" else "iou",
            "box_weight": box_loss.get("loss_weight", 1.0),
            "quality_weight": _cross_entropy(head, "loss_centerness"),
        }
        | _class_focal(head),
    }


def _gfl(head: dict, training: dict) -> dict[str, Any]:
    _square_anchors(head)
    loss = head.get("loss_cls", {})
    require(loss, "bbox_head.loss_cls", type="QualityFocalLoss", use_sigmoid=True, loss_weight=1.0)
    distribution = head.get("loss_dfl", {})
    require(distribution, "bbox_head.loss_dfl", type="DistributionFocalLoss")
    objective = {
        "name": "gfl",
        "topk": _atss_assigner(training.get("assigner", {}), ignore=False)["topk"],
        "gamma": loss.get("beta", 2.0),
        "box_weight": _giou(head, "loss_bbox"),
        "dfl_weight": distribution.get("loss_weight", 0.25),
    }
    return {"detector": "gfl", "bins": head.get("reg_max", 16), "objective": objective}


def _retina(head: dict, training: dict) -> dict[str, Any]:
    anchors = head.get("anchor_generator", {})
    where = "bbox_head.anchor_generator"
    only = {"octave_base_scale": 4, "scales_per_octave": 3, "ratios": [0.5, 1.0, 2.0], "strides": list(STRIDES)}
    require(anchors, where, center_offset=0.0, **only)
    require(head.get("bbox_coder", {}), "bbox_head.bbox_coder", target_means=[0.0] * 4, target_stds=[1.0] * 4)
    box_loss = head.get("loss_bbox", {"type": "L1Loss"})
    require(box_loss, "bbox_head.loss_bbox", type="L1Loss")
    assigner = training.get("assigner", {})
    require(assigner, "train_cfg.assigner", type="MaxIoUAssigner", min_pos_iou=0, ignore_iof_thr=-1)
    objective = {
        "name": "retinanet",
        "positive_iou": assigner.get("pos_iou_thr", 0.5),
        "negative_iou": assigner.get("neg_iou_thr", 0.4),
        "box_weight": box_loss.get("loss_weight", 1.0),
    } | _class_focal(head)
    return {"detector": "retinanet", "objective": objective}


def _fovea(head: dict, _training: dict) -> dict[str, Any]:
    ranges = [[1, 64], [32, 128], [64, 256], [128, 512], [256, 2048]]
    only = {"strides": list(STRIDES), "base_edge_list": [2 * s for s in STRIDES], "with_deform": False}
    require(head | {"scale_ranges": [list(r) for r in head.get("scale_ranges", ranges)]}, "bbox_head", scale_ranges=ranges, **only)
    box_loss = head.get("loss_bbox", {"type": "SmoothL1Loss"})
    require(box_loss, "bbox_head.loss_bbox", type="SmoothL1Loss")
    objective = {
        "name": "foveabox",
        "sigma": head.get("sigma", 0.4),
        "box_beta": box_loss.get("beta", 1.0),
        "box_weight": box_loss.get("loss_weight", 1.0),
    } | _class_focal(head)
    return {"detector": "foveabox", "objective": objective}


def _vfnet(head: dict, training: dict) -> dict[str, Any]:
    require(head, "bbox_head", use_atss=True, use_vfl=True, gradient_mul=0.1, bbox_norm_type="reg_denom", reg_decoded_bbox=True)
    _square_anchors(head)
    loss = head.get("loss_cls", {})
    require(loss, "bbox_head.loss_cls", type="VarifocalLoss", use_sigmoid=True, iou_weighted=True, loss_weight=1.0)
    objective = {
        "name": "vfnet",
        "topk": _atss_assigner(training.get("assigner", {}), ignore=False)["topk"],
        "alpha": loss.get("alpha", 0.75),
        "gamma": loss.get("gamma", 2.0),
        "coarse_weight": _giou(head, "loss_bbox", 1.5),
        "box_weight": _giou(head, "loss_bbox_refine", 2.0),
    }
    deformable = "last" if head.get("dcn_on_last_conv", False) else "none"
    return {"detector": "vfnet", "layers": head.get("stacked_convs", 3), "deformable": deformable, "objective": objective}


_TRANSLATIONS: dict[str, Callable[[dict, dict], dict[str, Any]]] = {
    "TOODHead": _tood,
    "ATSSHead": _atss,
    "PAAHead": _paa,
    "DDODHead": _ddod,
    "FCOSHead": _fcos,
    "GFLHead": _gfl,
    "RetinaHead": _retina,
    "FoveaHead": _fovea,
    "VFNetHead": _vfnet,
}


def _focal(loss: dict) -> dict[str, Any]:
    return {"focal_alpha": loss.get("alpha", 0.25), "focal_gamma": loss.get("gamma", 2.0)}


def _class_focal(head: dict) -> dict[str, Any]:
    loss = head.get("loss_cls", {})
    require(loss, "bbox_head.loss_cls", type="FocalLoss", use_sigmoid=True, loss_weight=1.0)
    return _focal(loss)


def _giou(head: dict, key: str, default: float = 1.0) -> float:
    loss = head.get(key, {"loss_weight": default})
    require(loss, f"bbox_head.{key}", type="GIoULoss", eps=1e-6)
    return loss.get("loss_weight", 1.0)


def _cross_entropy(head: dict, key: str) -> float:
    loss = head.get(key, {})
    require(loss, f"bbox_head.{key}", type="CrossEntropyLoss", use_sigmoid=True)
    return loss.get("loss_weight", 1.0)


def _atss_assigner(assigner: dict, ignore: bool = True) -> dict[str, Any]:
    require(assigner, "train_cfg.assigner", type="ATSSAssigner", **({} if ignore else {"ignore_iof_thr": -1}))
    values = {"topk": assigner.get("topk", 9)}
    return values | {"ignore_crowd": max(assigner.get("ignore_iof_thr", -1), 0)} if ignore else values


def _square_anchors(head: dict) -> None:
    anchors, coder = head.get("anchor_generator", {}), head.get("bbox_coder", {})
    only = {"ratios": [1.0], "octave_base_scale": ANCHOR_SIDE, "scales_per_octave": 1, "strides": list(STRIDES)}
    require(anchors, "bbox_head.anchor_generator", center_offset=0.0, **only)
    require(coder, "bbox_head.bbox_coder", target_means=[0.0] * 4, target_stds=list(STDS))


def require(part: dict, where: str, **only: Any) -> None:
    """Each key, where it is given, must have the one value that can be expressed."""
    for key, value in only.items():
        given = part.get(key, value)
        if (list(given) if isinstance(given, tuple) else given) != value:
            raise ConfigError(f"{where}.{key}: {given!r} cannot be expressed here; {value!r} can")
