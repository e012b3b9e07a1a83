"""Task-aligned assignment (TAL): the m points whose score and box together fit an object best (TOOD, Eq. 9).

B images, G objects, N points, K classes, m candidates an object.
"""

import math

import torch
from torch import Tensor

from tood.assign.ownership import Assignment, settle, smallest_of_groups, spread
from tood.assign.tiles import everything, tiled, touching
from tood.boxes import inside, pairwise_iou
from tood.priors import STRIDES

CHUNK = 1 << 23  # objects x points looked at together; bounds the memory whatever an image holds


@torch.no_grad()
def assign_task_aligned(
    log_scores: Tensor,
    boxes: Tensor,
    centres: Tensor,
    object_boxes: Tensor,
    object_labels: Tensor,
    object_valid: Tensor,
    point_valid: Tensor,
    *,
    alpha: float,
    beta: float,
    m: int,
    candidates: str = "all",
    widen_small: bool = False,
) -> Assignment:
    """log_scores [B, N, K], boxes [B, N, 4], centres [N, 2], object_* [B, G, ...], point_valid bool [B, N].

    t = s^alpha * u^beta (Eq. 9), ranked as alpha log s + beta log u in float32, so that nothing underflows; equal metrics go
    to the lower point. candidates="all" takes the top m of all points and then drops those whose centre lies outside the
    object (the official code: an object may keep fewer than m, or none); "inside" looks at inside points alone.
    widen_small: a side of an object below the finest stride counts as two strides where candidates are sought, so that a
    small object has some (STAL, YOLO26).
    target = t / (max t + 1e-7) * max u, both over the points the object finally got (Eq. 10's t-hat).
    """
    (b, g), n = object_valid.shape, point_valid.shape[1]
    k = min(m, n)
    reach = _widened(object_boxes) if widen_small else object_boxes
    sought = tiled(centres.repeat(1, 2)).unsqueeze(0) if candidates == "inside" else tiled(boxes)
    step = max(1, CHUNK // (b * n))
    parts = [
        _candidates(
            log_scores, boxes, centres, object_boxes[:, i : i + step], object_labels[:, i : i + step], point_valid,
            alpha, beta, k, sought, reach[:, i : i + step] if candidates == "inside" else None,
        )
        for i in range(0, max(g, 1), step)
    ]  # fmt: skip
    points, cost, u = (torch.cat(p, dim=1) for p in zip(*parts, strict=True))
    t = (-cost).exp()
    wants = (t > 0) & object_valid.unsqueeze(-1) & inside(centres[points], reach.unsqueeze(2))
    owner, iou, wins = settle(points, wants, u, n)
    t, u = torch.where(wins, t, 0.0), torch.where(wins, u, 0.0)  # a product would let the NaN of a lost point through
    target = t / (t.amax(-1, keepdim=True) + 1e-7) * u.amax(-1, keepdim=True)
    return Assignment(owner, iou, spread(t, points, wins, n), spread(target, points, wins, n))


def _candidates(
    log_scores: Tensor, boxes: Tensor, centres: Tensor, object_boxes: Tensor, labels: Tensor, point_valid: Tensor,
    alpha: float, beta: float, k: int, sought: Tensor, within: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The k best points of each object: index, -log t (inf where there are fewer), u, each [B, G', k].

    within [B, G', 4]: boxes that points must lie in, None for anywhere; `sought` are the centres in tiles, or the boxes.
    Where u is 0 t is too, so that only points whose box overlaps the object are looked at; unless beta is 0.
    """
    (b, g, _), n = object_boxes.shape, len(centres)
    if beta or within is not None:
        image, row, point = touching(object_boxes if within is None else within, sought)
    else:
        image, row, point = everything(b, g, n, labels.device)
    place = image * n + point
    u = pairwise_iou(_rows(object_boxes, row).unsqueeze(1), _rows(boxes, place).unsqueeze(1)).flatten()
    log_t = alpha * log_scores[image, point, labels.flatten()[row]] if alpha else torch.zeros_like(u)  # 0 * -inf would be NaN
    if beta:
        log_t = log_t + beta * u.log()
    usable = point_valid.flatten()[place] & (u >= 0)  # not so of what is no number
    if within is not None:
        usable &= inside(centres.index_select(0, point), _rows(within, row))
    cost = log_t.clamp_(max=0).abs_().nan_to_num_(nan=math.inf, posinf=math.inf).masked_fill_(~usable, math.inf)
    entry, group, rank = smallest_of_groups(cost, row, b * g, k)
    found = []
    for values, nothing in ((point, 0), (cost, math.inf), (u, 0.0)):
        laid_out = torch.full((b * g, k), nothing, dtype=values.dtype, device=values.device)
        laid_out[group, rank] = values[entry]
        found.append(laid_out.view(b, g, k))
    return tuple(found)


def _rows(values: Tensor, index: Tensor) -> Tensor:
    """values [B, X, 4] as [B * X, 4] at index [P] -> [P, 4]."""
    return values.flatten(0, 1).index_select(0, index)


def _widened(boxes: Tensor) -> Tensor:
    middle, size = 0.5 * (boxes[..., :2] + boxes[..., 2:]), boxes[..., 2:] - boxes[..., :2]
    half = 0.5 * torch.where(size < STRIDES[0], float(STRIDES[1]), size)
    return torch.cat([middle - half, middle + half], dim=-1)
