"""Adaptive training sample selection (ATSS): the anchors nearest an object, cut by the statistics of their own IoU.

B images, G objects, N points, L levels, C = L * topk candidates an object.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from tood.assign.ownership import Assignment, settle, smallest, spread
from tood.boxes import aligned_iou, inside, overlap_share
from tood.priors import Priors

CHUNK = 1 << 21  # elements of the largest temporary (objects x points)
FAR = 1e16  # squared px: beyond any image, before infinity


@torch.no_grad()
def assign_atss(
    priors: Priors,
    object_boxes: Tensor,
    object_valid: Tensor,
    point_valid: Tensor,
    *,
    topk: int,
    ignore_boxes: Tensor | None = None,
    ignore_share: float = 0.0,
    measure: Callable[[Tensor], Tensor] | None = None,
) -> Assignment:
    """object_boxes [B, G, 4], object_valid bool [B, G], point_valid bool [B, N]; metric and target are 1 for positives.

    A level gives its topk anchors whose centres are nearest the object's (ties to the lower point); of all these, anchors
    whose IoU is at least mean + standard deviation (n - 1) and whose centre lies inside are positives. Points of which more
    than ignore_share (IoF) lies in an ignore box [B, I, 4] are ignored, unless an object takes them for want of others on
    the level; ignore_share = 0 turns that off. An image without objects ignores nothing (mmdetection's rules).
    `measure(points [B, G, C]) -> [B, G, C]`, not negative, takes the place of the anchors' IoU (DDOD).
    """
    (b, g), n = object_valid.shape, priors.centres.shape[0]
    ignored = None
    if ignore_share > 0 and ignore_boxes is not None and ignore_boxes.shape[1]:
        ignored = overlap_share(priors.anchors, ignore_boxes).amax(-1) > ignore_share
        ignored &= object_valid.any(1, keepdim=True)
    step = max(1, CHUNK // (b * n))
    parts = [_nearest(priors, object_boxes[:, i : i + step], point_valid, ignored, topk) for i in range(0, max(g, 1), step)]
    points = torch.cat(parts, dim=1)
    usable = point_valid.unsqueeze(1).expand(b, g, n).gather(2, points)
    iou = aligned_iou(priors.anchors[points], object_boxes.unsqueeze(2)) if measure is None else measure(points)
    iou = iou.masked_fill(~usable, 0.0)  # a measure may know no number for them
    count = usable.sum(-1, keepdim=True)
    mean = (iou * usable).sum(-1, keepdim=True) / count
    deviation = (((iou - mean).square() * usable).sum(-1, keepdim=True) / (count - 1)).sqrt()
    wants = (iou >= mean + deviation) & usable & object_valid.unsqueeze(-1)
    wants &= inside(priors.centres[points], object_boxes.unsqueeze(2))
    owner, owner_iou, wins = settle(points, wants, iou, n)
    ones = spread(torch.ones_like(iou), points, wins, n)
    if ignored is not None:
        ignored = ignored & (owner < 0)
    return Assignment(owner, owner_iou, ones, ones, ignored)


def _nearest(priors: Priors, object_boxes: Tensor, point_valid: Tensor, ignored: Tensor | None, topk: int) -> Tensor:
    """int64 [B, G', C]: on each level, the points nearest the centre of each object.

    Where these are too few come ignored points, and last invalid ones.
    """
    middle = 0.5 * (object_boxes[..., :2] + object_boxes[..., 2:])
    found, start = [], 0
    for count in priors.counts:
        level = slice(start, start + count)
        dx, dy = (middle[..., axis, None] - priors.centres[level, axis] for axis in (0, 1))  # no [..., 2] is ever made
        distance = dx.square_().add_(dy.square_())
        if ignored is not None:
            distance = distance.masked_fill(ignored[:, None, level], FAR)
        distance = distance.masked_fill(~point_valid[:, None, level], torch.inf)
        found.append(smallest(distance, min(topk, count)) + start)
        start += count
    return torch.cat(found, dim=-1)
