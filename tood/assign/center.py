"""Assignment by place and size alone: a point belongs to the smallest object whose middle it lies in (FCOS, FoveaBox).

B images, G objects, N points, L levels.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from tood.assign.ownership import Assignment
from tood.boxes import area, box_to_distance
from tood.priors import Priors, of_levels

CHUNK = 1 << 22  # elements of the largest temporary (objects x points x 4 sides)
REACHES = (-1.0, 64.0, 128.0, 256.0, 512.0, float("inf"))  # FCOS, px: level l takes points whose farthest side is within [l, l+1]
FOVEA_SIZES = ((1, 64), (32, 128), (64, 256), (128, 512), (256, 2048))  # FoveaBox, px: sqrt(area) of a level's objects


@torch.no_grad()
def assign_center(priors: Priors, object_boxes: Tensor, object_valid: Tensor, point_valid: Tensor, *, radius: float) -> Assignment:
    """FCOS. object_boxes [B, G, 4], object_valid bool [B, G], point_valid bool [B, N]; target is 1 for positives.

    A point is a candidate inside the box or, with radius > 0, inside the square of `radius` strides around the box's
    centre, cut by the box; and where its farthest side is within the level's reach.
    """
    low, high = (of_levels(bounds, priors.counts, priors.centres.device) for bounds in (REACHES[:-1], REACHES[1:]))

    def candidates(boxes: Tensor) -> Tensor:
        sides = box_to_distance(priors.centres, boxes)
        near = _near_centre(priors, boxes, radius) if radius > 0 else sides.amin(-1) > 0
        farthest = sides.amax(-1)
        return near & (farthest >= low) & (farthest <= high)

    return _smallest_object(candidates, object_boxes, object_valid, point_valid)


@torch.no_grad()
def assign_fovea(priors: Priors, object_boxes: Tensor, object_valid: Tensor, point_valid: Tensor, *, sigma: float) -> Assignment:
    """FoveaBox: the middle `sigma` of an object's sides, on every level whose sizes fit the object. Arguments as above."""
    low, high = (of_levels(bounds, priors.counts, priors.centres.device) for bounds in zip(*FOVEA_SIZES, strict=True))

    def candidates(boxes: Tensor) -> Tensor:
        middle, half = 0.5 * (boxes[..., :2] + boxes[..., 2:]), 0.5 * (boxes[..., 2:] - boxes[..., :2])
        size = area(boxes).sqrt()
        fovea = ((priors.centres - middle).abs() <= sigma * half).all(-1)
        return fovea & (size >= low) & (size <= high)

    return _smallest_object(candidates, object_boxes, object_valid, point_valid)


def _near_centre(priors: Priors, boxes: Tensor, radius: float) -> Tensor:
    middle = 0.5 * (boxes[..., :2] + boxes[..., 2:])
    reach = (radius * priors.strides).unsqueeze(-1)
    low, high = torch.maximum(middle - reach, boxes[..., :2]), torch.minimum(middle + reach, boxes[..., 2:])
    return ((priors.centres > low) & (priors.centres < high)).all(-1)


def _smallest_object(
    candidates: Callable[[Tensor], Tensor], object_boxes: Tensor, object_valid: Tensor, point_valid: Tensor
) -> Assignment:
    """Each point to the smallest of the objects it is a candidate for: `candidates(boxes [B, G', 1, 4]) -> bool [B, G', N]`.

    Equal areas: the lower index.
    """
    (b, g), n = object_valid.shape, point_valid.shape[1]
    least = object_boxes.new_full((b, n), torch.inf)
    owner = torch.full((b, n), -1, dtype=torch.int64, device=least.device)
    step = max(1, CHUNK // (4 * b * n))
    for i in range(0, g, step):
        boxes = object_boxes[:, i : i + step].unsqueeze(2)
        wanted = candidates(boxes) & object_valid[:, i : i + step].unsqueeze(-1)
        sizes = area(boxes).masked_fill(~wanted, torch.inf)
        smallest = sizes.amin(1, keepdim=True)
        first = (sizes == smallest).to(torch.uint8).argmax(1)  # torch's argmin leaves ties open
        better = smallest.squeeze(1) < least
        least, owner = torch.where(better, smallest.squeeze(1), least), torch.where(better, first + i, owner)
    owner = owner.masked_fill(~point_valid, -1)
    ones = (owner >= 0).float()
    return Assignment(owner, ones, ones, ones)
