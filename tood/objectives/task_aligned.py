"""Task alignment learning (TAL): scores learn t-hat, boxes are weighted by it (TOOD, Eq. 9-12), after some epochs of ATSS."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from tood.assign.ownership import Assignment
from tood.assign.task_aligned import assign_task_aligned
from tood.config import bounded
from tood.data.targets import Targets, boxes_of, labels_of
from tood.head import Predictions
from tood.losses import negative_focal, quality_focal
from tood.objectives.atss import ATSS
from tood.objectives.parts import box_loss_sum, class_loss_sum, mean_over_ranks


@dataclass(frozen=True)
class TaskAligned:
    """Options of the objective; `losses` and `assign` are its two uses."""

    name: Literal["task_aligned"] = "task_aligned"
    alpha: float = bounded(1.0, 0, 20)  # weight of the score in t = s^alpha * u^beta
    beta: float = bounded(6.0, 0, 20)  # weight of the IoU
    m: int = bounded(13, 1, 10_000)  # points an object may get
    candidates: Literal["all", "inside"] = "all"  # top m of all points, as in the official code, or of those inside the object
    gamma: float = bounded(2.0, 0, 10)  # of |t-hat - s|^gamma
    box_weight: float = bounded(2.0, 0, 1000)
    warmup_epochs: int = bounded(4, 0, 10_000)  # epochs of ATSS before task alignment (not in the paper, in the code)
    warmup: ATSS = ATSS()

    def assign(self, predictions: Predictions, targets: Targets, point_valid: Tensor, epoch: int) -> Assignment:
        if epoch < self.warmup_epochs:
            return self.warmup.assign(predictions, targets, point_valid, epoch)
        return assign_task_aligned(
            predictions.log_scores.detach(),
            predictions.boxes.detach(),
            predictions.priors.centres,
            targets.boxes,
            targets.labels,
            targets.valid,
            point_valid,
            alpha=self.alpha,
            beta=self.beta,
            m=self.m,
            candidates=self.candidates,
        )

    def losses(self, predictions: Predictions, targets: Targets, point_valid: Tensor, epoch: int) -> dict[str, Tensor]:
        if epoch < self.warmup_epochs:
            return self.warmup.losses(predictions, targets, point_valid, epoch)
        found = self.assign(predictions, targets, point_valid, epoch)
        target = found.target  # t-hat
        class_sum = class_loss_sum(
            predictions.log_scores,
            labels_of(targets, found.object),
            found.object >= 0,
            point_valid,
            lambda log_p: negative_focal(log_p, self.gamma),
            lambda log_p: quality_focal(log_p, target, self.gamma),
        )
        box_sum = box_loss_sum(predictions, boxes_of(targets, found.object), target)
        (total,) = mean_over_ranks(target.sum())
        return {"loss_cls": class_sum / total, "loss_box": self.box_weight * box_sum / total}
