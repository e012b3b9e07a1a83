"""FoveaBox: the middle of an object on every level that fits its size; focal loss; smooth L1 on log distances."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from tood.assign.center import assign_fovea
from tood.assign.ownership import Assignment
from tood.box_forms import BASE_REACH
from tood.boxes import box_to_distance
from tood.config import bounded
from tood.data.targets import Targets, boxes_of, labels_of
from tood.losses import smooth_l1
from tood.objectives.parts import class_loss_sum, focal_pair, mean_over_ranks
from tood.predictions import Predictions

FARTHEST = 16.0  # a distance is learnt within [1 / 16, 16] base edges


@dataclass(frozen=True)
class FoveaBox:
    """Options of the objective; it needs the box form distance_base, whose logarithms it regresses."""

    name: Literal["foveabox"] = "foveabox"
    sigma: float = bounded(0.4, 0.01, 1)  # of an object's sides, the part whose points are positive
    focal_alpha: float = bounded(0.4, 0, 1)
    focal_gamma: float = bounded(1.5, 0, 10)
    box_beta: float = bounded(0.11, 1e-6, 10)  # where smooth L1 turns from quadratic to linear
    box_weight: float = bounded(1.0, 0, 1000)

    FUSION: ClassVar[str] = "none"
    BOX_FORM: ClassVar[str] = "distance_base"

    def assign(self, predictions: Predictions, targets: Targets, point_valid: Tensor, epoch: int) -> Assignment:
        return assign_fovea(predictions.priors, targets.boxes, targets.valid, point_valid, sigma=self.sigma)

    def losses(self, predictions: Predictions, targets: Targets, point_valid: Tensor, epoch: int) -> dict[str, Tensor]:
        found = self.assign(predictions, targets, point_valid, epoch)
        positive, priors = found.object >= 0, predictions.priors
        class_sum = class_loss_sum(
            predictions.log_scores,
            labels_of(targets, found.object),
            positive,
            point_valid,
            *focal_pair(self.focal_alpha, self.focal_gamma),
        )
        unit = BASE_REACH * priors.strides.unsqueeze(-1)

        def log_distances(boxes: Tensor) -> Tensor:
            return (box_to_distance(priors.centres, boxes) / unit).clamp(1 / FARTHEST, FARTHEST).log()

        # boxes that alignment has moved have no raw numbers any more
        raw = log_distances(predictions.boxes) if predictions.raw is None else predictions.raw
        error = smooth_l1(raw, log_distances(boxes_of(targets, found.object)), self.box_beta)
        box_sum = torch.where(positive.unsqueeze(-1), error, 0.0).sum()
        (positives,) = mean_over_ranks(positive.sum(), at_least=0.0)
        class_norm = positives + len(positive)  # the peer adds the number of images
        return {"loss_cls": class_sum / class_norm, "loss_box": self.box_weight * box_sum / positives.clamp(min=1)}
