"""Pieces that the objectives share: sparse positives over dense negatives, box and quality losses, normalisers over all ranks.

B images, N priors, K classes, n bins of a distance.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import logsigmoid

from tood.boxes import aligned_iou, box_to_distance
from tood.devices import known_to_host, pick
from tood.losses import binary_cross_entropy, centerness, distribution_focal, giou_loss, negative_focal, positive_focal
from tood.predictions import Distribution, Predictions

DFL_WEIGHT = 0.25  # of the distribution's loss beside the box loss (GFL)


def mean_over_ranks(*sums: Tensor, at_least: float = 1.0) -> list[Tensor]:
    """Average scalars over the ranks of the process group, in one all-reduce and without a host sync; `at_least` each."""
    packed = torch.stack([s.detach().float() for s in sums])
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(packed)
        packed = packed / dist.get_world_size()
    return list(packed.clamp(min=at_least).unbind())


def at_least_one_an_image(positive: Tensor) -> Tensor:
    """Positives of a batch, an image without any counting as one (the peer's anchor heads). positive bool [B, N]."""
    return positive.sum(1).clamp(min=1).sum()


def class_losses(
    log_scores: Tensor,
    labels: Tensor,
    positive: Tensor,
    negative_loss: Callable[[Tensor], Tensor],
    positive_loss: Callable[[Tensor], Tensor],
) -> Tensor:
    """[B, N]: summed over classes, one loss for 0-targets and another for the prior's own class.

    log_scores [B, N, K], labels int64 [B, N], positive bool [B, N]; `negative_loss(log_p)` runs over everything,
    `positive_loss(log_p of the label [B, N])` over priors alone: no [B, N, K] target is ever made.
    """
    by_class = log_scores.transpose(1, 2).flatten(1)  # [B, K N], as heads lay it out
    own = pick(by_class, labels * labels.shape[1] + torch.arange(labels.shape[1], device=labels.device))
    everywhere = negative_loss(log_scores).sum(-1)
    return everywhere + torch.where(positive, positive_loss(own) - negative_loss(own), 0.0)


def class_loss_sum(log_scores: Tensor, labels: Tensor, positive: Tensor, counted: Tensor, negative_loss, positive_loss) -> Tensor:
    """The sum of `class_losses` over the priors that are counted, bool [B, N]."""
    return torch.where(counted, class_losses(log_scores, labels, positive, negative_loss, positive_loss), 0.0).sum()


def focal_pair(alpha: float, gamma: float) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """The focal loss as `class_losses` wants it: of 0-targets, weighted by 1 - alpha, and of the own class, by alpha."""
    return lambda log_p: negative_focal(log_p, gamma, 1 - alpha), lambda log_p: alpha * positive_focal(log_p, gamma)


def box_losses(
    boxes: Tensor, target_boxes: Tensor, strides: Tensor, weight: Tensor, loss: Callable[[Tensor, Tensor], Tensor] = giou_loss
) -> Tensor:
    """[B, N] weight * loss in units of the stride. boxes, target_boxes [B, N, 4] px, weight [B, N], 0 where there is no object."""
    unit = strides.view(1, -1, 1).expand_as(boxes)
    return _where(weight > 0, lambda b, t, u, w: loss(b / u, t / u) * w, boxes, target_boxes, unit, weight)


def box_sums(
    predictions: Predictions,
    target_boxes: Tensor,
    weight: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor] = giou_loss,
    *,
    scale: float,
    dfl_weight: float = DFL_WEIGHT,
) -> dict[str, Tensor]:
    """{"loss_box"}: the sum of `box_losses` times `scale`; for boxes read off distributions {"loss_dfl"} beside it."""
    strides = predictions.priors.strides
    sums = {"loss_box": scale * box_losses(predictions.boxes, target_boxes, strides, weight, loss).sum()}
    if predictions.distribution is not None:
        distances = box_to_distance(predictions.priors.centres, target_boxes) / strides.view(1, -1, 1)
        sums["loss_dfl"] = dfl_weight * (_distribution_losses(predictions.distribution, distances, weight > 0) * weight).sum()
    return sums


def _distribution_losses(distribution: Distribution, distances: Tensor, used: Tensor) -> Tensor:
    """[B, N] DFL averaged over the four sides, 0 where not `used`; distances [B, N, 4] in strides."""
    bins = distribution.logits.shape[-1] - 1

    def loss(logits: Tensor, target: Tensor) -> Tensor:
        # the peer's margin: a target on the last bin would have no right neighbour
        return distribution_focal(logits, (target / distribution.width).clamp(0, bins - 0.1)).mean(-1)

    return _where(used, loss, distribution.logits, distances)


def _where(used: Tensor, loss: Callable[..., Tensor], *values: Tensor) -> Tensor:
    """[B, N] `loss` of the rows of values [B, N, ...] where `used`, else 0: those others matter not, whatever they have become.

    They are left out of the work where the host knows them, else it is done on something harmless in their place.
    """
    if known_to_host(used):
        rows = used.nonzero(as_tuple=True)
        found = loss(*(value[rows] for value in values))
        return torch.zeros_like(used, dtype=found.dtype).index_put(rows, found)
    harmless = (torch.where(used.view(*used.shape, *[1] * (value.dim() - 2)), value, 1.0) for value in values)
    return torch.where(used, loss(*harmless), 0.0)


def quality_loss_sum(predictions: Predictions, target_boxes: Tensor, positive: Tensor) -> Tensor:
    """Cross-entropy of the quality branch with the centerness of the prior or the IoU of its box, over positives."""
    kind, logits = predictions.quality
    if kind == "centerness":
        target = centerness(predictions.priors.centres, target_boxes)
    else:
        target = aligned_iou(predictions.boxes.detach(), target_boxes)
    target = torch.where(positive, target, 0.0).clamp(0, 1)
    return torch.where(positive, binary_cross_entropy(logsigmoid(logits), target), 0.0).sum()
