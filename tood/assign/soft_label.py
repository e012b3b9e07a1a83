"""RTMDet's dynamic soft label assignment: an object takes as many points as fit it, at the least cost.

B images, G objects, N points, K classes, C candidates an object.
"""

import math

import torch
from torch import Tensor

from tood.assign.ownership import Assignment, smallest
from tood.boxes import inside, pairwise_iou
from tood.devices import any_order
from tood.losses import binary_cross_entropy, negative_focal
from tood.priors import Priors

CHUNK = 1 << 22  # elements of the largest temporary (objects x points, points x classes)
CENTRE_RADIUS = 3.0  # strides from an object's centre at which the soft centre prior costs 1
FAR = 1e8


@torch.no_grad()
def assign_soft_label(
    log_scores: Tensor,
    boxes: Tensor,
    priors: Priors,
    object_boxes: Tensor,
    object_labels: Tensor,
    object_valid: Tensor,
    point_valid: Tensor,
    *,
    topk: int,
    iou_weight: float,
) -> Assignment:
    """log_scores [B, N, K], boxes [B, N, 4], object_* [B, G, ...], point_valid bool [B, N].

    cost = sum_c |t_c - s_c|^2 BCE(s_c, t_c) + iou_weight * -log u + 10^(distance / stride - radius), over all classes c: t_c = u
    for the object's, else 0. Points outside every object are out of the question. An object takes the k points of least
    cost, k the sum of its topk highest IoUs, at least 1. A contested point goes to the object of least cost, ties to the
    lower index; equal costs to the lower point. target: u.
    """
    (b, g), n = object_valid.shape, point_valid.shape[1]
    best = boxes.new_full((b, n), torch.inf)
    owner = torch.full((b, n), -1, dtype=torch.int64, device=boxes.device)
    owner_iou = boxes.new_zeros(b, n)
    k = min(topk, n)
    step = max(1, CHUNK // (b * n))
    unclaimed = cost_of_no_object(log_scores)
    inside_any = torch.zeros(b, n, dtype=torch.bool, device=boxes.device)
    for i in range(0, g, step):
        part = slice(i, i + step)
        within = inside(priors.centres, object_boxes[:, part].unsqueeze(2), margin=0.0)
        inside_any |= (within & object_valid[:, part].unsqueeze(-1)).any(1)
    for i in range(0, g, step):
        part = slice(i, i + step)
        target = object_boxes[:, part]
        iou = pairwise_iou(target, boxes)
        labels = object_labels[:, part].unsqueeze(2).expand(-1, -1, n)
        log_s = log_scores.transpose(1, 2).gather(1, labels)
        cost = class_cost(log_s, iou, unclaimed) - iou_weight * (iou + 1e-7).log()
        middle = 0.5 * (target[..., :2] + target[..., 2:])
        far = (priors.centres - middle.unsqueeze(2)).square().sum(-1).sqrt() / priors.strides - CENTRE_RADIUS
        cost = cost + (math.log(10) * far.clamp(max=30.0)).exp()  # not pow, whose last bit depends on a number's place
        usable = (inside_any & point_valid).unsqueeze(1) & object_valid[:, part].unsqueeze(-1)
        # a box that is no number is out of the question, and counts for nothing
        cost = cost.clamp(min=0, max=FAR).masked_fill(~usable, torch.inf).nan_to_num_(nan=torch.inf, posinf=torch.inf)
        points = smallest(cost, k)  # [B, G', k]
        count = iou.masked_fill(~usable, 0.0).nan_to_num_(nan=0.0).topk(k, dim=-1).values.sum(-1).int().clamp(min=1)
        costs = cost.gather(2, points)
        wants = (torch.arange(k, device=boxes.device) < count.unsqueeze(-1)) & costs.isfinite()
        wanted = torch.full_like(cost, torch.inf)
        with any_order():  # an object's points are different ones
            wanted.scatter_(2, points, costs.masked_fill(~wants, torch.inf))
        least = wanted.amin(1, keepdim=True)
        first = (wanted == least).to(torch.uint8).argmax(1)
        better = least.squeeze(1) < best
        best = torch.where(better, least.squeeze(1), best)
        owner = torch.where(better, first + i, owner)
        owner_iou = torch.where(better, iou.gather(1, first.unsqueeze(1)).squeeze(1), owner_iou)
    ones = (owner >= 0).float()
    return Assignment(owner, owner_iou, ones, owner_iou)


def cost_of_no_object(log_scores: Tensor) -> Tensor:
    """The class cost of a point that no class should be at, sum over all K of s^2 * -log(1 - s): [B, N, K] -> [B, N]."""
    b, _, k = log_scores.shape
    pieces = log_scores.split(max(1, CHUNK // (b * k)), dim=1)
    # a point's classes side by side in memory: else a CPU adds those of the last points in another order, and the last bit
    # of a cost, which decides between points alike, would depend on a point's place
    return torch.cat([negative_focal(piece, 2.0).contiguous().sum(-1) for piece in pieces], dim=1)


def class_cost(log_s: Tensor, iou: Tensor, unclaimed: Tensor) -> Tensor:
    """The class cost of points as an object's: its class should say the IoU, all others 0.

    log_s (of its class) and iou are [B, G, N]; unclaimed [B, N] is `cost_of_no_object`, whose part of its class is taken out.
    """
    own = (iou - log_s.exp()).square() * binary_cross_entropy(log_s, iou)
    return own + (unclaimed.unsqueeze(1) - negative_focal(log_s, 2.0))
