"""ATSS: anchors picked by the statistics of their IoU; focal loss; GIoU weighted by centerness. Also TOOD's first epochs."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from tood.assign.atss import assign_atss
from tood.assign.ownership import Assignment
from tood.config import bounded
from tood.data.targets import Targets, boxes_of, labels_of
from tood.losses import BOX_LOSSES, centerness
from tood.objectives.parts import at_least_one_an_image, box_sums, class_loss_sum, focal_pair, mean_over_ranks, quality_loss_sum
from tood.predictions import Predictions


@dataclass(frozen=True)
class ATSS:
    """Options of the objective; `losses` and `assign` are its two uses."""

    name: Literal["atss"] = "atss"
    topk: int = bounded(9, 1, 1000)  # candidates a level
    focal_alpha: float = bounded(0.25, 0, 1)
    focal_gamma: float = bounded(2.0, 0, 10)
    box_loss: Literal[tuple(BOX_LOSSES)] = "giou"
    box_weight: float = bounded(2.0, 0, 1000)
    quality_weight: float = bounded(1.0, 0, 1000)  # of the branch beside the class, where there is one
    ignore_crowd: float = bounded(0.0, 0, 1)  # points of which more than this share lies in a crowd are left out; 0: off
    count_empty: bool = True  # an image without positives counts as one in the normaliser (ATSS yes, TOOD's first epochs no)

    FUSION: ClassVar[str] = "product"

    def assign(self, predictions: Predictions, targets: Targets, point_valid: Tensor, epoch: int) -> Assignment:
        return assign_atss(
            predictions.priors,
            targets.boxes,
            targets.valid,
            point_valid,
            topk=self.topk,
            ignore_boxes=targets.crowds,
            ignore_share=self.ignore_crowd,
        )

    def losses(self, predictions: Predictions, targets: Targets, point_valid: Tensor, epoch: int) -> dict[str, Tensor]:
        found = self.assign(predictions, targets, point_valid, epoch)
        positive = found.object >= 0
        counted = point_valid if found.ignored is None else point_valid & ~found.ignored
        target_boxes = boxes_of(targets, found.object)
        weight = centerness(predictions.priors.centres, target_boxes) * positive
        class_sum = class_loss_sum(
            predictions.log_scores,
            labels_of(targets, found.object),
            positive,
            counted,
            *focal_pair(self.focal_alpha, self.focal_gamma),
        )
        count = at_least_one_an_image(positive) if self.count_empty else positive.sum()
        positives, weights = mean_over_ranks(count, weight.sum())
        losses = {"loss_cls": class_sum / positives}
        for name, total in box_sums(predictions, target_boxes, weight, BOX_LOSSES[self.box_loss], scale=self.box_weight).items():
            losses[name] = total / weights
        if predictions.quality is not None:
            quality_sum = quality_loss_sum(predictions, target_boxes, positive)
            losses["loss_quality"] = self.quality_weight * quality_sum / positives
        return losses
