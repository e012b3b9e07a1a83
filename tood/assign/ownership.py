"""Rules that every assigner shares: how ties are broken, and which object a point belongs to when several want it.

B images, G objects, N points, C candidates an object.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from tood.devices import any_order

SAMPLE = 8  # of so many entries one is looked at for a bound of the others


class Assignment(NamedTuple):
    """Who got which point."""

    object: Tensor  # int64 [B, N]: index of the object, -1 for background
    iou: Tensor  # float32 [B, N]: IoU by which the owner won, 0 for background
    metric: Tensor  # float32 [B, N]: the assigner's alignment metric t (1 where it has none), 0 for background
    target: Tensor  # float32 [B, N]: what the class score should become, 0 for background
    ignored: Tensor | None = None  # bool [B, N]: points that are neither object nor background


def smallest(cost: Tensor, k: int) -> Tensor:
    """Indices [..., k] of the k smallest of non-negative float32 costs [..., N], smallest first, ties to the lower index.

    torch.topk leaves ties open, and they differ between devices. Here cost and index make one 64-bit key: the bits of a
    non-negative float order as the float does.
    """
    index = torch.arange(cost.shape[-1], device=cost.device)
    keys = cost.contiguous().view(torch.int32).long().bitwise_left_shift_(32).bitwise_or_(index)
    return keys.topk(k, dim=-1, largest=False, sorted=True).values & 0xFFFFFFFF


def smallest_of_groups(cost: Tensor, group: Tensor, groups: int, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of each group's non-negative float32 costs [M] the k smallest: entry, group and rank within it, by group and rank.

    group int64 [M] in 0 .. groups - 1; of equal costs the entry that comes first goes first. What the k smallest of every
    SAMPLE-th entry already undercut is not sorted.
    """
    some, _, rank = _sorted_groups(cost[::SAMPLE], group[::SAMPLE], groups)
    kth = SAMPLE * some[rank == k - 1]
    bound = torch.full((groups,), torch.inf, device=cost.device)
    bound[group[kth]] = cost[kth]
    left = (cost <= bound[group]).nonzero().squeeze(1)
    entry, of_group, rank = _sorted_groups(cost[left], group[left], groups)
    chosen = (rank < k).nonzero().squeeze(1)
    return left[entry[chosen]], of_group[chosen], rank[chosen]


def _sorted_groups(cost: Tensor, group: Tensor, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    """Entry, group and rank within it of all, by group and cost."""
    keys, entry = (cost.contiguous().view(torch.int32).long() + (group << 32)).sort(stable=True)
    of_group = keys >> 32
    start = torch.searchsorted(of_group, torch.arange(groups, device=cost.device))
    return entry, of_group, torch.arange(len(keys), device=cost.device) - start[of_group]


def settle(points: Tensor, wants: Tensor, iou: Tensor, num_points: int) -> tuple[Tensor, Tensor, Tensor]:
    """Give each contested point to the object with the highest IoU among those that want it, ties to the lower index.

    points int64 [B, G, C], wants bool [B, G, C], iou float32 [B, G, C] >= 0 where wanted.
    Returns owner int64 [B, N] (-1: nobody), its iou [B, N], and wins bool [B, G, C].
    The papers say smallest area; the official code and its ports take the highest IoU, and so do the published figures.
    """
    b, g, _ = points.shape
    rank = torch.arange(g - 1, -1, -1, device=points.device).view(1, g, 1)  # a lower index must compare as larger
    keys = (iou.contiguous().view(torch.int32).long() << 32) | rank
    keys = keys.masked_fill(~wants, -1)
    nobody = torch.full((b, num_points), -1, dtype=torch.int64, device=points.device)
    best = _greatest(nobody, points, keys)
    wins = wants & (best.gather(1, points.flatten(1)).view_as(keys) == keys)
    index = torch.where(wins, torch.arange(g, device=points.device).view(1, g, 1), -1)
    owner = _greatest(nobody, points, index)
    return owner, spread(iou, points, wins, num_points), wins


def spread(values: Tensor, points: Tensor, wins: Tensor, num_points: int) -> Tensor:
    """Lay per-candidate values [B, G, C] >= 0 out over points [B, N]; 0 where no candidate won."""
    flat = torch.zeros(points.shape[0], num_points, dtype=values.dtype, device=values.device)
    return _greatest(flat, points, torch.where(wins, values, 0.0))


def _greatest(of_points: Tensor, points: Tensor, values: Tensor) -> Tensor:
    """of_points [B, N], raised to the greatest of the values that candidates [B, G, C] bring there."""
    with any_order():  # the greatest is the same in any, but torch lists every scatter_reduce as refused
        return of_points.scatter_reduce(1, points.flatten(1), values.flatten(1), "amax")
