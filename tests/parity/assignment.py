"""Assigners alone: who got which anchor (0 background, i + 1 object i, -1 ignored), by what overlap and metric."""

import re

import numpy as np
import torch

from tests.parity.case import Case
from tood.assign.atss import assign_atss
from tood.assign.ownership import Assignment
from tood.assign.task_aligned import assign_task_aligned
from tood.priors import STRIDES, Priors

NOBODY = -1e8  # recorded overlap of unassigned anchors


def entries(spec: dict) -> list[str]:
    return [combo["key"] for combo in spec["combos"]] if "combos" in spec else list(spec["cases"])


def run_task_aligned(case: Case) -> None:
    combo = next(combo for combo in case.spec["combos"] if combo["key"] == case.entry)
    found = _task_aligned(case, "", combo)
    _compare(case, found, f"{case.entry}_", _rounding(case, "", combo))
    case.same("positives", int((found.object >= 0).sum()), combo["num_pos"])


def run_task_aligned_edge(case: Case) -> None:
    combo = case.spec["cases"][case.entry]
    found = _task_aligned(case, f"{case.entry}/", combo)
    _compare(case, found, f"{case.entry}/", _rounding(case, f"{case.entry}/", combo))
    labels = case.tensor(f"{case.entry}/gt_labels")
    owner = found.object[0]
    case.same("labels", torch.where(owner >= 0, labels[owner.clamp(min=0)], -1), case.arrays[f"{case.entry}/labels"])
    case.same("positives", int((owner >= 0).sum()), combo["num_pos"])


def run_atss(case: Case) -> None:
    entry = case.spec["cases"][case.entry]
    image = re.match(r"[^_]+", case.entry)[0]
    priors = _priors(case, "")
    boxes = case.tensor(f"{image}_gt_bboxes")
    found = assign_atss(
        priors,
        boxes.unsqueeze(0),
        torch.ones(1, len(boxes), dtype=torch.bool),
        torch.ones(1, len(priors.centres), dtype=torch.bool),
        topk=entry["topk"],
        ignore_boxes=case.tensor(f"{image}_gt_bboxes_ignore").unsqueeze(0),
        ignore_share=max(entry["ignore_iof_thr"], 0),
    )
    _compare(case, found, f"{case.entry}_")
    ignored = 0 if found.ignored is None else int(found.ignored.sum())
    case.same("positives and ignored", [int((found.object >= 0).sum()), ignored], [entry["num_pos"], entry["num_ignored"]])


def _task_aligned(case: Case, prefix: str, combo: dict) -> Assignment:
    priors = _priors(case, prefix)
    scores, boxes, objects = (case.tensor(prefix + name) for name in ("pred_scores", "pred_bboxes", "gt_bboxes"))
    return assign_task_aligned(
        scores.log().unsqueeze(0),
        boxes.unsqueeze(0),
        priors.centres,
        objects.unsqueeze(0),
        case.tensor(f"{prefix}gt_labels").unsqueeze(0),
        torch.ones(1, len(objects), dtype=torch.bool),
        torch.ones(1, len(boxes), dtype=torch.bool),
        alpha=combo["alpha"],
        beta=combo["beta"],
        m=combo["topk"],
    )


def _priors(case: Case, prefix: str) -> Priors:
    anchors = case.tensor(f"{prefix}priors")
    counts = tuple(case.arrays[f"{prefix}num_level_priors"].tolist()) if f"{prefix}num_level_priors" in case.arrays else ()
    strides = torch.tensor(STRIDES[: len(counts)]).repeat_interleave(torch.tensor(counts, dtype=torch.int64))
    return Priors(0.5 * (anchors[:, :2] + anchors[:, 2:]), anchors, strides.float(), counts)


def _rounding(case: Case, prefix: str, combo: dict) -> float:
    """Relative error of t / max t by float32's log p: half a unit of the largest one in each, alpha times. 1e-6 at p = 1e-6."""
    scores = case.arrays[f"{prefix}pred_scores"]
    lowest = scores[scores > 0].min(initial=1.0)
    return combo["alpha"] * float(np.spacing(np.abs(np.log(lowest))))


def _compare(case: Case, found: Assignment, prefix: str, rounding: float = 0.0) -> None:
    recorded = case.arrays
    objects = found.object[0] + 1
    if found.ignored is not None:
        objects = objects.masked_fill(found.ignored[0], -1)
    case.same("assignment", objects, recorded[f"{prefix}gt_inds"])
    overlaps = recorded[f"{prefix}max_overlaps"]
    case.close("overlaps", found.iou[0], np.where(overlaps == NOBODY, 0.0, overlaps), 1e-6)
    for ours, name in ((found.metric, "assign_metrics"), (found.target, "norm_metrics")):
        if prefix + name in recorded:
            case.close(name, ours[0], recorded[prefix + name], 1e-6 + rounding * recorded[prefix + name])
