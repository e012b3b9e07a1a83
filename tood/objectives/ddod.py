"""DDOD: the two tasks choose their own positives, and levels with few positives so far weigh more."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from tood.assign.atss import assign_atss
from tood.assign.ownership import Assignment
from tood.boxes import aligned_iou
from tood.config import bounded
from tood.data.targets import Targets, boxes_of, labels_of
from tood.losses import binary_cross_entropy
from tood.objectives.parts import at_least_one_an_image, box_losses, class_losses, focal_pair, mean_over_ranks
from tood.predictions import Predictions
from tood.priors import STRIDES, of_levels


@dataclass(frozen=True)
class DDOD:
    """Options of the objective; it needs an IoU branch, and its positives so far are the detector's `memory`."""

    name: Literal["ddod"] = "ddod"
    topk: int = bounded(9, 1, 1000)
    class_alpha: float = bounded(0.8, 0, 1)  # class positives maximise score^(1 - alpha) * IoU^alpha of the predictions
    box_alpha: float = bounded(0.5, 0, 1)
    focal_alpha: float = bounded(0.25, 0, 1)
    focal_gamma: float = bounded(2.0, 0, 10)
    box_weight: float = bounded(2.0, 0, 1000)
    quality_weight: float = bounded(1.0, 0, 1000)

    FUSION: ClassVar[str] = "product"
    QUALITY: ClassVar[str] = "iou"
    MEMORY: ClassVar[tuple[int, ...]] = (2, len(STRIDES))  # positives so far of each task and level

    def assign(self, predictions: Predictions, targets: Targets, point_valid: Tensor, epoch: int) -> Assignment:
        """The positives of the classes."""
        return self._assign(predictions, targets, point_valid, self.class_alpha)

    def _assign(self, predictions: Predictions, targets: Targets, point_valid: Tensor, alpha: float) -> Assignment:
        log_scores, boxes = predictions.log_scores.detach(), predictions.boxes.detach()

        def measure(points: Tensor) -> Tensor:
            """points [B, G, C] -> how well each prediction fits its object, in [0, 1]."""
            b, g, c = points.shape
            flat = points.flatten(1)
            labels = targets.labels.unsqueeze(-1).expand(b, g, c).flatten(1)
            rows = torch.arange(b, device=flat.device).unsqueeze(1)
            iou = aligned_iou(boxes[rows, flat].view(b, g, c, 4), targets.boxes.unsqueeze(2))
            fit = (1 - alpha) * log_scores[rows, flat, labels].view(b, g, c)
            if alpha:  # 0 * -inf would be NaN
                # not pow, whose last bit depends on a number's place in its tensor: equal objects have to tie
                fit = fit + alpha * iou.log()
            return fit.exp()

        return assign_atss(predictions.priors, targets.boxes, targets.valid, point_valid, topk=self.topk, measure=measure)

    def losses(
        self, predictions: Predictions, targets: Targets, point_valid: Tensor, epoch: int, memory: Tensor
    ) -> dict[str, Tensor]:
        """memory [2, L] is added to in place."""
        counts, strides = predictions.priors.counts, predictions.priors.strides
        classes = self.assign(predictions, targets, point_valid, epoch)
        boxes = self._assign(predictions, targets, point_valid, self.box_alpha)
        owned = [found.object >= 0 for found in (classes, boxes)]
        per_level = [torch.stack([part.sum() for part in positive.split(counts, dim=1)]) for positive in owned]
        normalisers = mean_over_ranks(
            *(at_least_one_an_image(positive) for positive in owned), *per_level[0], *per_level[1], at_least=0.0
        )
        class_count, box_count = (n.clamp(min=1) for n in normalisers[:2])
        with torch.no_grad():
            memory += torch.stack(normalisers[2:]).view_as(memory)
        class_weight, box_weight = (_level_weights(row, counts) for row in memory)

        class_loss = class_losses(
            predictions.log_scores,
            labels_of(targets, classes.object),
            owned[0],
            *focal_pair(self.focal_alpha, self.focal_gamma),
        )
        class_sum = torch.where(point_valid, class_loss * class_weight, 0.0).sum()
        target_boxes = boxes_of(targets, boxes.object)
        box_sum = box_losses(predictions.boxes, target_boxes, strides, owned[1] * box_weight).sum()
        iou = torch.where(owned[1], aligned_iou(predictions.boxes.detach(), target_boxes), 0.0).clamp(0, 1)
        log_quality = torch.nn.functional.logsigmoid(predictions.quality.logits)
        quality_sum = torch.where(owned[1], binary_cross_entropy(log_quality, iou) * box_weight, 0.0).sum()
        return {
            "loss_cls": class_sum / class_count,
            "loss_box": self.box_weight * box_sum / box_count,
            "loss_quality": self.quality_weight * quality_sum / box_count,
        }


def _level_weights(positives: Tensor, counts: tuple[int, ...]) -> Tensor:
    """2 on the level with the fewest positives so far, 1 on the one with the most: [L] -> [N]."""
    low, high = positives.aminmax()
    weights = 2 - (positives - low) / (high - low + 1e-10)
    return of_levels(weights, counts, weights.device)
