"""Task-aligned assignment (TAL): the m points whose score and box together fit an object best (TOOD, Eq. 9).

B images, G objects, N points, K classes, m candidates an object.
"""

import math

import torch
from torch import Tensor

from tood.assign.ownership import Assignment, settle, smallest, smallest_of_groups, spread
from tood.assign.tiles import tiled, touching
from tood.boxes import inside, pairwise_iou
from tood.devices import known_to_host
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
    within = reach if candidates == "inside" else None
    sparse = known_to_host(log_scores) and (beta > 0 or within is not None)  # where u is 0 t is too, unless beta is 0
    sought = tiled(boxes if within is None else centres.repeat(1, 2).unsqueeze(0)) if sparse else None
    step = max(1, CHUNK // (b * n))
    parts = [
        _candidates(
            log_scores, boxes, centres, object_boxes[:, i : i + step], object_labels[:, i : i + step], point_valid,
            alpha, beta, k, None if within is None else within[:, i : i + step], sought,
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
    alpha: float, beta: float, k: int, within: Tensor | None, sought: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The k best points of each object: index, -log t (inf where there are fewer), u, each [B, G', k].

    within [B, G', 4]: boxes that points must lie in, None for anywhere. sought: the centres in tiles, or where anywhere will
    do the boxes, so that only points are looked at whose centre lies within or whose box overlaps the object; None: all are.
    """
    (b, g, _), n = object_boxes.shape, len(centres)
    if sought is None:
        u = pairwise_iou(object_boxes, boxes)
        log_s = log_scores.gather(2, labels.unsqueeze(1).expand(b, n, g)).transpose(1, 2)
        usable = point_valid.unsqueeze(1) if within is None else point_valid.unsqueeze(1) & inside(centres, within.unsqueeze(2))
        cost = _cost(log_s, u, usable, alpha, beta)
        best = smallest(cost, k)
        return best, cost.gather(2, best), u.gather(2, best)
    image, row, point = touching(object_boxes if within is None else within, sought)
    place = image * n + point
    u = pairwise_iou(_rows(object_boxes, row).unsqueeze(1), _rows(boxes, place).unsqueeze(1)).flatten()
    usable = point_valid.flatten()[place]
    if within is not None:
        usable &= inside(centres.index_select(0, point), _rows(within, row))
    cost = _cost(log_scores[image, point, labels.flatten()[row]], u, usable, alpha, beta)
    entry, group, rank = smallest_of_groups(cost, row, b * g, k)
    found = []
    for values, nothing in ((point, 0), (cost, math.inf), (u, 0.0)):
        laid_out = torch.full((b * g, k), nothing, dtype=values.dtype, device=values.device)
        laid_out[group, rank] = values[entry]
        found.append(laid_out.view(b, g, k))
    return tuple(found)


def _cost(log_s: Tensor, u: Tensor, usable: Tensor, alpha: float, beta: float) -> Tensor:
    """-log t; inf where t is 0, the point is not usable or something is no number."""
    log_t = alpha * log_s if alpha else torch.zeros_like(u)  # 0 * -inf would be NaN
    if beta:
        log_t = log_t + beta * u.log()
    cost = log_t.clamp_(max=0).abs_().nan_to_num_(nan=math.inf, posinf=math.inf)
    return cost.masked_fill_(~(usable & (u >= 0)), math.inf)


def _rows(values: Tensor, index: Tensor) -> Tensor:
    """values [B, X, 4] as [B * X, 4] at index [P] -> [P, 4]."""
    return values.flatten(0, 1).index_select(0, index)


def _widened(boxes: Tensor) -> Tensor:
    middle, size = 0.5 * (boxes[..., :2] + boxes[..., 2:]), boxes[..., 2:] - boxes[..., :2]
    half = 0.5 * torch.where(size < STRIDES[0], float(STRIDES[1]), size)
    return torch.cat([middle - half, middle + half], dim=-1)
