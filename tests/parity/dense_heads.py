"""The other heads on recorded features: outputs, losses, gradients and detections (kind dense_head)."""

import re

import torch
from torch import Tensor

from tests.parity.build import image_scales, image_sizes, seeded_head
from tests.parity.case import Case, norms, of_largest, relative
from tests.parity.detections import compare_detections
from tood.boxes import box_to_distance, delta_to_box
from tood.config import PredictConfig, build
from tood.detectors import ModelConfig
from tood.head import DenseHead
from tood.mmdet.configs import predict_config_from_mmdet, to_mmdet
from tood.mmdet.heads import head_type
from tood.postprocess import detections
from tood.predictions import Predictions
from tood.priors import inside_image

LOSSES = {  # ours, and what the peer calls it
    "loss_cls": ("loss_cls",),
    "loss_box": ("loss_bbox", "loss_bbox_rf"),
    "loss_dfl": ("loss_dfl",),
    "loss_quality": ("loss_centerness", "loss_iou"),
    "loss_coarse": ("loss_bbox",),
}


def run(case: Case) -> None:
    head, config = seeded_head(case)
    features = [f.requires_grad_() for f in _features(case)]
    # one head went through all scenes, one after the other
    memory = (torch.zeros(config.objective.MEMORY),) if hasattr(config.objective, "MEMORY") else ()
    for scene, recorded in case.spec["cases"].items():
        _compare_losses(case, scene, head, config, features, memory, recorded)
    with torch.no_grad():
        predictions = head(features)
    for mode in ("train", "eval"):
        _compare_outputs(case, mode, head, config, predictions)
    _compare_detections(case, config, predictions)


def _features(case: Case) -> list[Tensor]:
    stored = Case(case.path.parent / "features.json", "features", "stored_features")
    return [level.clone() for level in (stored.levels("feat") if "feat_P3" not in case.arrays else case.levels("feat"))]


def _compare_outputs(case: Case, mode: str, head: DenseHead, config: ModelConfig, predictions: Predictions) -> None:
    priors = predictions.priors
    shares = {"quality": predictions.quality and predictions.quality.logits.unsqueeze(-1)}
    for what in case.spec["outputs"]:
        if f"{mode}_{what}_P3" not in case.arrays:
            continue
        recorded = _flat(case, f"{mode}_{what}", len(head.grid.shapes))
        if what == "cls_logits":
            # log p = logsigmoid(x); its inverse loses what p near 1 has lost, so it is compared in log space
            recorded, ours = torch.nn.functional.logsigmoid(recorded), predictions.log_scores
        elif what in ("centerness_logits", "iou_logits"):
            ours = shares["quality"]
        elif what == "bbox_dist_logits":
            ours = predictions.distribution.logits.flatten(2)
        elif what in ("bbox_pred", "bbox_pred_refine") and not head.predictor.box.of_anchor:
            refined = what == "bbox_pred_refine" or predictions.coarse is None or mode == "eval"
            boxes = predictions.boxes if refined else predictions.coarse
            in_strides = config.box == "distance_relu" and mode == "train"
            ours = box_to_distance(priors.centres, boxes) / (priors.strides.unsqueeze(-1) if in_strides else 1)
        elif predictions.raw is not None:
            ours = predictions.raw
        else:  # deltas: compared as the boxes they stand for
            ours, recorded = predictions.boxes, delta_to_box(priors.anchors, recorded)
        case.close(what, ours, recorded, of_largest(recorded, 1e-4))


def _flat(case: Case, name: str, per_location: int) -> Tensor:
    """Levels [B, A * C, H, W] -> [B, N, C], prior by prior at a location."""
    parts = [level.unflatten(1, (per_location, -1)).permute(0, 3, 4, 1, 2).flatten(1, 3) for level in case.levels(name)]
    return torch.cat(parts, dim=1)


def _compare_losses(
    case: Case, scene: str, head: DenseHead, config: ModelConfig, features: list[Tensor], memory: tuple, recorded: dict
) -> None:
    predictions, objective = head(features), config.objective
    sizes = torch.tensor([case.spec["image"]]).expand(len(features[0]), 2)
    losses = objective.losses(predictions, case.targets(f"{scene}_"), inside_image(predictions.priors, sizes), 0, *memory)
    named = {theirs: sum(value) if isinstance(value, list) else value for theirs, value in recorded["losses"].items()}
    share = 1e-2 if config.objective.name == "paa" else 1e-4  # the mixture's fit depends on its library's version
    for ours, value in losses.items():
        theirs = next(n for n in reversed(LOSSES[ours]) if n in named and not (ours == "loss_coarse" and n != "loss_bbox"))
        case.close(f"{scene} {ours}", value, named[theirs], relative(named[theirs], share, 1e-6))
    assert len(losses) == len(named), f"{sorted(losses)}, recorded {sorted(named)}"

    head.zero_grad()
    slopes = torch.autograd.grad(sum(losses.values()), features, retain_graph=True)
    sum(losses.values()).backward(inputs=list(head.parameters()))
    ours = to_mmdet({f"head.{name}": p.grad for name, p in head.named_parameters() if p.grad is not None}, head_type(config))
    ours = {name.removeprefix("bbox_head."): value for name, value in ours.items()}
    share = max(share, 1e-3)
    for name, norm in recorded["param_grad_norms"].items():
        if norm is not None and (norm or name in ours):
            case.close("gradient norms", norms([ours[name]])[0], norm, relative(norm, share, 1e-6))
    theirs = recorded["feat_grad_norms"]
    case.close("feature gradient norms", norms(slopes), theirs, relative(theirs, share, 1e-6))
    for name in case.arrays:
        if found := re.fullmatch(rf"{scene}_grad_feat_P(\d)", name):
            stored = case.arrays[name]
            case.close("feature gradients", slopes[int(found[1]) - 3], stored, of_largest(stored, share))


def _compare_detections(case: Case, config: ModelConfig, predictions: Predictions) -> None:
    cfg, metas = case.spec["cfg"], case.spec["img_metas_predict"]
    predict = build(PredictConfig, predict_config_from_mmdet(cfg["test_cfg"], cfg))
    for stage, scales in (("network", torch.ones(len(metas), 2)), ("rescaled", image_scales(metas))):
        found = detections(predictions, image_sizes(metas), scales, predict, config.objective.FUSION)
        for image, ours in enumerate(found):
            compare_detections(case, f"img{image}_{stage}", ours, box=0.02, score=1e-5, limit=predict.max_detections)
