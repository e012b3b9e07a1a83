"""Losses as pure functions, float32, in log space: a probability p arrives as log p, so nothing saturates.

Every function returns one value an element; weighting, summing and normalising belong to the objective.
"""

import torch
from torch import Tensor

from tood.boxes import aligned_giou

FLOOR = -100.0  # of a logarithm, as in torch's binary_cross_entropy
TINY = 1.2e-38  # the smallest number that float32 holds with full precision, whether or not denormals are flushed


def log1m_exp(log_p: Tensor) -> Tensor:
    """log(1 - p) from log p < 0, exact at both ends: log(-expm1) near p = 1, log1p(-exp) elsewhere (Maechler 2012)."""
    log_p = log_p.clamp(max=-TINY)  # p = 1 exactly would give -inf, and NaN in the gradient
    near_one = log_p > -0.6931472
    # each branch sees only values that are safe for it, so that the other's gradient is never NaN
    upper = torch.where(near_one, log_p, -1.0).expm1().neg().log()
    lower = torch.where(near_one, -1.0, log_p).exp().neg().log1p()
    return torch.where(near_one, upper, lower)


def binary_cross_entropy(log_p: Tensor, target: Tensor | float) -> Tensor:
    return -(target * log_p.clamp(min=FLOOR) + (1 - target) * log1m_exp(log_p).clamp(min=FLOOR))


def quality_focal(log_p: Tensor, target: Tensor, gamma: float) -> Tensor:
    """|target - p|^gamma * BCE(p, target): TOOD's Eq. 11 with target t-hat; GFL's QFL with target IoU."""
    error = (target - log_p.exp()).abs().clamp(min=TINY)  # at 0 a gamma below 1 would have the gradient inf * 0
    return error.pow(gamma) * binary_cross_entropy(log_p, target)


def negative_focal(log_p: Tensor, gamma: float) -> Tensor:
    """p^gamma * -log(1 - p): the loss of a score that should be 0; quality_focal at target 0."""
    return -(gamma * log_p).exp() * log1m_exp(log_p).clamp(min=FLOOR)


def positive_focal(log_p: Tensor, gamma: float) -> Tensor:
    """(1 - p)^gamma * -log p: focal loss of a score that should be 1, before its alpha."""
    return -(gamma * log1m_exp(log_p)).exp() * log_p.clamp(min=FLOOR)


def giou_loss(boxes: Tensor, targets: Tensor) -> Tensor:
    """1 - GIoU of boxes [..., 4] with targets [..., 4] -> [...], in [0, 2]."""
    return 1 - aligned_giou(boxes, targets)


def centerness(centres: Tensor, boxes: Tensor) -> Tensor:
    """FCOS's centerness of points [..., 2] in boxes [..., 4]: sqrt(min/max of l, r * min/max of t, b); 0 outside."""
    low, high = centres - boxes[..., :2], boxes[..., 2:] - centres
    ratio = torch.minimum(low, high) / torch.maximum(low, high).clamp(min=1e-12)
    return ratio.clamp(min=0).prod(-1).sqrt()
