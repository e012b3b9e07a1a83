"""VFNet: ATSS's anchors; VFL from the refined box's IoU; coarse and refined boxes, each weighted by its own IoU."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from tood.assign.atss import assign_atss
from tood.assign.ownership import Assignment
from tood.boxes import aligned_iou
from tood.config import bounded
from tood.data.targets import Targets, boxes_of, labels_of
from tood.losses import negative_focal, varifocal
from tood.objectives.parts import box_losses, class_loss_sum, mean_over_ranks
from tood.predictions import Predictions

LEAST_IOU = 1e-6  # of a positive, so that it stays one


@dataclass(frozen=True)
class VFNet:
    """Options of the objective; without a refinement there is one box loss."""

    name: Literal["vfnet"] = "vfnet"
    topk: int = bounded(9, 1, 1000)
    alpha: float = bounded(0.75, 0, 10)  # weight of negatives
    gamma: float = bounded(2.0, 0, 10)
    coarse_weight: float = bounded(1.5, 0, 1000)
    box_weight: float = bounded(2.0, 0, 1000)

    FUSION: ClassVar[str] = "none"

    def assign(self, predictions: Predictions, targets: Targets, point_valid: Tensor, epoch: int) -> Assignment:
        return assign_atss(predictions.priors, targets.boxes, targets.valid, point_valid, topk=self.topk)

    def losses(self, predictions: Predictions, targets: Targets, point_valid: Tensor, epoch: int) -> dict[str, Tensor]:
        found = self.assign(predictions, targets, point_valid, epoch)
        positive = found.object >= 0
        target_boxes, strides = boxes_of(targets, found.object), predictions.priors.strides

        def iou_of(boxes: Tensor) -> Tensor:
            return torch.where(positive, aligned_iou(boxes.detach(), target_boxes).clamp(min=LEAST_IOU), 0.0)

        iou = iou_of(predictions.boxes)
        class_sum = class_loss_sum(
            predictions.log_scores,
            labels_of(targets, found.object),
            positive,
            point_valid,
            lambda log_p: self.alpha * negative_focal(log_p, self.gamma),
            lambda log_p: varifocal(log_p, iou),
        )
        coarse_iou = iou if predictions.coarse is None else iou_of(predictions.coarse)
        positives, weights, coarse_weights = mean_over_ranks(positive.sum(), iou.sum(), coarse_iou.sum())
        box_sum = box_losses(predictions.boxes, target_boxes, strides, iou).sum()
        losses = {"loss_cls": class_sum / positives, "loss_box": self.box_weight * box_sum / weights}
        if predictions.coarse is not None:
            coarse_sum = box_losses(predictions.coarse, target_boxes, strides, coarse_iou).sum()
            losses["loss_coarse"] = self.coarse_weight * coarse_sum / coarse_weights
        return losses
