"""FCOS: points inside an object whose size fits the level; focal loss; boxes weighted by centerness."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from tood.assign.center import assign_center
from tood.assign.ownership import Assignment
from tood.config import bounded
from tood.data.targets import Targets, boxes_of, labels_of
from tood.losses import BOX_LOSSES, centerness
from tood.objectives.parts import box_sums, class_loss_sum, focal_pair, mean_over_ranks, quality_loss_sum
from tood.predictions import Predictions


@dataclass(frozen=True)
class FCOS:
    """Options of the objective; the defaults are FCOS with its later improvements."""

    name: Literal["fcos"] = "fcos"
    radius: float = bounded(1.5, 0, 100)  # of centre sampling, in strides; 0: the whole box
    box_loss: Literal[tuple(BOX_LOSSES)] = "giou"
    box_weight: float = bounded(1.0, 0, 1000)
    quality_weight: float = bounded(1.0, 0, 1000)  # of the branch beside the class, where there is one
    focal_alpha: float = bounded(0.25, 0, 1)
    focal_gamma: float = bounded(2.0, 0, 10)

    FUSION: ClassVar[str] = "product"

    def assign(self, predictions: Predictions, targets: Targets, point_valid: Tensor, epoch: int) -> Assignment:
        return assign_center(predictions.priors, targets.boxes, targets.valid, point_valid, radius=self.radius)

    def losses(self, predictions: Predictions, targets: Targets, point_valid: Tensor, epoch: int) -> dict[str, Tensor]:
        found = self.assign(predictions, targets, point_valid, epoch)
        positive = found.object >= 0
        target_boxes = boxes_of(targets, found.object)
        weight = centerness(predictions.priors.centres, target_boxes) * positive
        class_sum = class_loss_sum(
            predictions.log_scores,
            labels_of(targets, found.object),
            positive,
            point_valid,
            *focal_pair(self.focal_alpha, self.focal_gamma),
        )
        count, weights = mean_over_ranks(positive.sum(), weight.sum(), at_least=1e-6)
        positives = count.clamp(min=1)
        losses = {"loss_cls": class_sum / positives}
        loss = BOX_LOSSES[self.box_loss]
        for name, total in box_sums(predictions, target_boxes, weight, loss, scale=self.box_weight).items():
            losses[name] = total / weights
        if predictions.quality is not None:
            quality_sum = quality_loss_sum(predictions, target_boxes, positive)
            losses["loss_quality"] = self.quality_weight * quality_sum / positives
        return losses
