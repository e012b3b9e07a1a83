"""RTMDet's way: points assigned by a soft cost, scores learn the box's IoU (QFL), boxes by GIoU."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from tood.assign.ownership import Assignment
from tood.assign.soft_label import assign_soft_label
from tood.config import bounded
from tood.data.targets import Targets, boxes_of, labels_of
from tood.losses import BOX_LOSSES, negative_focal, quality_focal
from tood.objectives.parts import box_sums, class_loss_sum, mean_over_ranks
from tood.predictions import Predictions


@dataclass(frozen=True)
class SoftLabel:
    """Options of the objective; `losses` and `assign` are its two uses."""

    name: Literal["soft_label"] = "soft_label"
    topk: int = bounded(13, 1, 1000)  # highest IoUs whose sum is the number of an object's points
    iou_weight: float = bounded(3.0, 0, 100)  # of -log IoU in the cost
    gamma: float = bounded(2.0, 0, 10)  # of |IoU - score|^gamma
    box_loss: Literal[tuple(BOX_LOSSES)] = "giou"
    box_weight: float = bounded(2.0, 0, 1000)

    FUSION: ClassVar[str] = "none"

    def assign(self, predictions: Predictions, targets: Targets, point_valid: Tensor, epoch: int) -> Assignment:
        return assign_soft_label(
            predictions.log_scores.detach(),
            predictions.boxes.detach(),
            predictions.priors,
            targets.boxes,
            targets.labels,
            targets.valid,
            point_valid,
            topk=self.topk,
            iou_weight=self.iou_weight,
        )

    def losses(self, predictions: Predictions, targets: Targets, point_valid: Tensor, epoch: int) -> dict[str, Tensor]:
        found = self.assign(predictions, targets, point_valid, epoch)
        positive, iou = found.object >= 0, found.target
        class_sum = class_loss_sum(
            predictions.log_scores,
            labels_of(targets, found.object),
            positive,
            point_valid,
            lambda log_p: negative_focal(log_p, self.gamma),
            lambda log_p: quality_focal(log_p, iou, self.gamma),
        )
        (total,) = mean_over_ranks(iou.sum())
        sums = box_sums(predictions, boxes_of(targets, found.object), iou, BOX_LOSSES[self.box_loss], scale=self.box_weight)
        return {"loss_cls": class_sum / total} | {name: value / total for name, value in sums.items()}
