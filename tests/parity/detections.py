"""From recorded head outputs to detections (kind tood_predict), and how two sets of detections compare."""

import re

import numpy as np
import torch
from torch import Tensor

from tests.parity.build import image_scales, image_sizes, predict_config
from tests.parity.case import Case
from tood.config import PredictConfig
from tood.postprocess import detections
from tood.predictions import Predictions
from tood.priors import make_priors


def run(case: Case) -> None:
    metas, config = case.spec["img_metas"], predict_config(case.spec["test_cfg"])
    priors = make_priors(tuple(level.shape[-2:] for level in case.levels("cls_score")), torch.device("cpu"))
    predictions = Predictions(case.flat("cls_score").log(), case.flat("bbox_pred") * priors.strides.unsqueeze(1), priors)

    def detect(scales: Tensor, config: PredictConfig) -> list[dict[str, Tensor]]:
        return detections(predictions, image_sizes(metas), scales, config)

    original, network = image_scales(metas), torch.ones(len(metas), 2)
    everything = {"nms_iou": 1.0, "max_detections": predictions.log_scores.numel()}  # what goes into NMS
    found = {
        "network": detect(network, config),
        "rescaled": detect(original, config),
        "candidates": detect(network, PredictConfig(**{**vars(config), **everything})),
    }
    for name in case.arrays:
        if recorded := re.fullmatch(r"img(\d+)_(network|rescaled|candidates)_scores", name):
            image, stage = int(recorded[1]), recorded[2]
            compare_detections(case, f"img{image}_{stage}", found[stage][image], box=1e-3, score=1e-6)
    for image, recorded in enumerate(case.spec["images"]):
        case.same("detections", len(found["network"][image]["scores"]), recorded["num_det"])
        case.same("candidates", len(found["candidates"][image]["scores"]), recorded["num_before_nms"])


def compare_detections(
    case: Case, name: str, ours: dict[str, Tensor], *, box: float, score: float, limit: int | None = None
) -> None:
    """As sets, against the arrays {name}_bboxes, _scores, _labels: each recorded detection has one of ours for itself.

    Where the image is full (`limit` detections), those as good as the last one within `score` may be others.
    """
    their_boxes, their_scores, their_labels = (case.arrays[f"{name}_{what}"] for what in ("bboxes", "scores", "labels"))
    boxes, scores, labels = (ours[key].numpy() for key in ("boxes", "scores", "labels"))
    assert len(scores) == len(their_scores), f"{name}: {len(scores)} detections, recorded {len(their_scores)}"
    assert (np.diff(scores) <= 0).all(), f"{name}: scores do not fall"
    full = len(scores) and len(scores) == limit
    last = min(scores.min(), their_scores.min()) + 2 * score if full else -np.inf
    free, pairs, lost = np.ones(len(scores), dtype=bool), [], []
    for i in range(len(their_scores)):
        share = np.maximum(np.abs(boxes - their_boxes[i]).max(1) / box, np.abs(scores - their_scores[i]) / score)
        share = np.where(free & (labels == their_labels[i]), share, np.inf)
        best = share.argmin()
        if share[best] <= 1:
            free[best] = False
            pairs.append((best, i))
        elif their_scores[i] > last:
            lost.append(f"{their_boxes[i].tolist()} {their_scores[i]:.7g} label {their_labels[i]} (best {share[best]:.3g})")
    assert not lost, f"{name}: {len(lost)} recorded detections have no counterpart, the first {lost[0]}"
    assert (scores[free] <= last).all(), f"{name}: a detection of ours has no counterpart"
    mine, recorded = (np.array(side, dtype=int) for side in zip(*pairs, strict=True)) if pairs else ([], [])
    case.close("boxes of detections", boxes[mine], their_boxes[recorded], box)
    case.close("scores of detections", scores[mine], their_scores[recorded], score)
