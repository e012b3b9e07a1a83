"""Losses as pure functions, float32, in log space: a probability p arrives as log p, so nothing saturates.

Every function returns one value an element; weighting, summing and normalising belong to the objective.
"""

import math

import torch
from torch import Tensor

from tood.boxes import EPS, aligned_giou, aligned_iou
from tood.devices import known_to_host, pick

FLOOR = -100.0  # of a logarithm, as in torch's binary_cross_entropy
NEAR_ONE = -0.6931472  # log 0.5
PIECE = 1 << 16  # scores that a processor's cache holds with all that is made of them
TINY = 1.2e-38  # the smallest number that float32 holds with full precision, whether or not denormals are flushed


def log1m_exp(log_p: Tensor) -> Tensor:
    """log(1 - p) from log p < 0, exact at both ends: log(-expm1) near p = 1, log1p(-exp) elsewhere (Maechler 2012)."""
    log_p = log_p.clamp(max=-TINY)  # p = 1 exactly would give -inf, and NaN in the gradient
    near_one = log_p > NEAR_ONE
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


def negative_focal(log_p: Tensor, gamma: float, weight: float = 1.0) -> Tensor:
    """weight * p^gamma * -log(1 - p): the loss of a score that should be 0; quality_focal at target 0.

    This one runs over every score of a batch. So it goes through memory once, in pieces that stay in the processor's cache, and
    keeps its slope, -gamma * p^gamma * log(1 - p) + p^(gamma + 1) / (1 - p), not what autograd would keep of each operation.
    """
    return _NegativeFocal.apply(log_p, gamma, weight)


class _NegativeFocal(torch.autograd.Function):
    @staticmethod
    def forward(ctx, log_p: Tensor, gamma: float, weight: float) -> Tensor:
        if not _in_memory(log_p).is_contiguous():
            log_p = log_p.contiguous()
        value, slope = torch.empty_like(log_p), torch.empty_like(log_p) if ctx.needs_input_grad[0] else None
        flat = [_in_memory(t).view(-1) if t is not None else None for t in (log_p, value, slope)]
        on_host = known_to_host(log_p)
        size = PIECE if on_host else max(1, log_p.numel())
        for i in range(0, log_p.numel(), size):
            given, to, slope_to = (t[i : i + size] if t is not None else None for t in flat)
            rest = _mostly_small(given) if on_host else log1m_exp(given)
            power = (gamma * given).exp_()
            torch.mul(power, rest.clamp(min=FLOOR), out=to).neg_()
            if slope_to is not None:
                odds = (given - rest).exp_().masked_fill_(given > -TINY, 0.0)  # log1m_exp is flat there
                torch.addcmul(gamma * to, power, odds, out=slope_to).mul_(weight)
            to.mul_(weight)
        ctx.save_for_backward(slope)
        return value

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        (slope,) = ctx.saved_tensors
        return grad * slope, None, None


def _mostly_small(log_p: Tensor) -> Tensor:
    """log1m_exp of [M], quick where few of the p are above a half."""
    rest = log_p.exp().neg_().log1p_()
    near_one = (log_p > NEAR_ONE).nonzero().squeeze(1)
    return rest.index_copy_(0, near_one, log1m_exp(log_p[near_one]))


def _in_memory(values: Tensor) -> Tensor:
    """The same values, dimensions in the order of memory."""
    return values.permute(sorted(range(values.dim()), key=values.stride, reverse=True))


def positive_focal(log_p: Tensor, gamma: float) -> Tensor:
    """(1 - p)^gamma * -log p: focal loss of a score that should be 1, before its alpha."""
    return -(gamma * log1m_exp(log_p)).exp() * log_p.clamp(min=FLOOR)


def giou_loss(boxes: Tensor, targets: Tensor) -> Tensor:
    """1 - GIoU of boxes [..., 4] with targets [..., 4] -> [...], in [0, 2]."""
    return 1 - aligned_giou(boxes, targets)


def iou_loss(boxes: Tensor, targets: Tensor) -> Tensor:
    """-log IoU (FCOS). Arguments as above."""
    return -aligned_iou(boxes, targets).clamp(min=EPS).log()


def diou_loss(boxes: Tensor, targets: Tensor) -> Tensor:
    """1 - IoU + (distance of the centres / diagonal of the hull)^2 (Zheng et al., 2020). Arguments as above."""
    return 1 - aligned_iou(boxes, targets) + _centre_distance(boxes, targets)


def ciou_loss(boxes: Tensor, targets: Tensor) -> Tensor:
    """DIoU's loss and one of the aspect ratio, weighted without gradient and from IoU 0.5 on. Arguments as above."""
    iou = aligned_iou(boxes, targets)
    angles = [torch.atan((b[..., 2] - b[..., 0]) / (b[..., 3] - b[..., 1] + EPS)) for b in (boxes, targets)]
    ratio = 4 / math.pi**2 * (angles[1] - angles[0]).square()
    with torch.no_grad():
        weight = (iou > 0.5) * ratio / (1 - iou + ratio).clamp(min=EPS)
    return 1 - (iou - _centre_distance(boxes, targets) - weight * ratio).clamp(-1, 1)


def _centre_distance(boxes: Tensor, targets: Tensor) -> Tensor:
    hull = torch.maximum(boxes[..., 2:], targets[..., 2:]) - torch.minimum(boxes[..., :2], targets[..., :2])
    shift = 0.5 * (targets[..., :2] + targets[..., 2:] - boxes[..., :2] - boxes[..., 2:])
    return shift.square().sum(-1) / (hull.clamp(min=0).square().sum(-1) + EPS)


BOX_LOSSES = {"giou": giou_loss, "iou": iou_loss, "diou": diou_loss, "ciou": ciou_loss}


def centerness(centres: Tensor, boxes: Tensor) -> Tensor:
    """FCOS's centerness of points [..., 2] in boxes [..., 4]: sqrt(min/max of l, r * min/max of t, b); 0 outside."""
    low, high = centres - boxes[..., :2], boxes[..., 2:] - centres
    ratio = torch.minimum(low, high) / torch.maximum(low, high).clamp(min=1e-12)
    return ratio.clamp(min=0).prod(-1).sqrt()


def distribution_focal(logits: Tensor, target: Tensor) -> Tensor:
    """DFL (GFL, Eq. 6): cross-entropy shared by the two bins next to the target. logits [..., n + 1], target [...] in [0, n)."""
    log_p = logits.log_softmax(-1)
    left = target.floor()
    right_share = target - left
    below, above = pick(log_p, left.long().unsqueeze(-1) + torch.arange(2, device=target.device)).unbind(-1)
    return -((1 - right_share) * below + right_share * above)


def varifocal(log_p: Tensor, target: Tensor) -> Tensor:
    """VFL of a positive (VFNet): its IoU target weighs the cross-entropy; negatives are alpha * negative_focal."""
    return target * binary_cross_entropy(log_p, target)


def matchability(log_p: Tensor, target: Tensor, gamma: float) -> Tensor:
    """MAL of a positive (DEIM): target^gamma with weight 1, so that poor matches are not starved; negatives negative_focal."""
    return binary_cross_entropy(log_p, target.pow(gamma))


def smooth_l1(values: Tensor, targets: Tensor, beta: float) -> Tensor:
    """Quadratic below `beta`, linear above."""
    error = (values - targets).abs()
    return torch.where(error < beta, 0.5 * error.square() / beta, error - 0.5 * beta)
