"""PAA: potential positives by IoU, split by how well each is predicted; boxes weighted by their IoU; an IoU branch beside."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from tood.assign.max_iou import assign_max_iou
from tood.assign.ownership import Assignment
from tood.assign.probabilistic import split_by_loss
from tood.boxes import aligned_iou
from tood.config import bounded
from tood.data.targets import Targets, boxes_of, labels_of
from tood.objectives.parts import box_losses, class_losses, focal_pair, mean_over_ranks, quality_loss_sum
from tood.predictions import Predictions

LEAST_WEIGHT = 1e-12


@dataclass(frozen=True)
class PAA:
    """Options of the objective; the IoU branch is a choice (`quality`)."""

    name: Literal["paa"] = "paa"
    potential_iou: float = bounded(0.1, 0, 1)  # of anchors that may become positive
    topk: int = bounded(9, 1, 1000)  # candidates a level
    focal_alpha: float = bounded(0.25, 0, 1)
    focal_gamma: float = bounded(2.0, 0, 10)
    box_weight: float = bounded(1.3, 0, 1000)
    quality_weight: float = bounded(0.5, 0, 1000)

    FUSION: ClassVar[str] = "geometric_mean"

    def assign(self, predictions: Predictions, targets: Targets, point_valid: Tensor, epoch: int) -> Assignment:
        with torch.no_grad():
            first = self._potential(predictions, targets, point_valid)
            class_loss = self._class_losses(predictions, targets, first)
            return self._split(predictions, targets, first, class_loss)

    def losses(self, predictions: Predictions, targets: Targets, point_valid: Tensor, epoch: int) -> dict[str, Tensor]:
        first = self._potential(predictions, targets, point_valid)
        found = self._split(predictions, targets, first, self._class_losses(predictions, targets, first).detach())
        positive = found.object >= 0
        class_loss = self._class_losses(predictions, targets, found)
        target_boxes = boxes_of(targets, found.object)
        iou = torch.where(positive, aligned_iou(predictions.boxes.detach(), target_boxes), 0.0)
        weight = torch.where(positive, iou.clamp(min=LEAST_WEIGHT), 0.0)
        box_sum = box_losses(predictions.boxes, target_boxes, predictions.priors.strides, weight).sum()
        count, weights = mean_over_ranks(positive.sum(), iou.sum(), at_least=LEAST_WEIGHT)
        losses = {
            "loss_cls": torch.where(point_valid, class_loss, 0.0).sum() / count.clamp(min=len(positive)),
            "loss_box": self.box_weight * box_sum / weights,
        }
        if predictions.quality is not None:
            quality_sum = quality_loss_sum(predictions, target_boxes, positive)
            losses["loss_quality"] = self.quality_weight * quality_sum / count.clamp(min=1)
        return losses

    def _potential(self, predictions: Predictions, targets: Targets, point_valid: Tensor) -> Assignment:
        return assign_max_iou(
            predictions.priors.anchors,
            targets.boxes,
            targets.valid,
            point_valid,
            positive_iou=self.potential_iou,
            negative_iou=self.potential_iou,
        )

    def _class_losses(self, predictions: Predictions, targets: Targets, found: Assignment) -> Tensor:
        return class_losses(
            predictions.log_scores,
            labels_of(targets, found.object),
            found.object >= 0,
            *focal_pair(self.focal_alpha, self.focal_gamma),
        )

    def _split(self, predictions: Predictions, targets: Targets, first: Assignment, class_loss: Tensor) -> Assignment:
        box_loss = box_losses(
            predictions.boxes.detach(),
            boxes_of(targets, first.object),
            predictions.priors.strides,
            (first.object >= 0).float(),
        )
        cost = class_loss + self.box_weight * box_loss
        return split_by_loss(first, cost, predictions.priors, targets.boxes.shape[1], topk=self.topk)
