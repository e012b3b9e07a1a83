"""Pieces that the objectives share: sparse positives over dense negatives, the box loss, normalisers over all ranks.

B images, N points, K classes.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from tood.head import Predictions
from tood.losses import giou_loss


def mean_over_ranks(*sums: Tensor) -> list[Tensor]:
    """Average scalars over the ranks of the process group, in one all-reduce and without a host sync; at least 1 each."""
    packed = torch.stack([s.detach().float() for s in sums])
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(packed)
        packed = packed / dist.get_world_size()
    return list(packed.clamp(min=1).unbind())


def class_loss_sum(log_scores: Tensor, labels: Tensor, positive: Tensor, counted: Tensor, negative_loss, positive_loss) -> Tensor:
    """Sum over points and classes of one loss for 0-targets and another for the point's own class.

    log_scores [B, N, K], labels int64 [B, N], positive and counted bool [B, N]; `negative_loss(log_p)` runs over
    everything, `positive_loss(log_p of the label [B, N])` over points alone: no [B, N, K] target is ever made.
    """
    own = log_scores.gather(2, labels.unsqueeze(-1)).squeeze(-1)
    everywhere = negative_loss(log_scores).sum(-1)
    at_positives = torch.where(positive, positive_loss(own) - negative_loss(own), 0.0)
    return torch.where(counted, everywhere + at_positives, 0.0).sum()


def box_loss_sum(predictions: Predictions, target_boxes: Tensor, weight: Tensor) -> Tensor:
    """Sum of weight * (1 - GIoU), in units of the stride; target_boxes [B, N, 4], weight [B, N], 0 where there is no object."""
    strides = predictions.priors.strides.view(1, -1, 1)
    used = (weight > 0).unsqueeze(-1)
    target = torch.where(used, target_boxes / strides, 0.0)
    # unused points read their target, so that an overflowed box there can never poison the sum with 0 * NaN
    boxes = torch.where(used, predictions.boxes / strides, target)
    return (giou_loss(boxes, target) * weight).sum()
