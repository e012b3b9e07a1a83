"""GFL: ATSS's anchors; one score for class and quality, learnt by QFL from the box's IoU; boxes weighted by the score."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from tood.assign.atss import assign_atss
from tood.assign.ownership import Assignment
from tood.boxes import aligned_iou
from tood.config import bounded
from tood.data.targets import Targets, boxes_of, labels_of
from tood.losses import BOX_LOSSES, negative_focal, quality_focal
from tood.objectives.parts import DFL_WEIGHT, at_least_one_an_image, box_sums, class_loss_sum, mean_over_ranks
from tood.predictions import Predictions


@dataclass(frozen=True)
class GFL:
    """Options of the objective. DFL joins where boxes are distributions; with other box forms this is QFL alone."""

    name: Literal["gfl"] = "gfl"
    topk: int = bounded(9, 1, 1000)
    gamma: float = bounded(2.0, 0, 10)  # of |IoU - score|^gamma; the paper's beta
    box_loss: Literal[tuple(BOX_LOSSES)] = "giou"
    box_weight: float = bounded(2.0, 0, 1000)
    dfl_weight: float = bounded(DFL_WEIGHT, 0, 1000)

    FUSION: ClassVar[str] = "none"

    def assign(self, predictions: Predictions, targets: Targets, point_valid: Tensor, epoch: int) -> Assignment:
        return assign_atss(predictions.priors, targets.boxes, targets.valid, point_valid, topk=self.topk)

    def losses(self, predictions: Predictions, targets: Targets, point_valid: Tensor, epoch: int) -> dict[str, Tensor]:
        found = self.assign(predictions, targets, point_valid, epoch)
        positive = found.object >= 0
        target_boxes = boxes_of(targets, found.object)
        iou = torch.where(positive, aligned_iou(predictions.boxes.detach(), target_boxes), 0.0)
        class_sum = class_loss_sum(
            predictions.log_scores,
            labels_of(targets, found.object),
            positive,
            point_valid,
            lambda log_p: negative_focal(log_p, self.gamma),
            lambda log_p: quality_focal(log_p, iou, self.gamma),
        )
        weight = predictions.log_scores.detach().amax(-1).exp() * positive
        positives, weights = mean_over_ranks(at_least_one_an_image(positive), weight.sum())
        losses = {"loss_cls": class_sum / positives}
        for name, total in box_sums(
            predictions, target_boxes, weight, BOX_LOSSES[self.box_loss], scale=self.box_weight, dfl_weight=self.dfl_weight
        ).items():
            losses[name] = total / weights
        return losses
