"""The criterion on recorded head outputs (kind tood_loss)."""

import re

import torch

from tests.parity.build import image_sizes, model_config
from tests.parity.case import Case, gradient, relative
from tood.data.targets import boxes_of, labels_of
from tood.predictions import Predictions
from tood.priors import inside_image, make_priors


def run(case: Case) -> None:
    spec, objective = case.spec, model_config(case.spec["cfg"]).objective
    priors = make_priors(tuple(level.shape[-2:] for level in case.levels("cls_score")), torch.device("cpu"))
    valid, targets = inside_image(priors, image_sizes(spec["img_metas"])), case.targets()
    for phase, recorded in spec["results"].items():
        epoch = int(re.fullmatch(r"ep(\d+)", phase)[1])
        probabilities, boxes = case.flat("cls_score").requires_grad_(), case.flat("bbox_pred").requires_grad_()
        predictions = Predictions(probabilities.log(), boxes * priors.strides.unsqueeze(1), priors)
        losses = objective.losses(predictions, targets, valid, epoch)
        for ours, theirs in (("loss_cls", "loss_cls"), ("loss_box", "loss_bbox")):
            case.close(ours, losses[ours], recorded[theirs], relative(recorded[theirs], 1e-5, 1e-9))
        if f"{phase}_grad_cls_score_P3" in case.arrays:
            sum(losses.values()).backward()
            for what, leaf in (("cls_score", probabilities), ("bbox_pred", boxes)):
                theirs = case.flat(f"{phase}_grad_{what}")
                case.close(
                    f"gradient of {what}", torch.zeros_like(leaf) if leaf.grad is None else leaf.grad, theirs, gradient(theirs)
                )
        found = objective.assign(predictions, targets, valid, epoch)
        _compare_assignment(case, phase, found, targets, valid, recorded)


def _compare_assignment(case: Case, phase: str, found, targets, valid, recorded: dict) -> None:
    positive = found.object >= 0
    if "num_pos" in recorded:
        case.same(f"{phase} positives of each image", positive.sum(1), recorded["num_pos"])
    if "sum_metrics" in recorded:
        total = found.target.sum()
        case.close("sum of targets", total, recorded["sum_metrics"], relative(recorded["sum_metrics"], 1e-5, 1e-6))
        case.close("normaliser", total.clamp(min=1), recorded["cls_avg_factor"], relative(recorded["cls_avg_factor"], 1e-5))
    if f"{phase}_labels" not in case.arrays:
        return
    background = case.spec["num_classes"]
    labels = torch.where(positive, labels_of(targets, found.object), background)
    counted = valid if found.ignored is None else valid & ~found.ignored
    case.same(f"{phase} label weights", counted.float(), case.arrays[f"{phase}_label_weights"])
    case.same(f"{phase} labels", labels, case.arrays[f"{phase}_labels"])
    boxes = torch.where(positive.unsqueeze(-1), boxes_of(targets, found.object), 0.0)
    case.same(f"{phase} box targets", boxes, case.arrays[f"{phase}_bbox_targets"])
    case.close("metrics", found.target, case.arrays[f"{phase}_alignment_metrics"], 1e-6)
