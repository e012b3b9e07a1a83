"""How well the two tasks agree at an object's points (TOOD, Table 6), and which points those are.

"Without NMS, we calculate a Pearson Correlation Coefficient (PCC) between the rankings of classification and localization by
selecting top-50 confident predictions for each instance, and a mean IoU of the top-10": the paper does not say which
predictions are an instance's. Here they are those of the points inside its box, as in the paper's assignment, ranked by the
confidence in the object's class.

B images, G objects, N points, K classes, C candidates of an object.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from tood.assign.ownership import smallest
from tood.boxes import aligned_iou, inside
from tood.data.batches import normalise
from tood.data.targets import Targets
from tood.detector import Detector
from tood.predictions import Predictions

RANKED, BEST = 50, 10  # predictions of an object whose rankings are compared, and whose IoU is averaged
FAR = 1e30  # of -log of a confidence that has underflown: before infinity, which marks points outside
LAST_PHASE = 1_000_000  # an epoch beyond every warm-up: the objective assigns as it does in the end


class Agreement(NamedTuple):
    """float64 [G]; NaN where an object has too few points inside."""

    pcc: Tensor  # between the ranks by confidence and the ranks by IoU of the RANKED most confident predictions
    iou: Tensor  # mean of the BEST most confident predictions


def dense_predictions(detector: Detector, images: Tensor, sizes: Tensor) -> Predictions:
    """Images u8 [B, 3, H, W] as a batch holds them, sizes [B, 2] -> what the detector says at every point."""
    return detector.dense(normalise(images, sizes, detector.backbone.pixels))


def confidence(detector: Detector, predictions: Predictions) -> Tensor:
    """Logarithm [B, N, K] of what detections are ranked by."""
    return predictions.log_confidence(detector.objective.FUSION)


def agreement(
    log_confidence: Tensor, boxes: Tensor, centres: Tensor, point_valid: Tensor, object_boxes: Tensor, labels: Tensor
) -> Agreement:
    """Of one image: log_confidence [N, K], boxes [N, 4], centres [N, 2], point_valid bool [N]; object_boxes [G, 4], labels [G]."""
    of_object = log_confidence.t()[labels]  # [G, N]
    outside = ~(inside(centres, object_boxes.unsqueeze(1)) & point_valid)
    cost = (-of_object).clamp(0, FAR).masked_fill(outside, torch.inf)  # -log of a probability
    points = smallest(cost, min(RANKED, cost.shape[1]))  # [G, C], the most confident first
    candidate = ~outside.gather(1, points)
    iou = aligned_iou(boxes[points], object_boxes.unsqueeze(1)).double()
    pcc = correlation(ranks(-cost.gather(1, points), candidate), ranks(iou, candidate), candidate)
    best = candidate[:, :BEST]
    return Agreement(pcc, (iou[:, :BEST] * best).sum(1) / best.sum(1))


def ranks(values: Tensor, counted: Tensor) -> Tensor:
    """float64 [G, C]: how many of a row's counted values are smaller; each equal one, itself too, adds a half."""
    other, own, there = values.unsqueeze(1), values.unsqueeze(2), counted.unsqueeze(1)
    return ((other < own) & there).sum(2).double() + 0.5 * ((other == own) & there).sum(2)


def correlation(a: Tensor, b: Tensor, counted: Tensor) -> Tensor:
    """Pearson's correlation [G] of the counted entries of each row of a and b [G, C]; NaN where one of them is constant."""
    count = counted.sum(1, keepdim=True)
    a, b = ((x - (x * counted).sum(1, keepdim=True) / count) * counted for x in (a, b))
    return (a * b).sum(1) / ((a * a).sum(1) * (b * b).sum(1)).sqrt()


def points_of_objects(detector: Detector, predictions: Predictions, targets: Targets, point_valid: Tensor) -> Tensor:
    """int64 [B, G]: how many points each object gets from the detector's own objective, in its last phase."""
    owner = detector.objective.assign(predictions, targets, point_valid, LAST_PHASE).object
    counts = torch.zeros(len(owner), targets.boxes.shape[1] + 1, dtype=torch.int64, device=owner.device)
    return counts.scatter_add_(1, owner + 1, torch.ones_like(owner))[:, 1:]
