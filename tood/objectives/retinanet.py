"""RetinaNet: anchors by their IoU with objects; focal loss; L1 on the deltas themselves."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from tood.assign.max_iou import assign_max_iou
from tood.assign.ownership import Assignment
from tood.boxes import box_to_delta
from tood.config import bounded
from tood.data.targets import Targets, boxes_of, labels_of
from tood.objectives.parts import at_least_one_an_image, class_loss_sum, focal_pair, mean_over_ranks
from tood.predictions import Predictions


@dataclass(frozen=True)
class RetinaNet:
    """Options of the objective; it needs the box form delta_unit, whose numbers it regresses."""

    name: Literal["retinanet"] = "retinanet"
    positive_iou: float = bounded(0.5, 0, 1)
    negative_iou: float = bounded(0.4, 0, 1)
    focal_alpha: float = bounded(0.25, 0, 1)
    focal_gamma: float = bounded(2.0, 0, 10)
    box_weight: float = bounded(1.0, 0, 1000)

    FUSION: ClassVar[str] = "none"
    BOX_FORM: ClassVar[str] = "delta_unit"

    def assign(self, predictions: Predictions, targets: Targets, point_valid: Tensor, epoch: int) -> Assignment:
        return assign_max_iou(
            predictions.priors.anchors,
            targets.boxes,
            targets.valid,
            point_valid,
            positive_iou=self.positive_iou,
            negative_iou=self.negative_iou,
        )

    def losses(self, predictions: Predictions, targets: Targets, point_valid: Tensor, epoch: int) -> dict[str, Tensor]:
        found = self.assign(predictions, targets, point_valid, epoch)
        positive = found.object >= 0
        class_sum = class_loss_sum(
            predictions.log_scores,
            labels_of(targets, found.object),
            positive,
            point_valid & ~found.ignored,
            *focal_pair(self.focal_alpha, self.focal_gamma),
        )
        used, anchors = positive.unsqueeze(-1), predictions.priors.anchors
        target = box_to_delta(anchors, torch.where(used, boxes_of(targets, found.object), anchors), (1.0,) * 4)
        box_sum = torch.where(used, (predictions.raw - target).abs(), 0.0).sum()
        (positives,) = mean_over_ranks(at_least_one_an_image(positive))
        return {"loss_cls": class_sum / positives, "loss_box": self.box_weight * box_sum / positives}
