"""Task alignment learning (TAL): scores learn t-hat, boxes are weighted by it (TOOD, Eq. 9-12), after some epochs of ATSS."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from torch import Tensor

from tood.assign.ownership import Assignment
from tood.assign.task_aligned import assign_task_aligned
from tood.config import bounded
from tood.data.targets import Targets, boxes_of, labels_of
from tood.losses import BOX_LOSSES, matchability, negative_focal, quality_focal, varifocal
from tood.objectives.atss import ATSS
from tood.objectives.parts import box_sums, class_loss_sum, mean_over_ranks
from tood.predictions import Predictions


@dataclass(frozen=True)
class TaskAligned:
    """Options of the objective; `losses` and `assign` are its two uses."""

    name: Literal["task_aligned"] = "task_aligned"
    alpha: float = bounded(1.0, 0, 20)  # weight of the score in t = s^alpha * u^beta
    beta: float = bounded(6.0, 0, 20)  # weight of the IoU
    m: int = bounded(13, 1, 10_000)  # points an object may get
    candidates: Literal["all", "inside"] = "all"  # top m of all points, as in the official code, or of those inside the object
    widen_small: bool = False  # small objects find candidates around them (STAL)
    class_loss: Literal["qfl", "vfl", "mal"] = "qfl"  # |t-hat - s|^gamma BCE; VFNet's; DEIM's
    gamma: float = bounded(2.0, 0, 10)  # the focusing exponent
    vfl_alpha: float = bounded(0.75, 0, 10)  # weight of negatives, of class_loss=vfl
    mal_gamma: float = bounded(1.5, 0, 10)  # positives learn t-hat to this power, of class_loss=mal
    box_loss: Literal[tuple(BOX_LOSSES)] = "giou"
    box_weight: float = bounded(2.0, 0, 1000)
    warmup_epochs: int = bounded(4, 0, 10_000)  # epochs of ATSS before task alignment (not in the paper, in the code)
    warmup: ATSS = ATSS(count_empty=False)

    FUSION: ClassVar[str] = "none"

    @staticmethod
    def prepare(values: dict[str, Any]) -> dict[str, Any]:
        """The first epochs count positives as TOOD does, unless told otherwise."""
        warmup = values.get("warmup")
        return values | {"warmup": {"count_empty": False, **warmup}} if isinstance(warmup, dict) else values

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
            widen_small=self.widen_small,
        )

    def losses(self, predictions: Predictions, targets: Targets, point_valid: Tensor, epoch: int) -> dict[str, Tensor]:
        if predictions.one_to_one is not None:
            return self._both(predictions, targets, point_valid, epoch)
        if epoch < self.warmup_epochs:
            return self.warmup.losses(predictions, targets, point_valid, epoch)
        found = self.assign(predictions, targets, point_valid, epoch)
        target = found.target  # t-hat
        class_sum = class_loss_sum(
            predictions.log_scores,
            labels_of(targets, found.object),
            found.object >= 0,
            point_valid,
            lambda log_p: negative_focal(log_p, self.gamma, self.vfl_alpha if self.class_loss == "vfl" else 1.0),
            lambda log_p: self._positive_loss(log_p, target),
        )
        (total,) = mean_over_ranks(target.sum())
        sums = box_sums(predictions, boxes_of(targets, found.object), target, BOX_LOSSES[self.box_loss], scale=self.box_weight)
        return {"loss_cls": class_sum / total} | {name: value / total for name, value in sums.items()}

    def _positive_loss(self, log_p: Tensor, target: Tensor) -> Tensor:
        if self.class_loss == "vfl":
            return varifocal(log_p, target)
        if self.class_loss == "mal":
            return matchability(log_p, target, self.mal_gamma)
        return quality_focal(log_p, target, self.gamma)

    def _both(self, predictions: Predictions, targets: Targets, point_valid: Tensor, epoch: int) -> dict[str, Tensor]:
        """The second predictor learns from the one best point of each object, by the same t (YOLOv10), from the start."""
        many = self.losses(predictions._replace(one_to_one=None), targets, point_valid, epoch)
        alone = replace(self, m=1, warmup_epochs=0)
        one = alone.losses(predictions.one_to_one, targets, point_valid, epoch)
        return many | {f"{name}_one": value for name, value in one.items()}
