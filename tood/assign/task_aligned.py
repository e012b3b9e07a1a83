"""Task-aligned assignment (TAL): the m points whose score and box together fit an object best (TOOD, Eq. 9).

B images, G objects, N points, K classes, m candidates an object.
"""

import math

import torch
from torch import Tensor

from tood.assign.ownership import Assignment, settle, smallest, spread
from tood.boxes import inside, pairwise_iou
from tood.priors import STRIDES

CHUNK = 1 << 23  # elements of the largest temporary (objects x points); bounds the memory whatever an image holds


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
    b, n, _ = log_scores.shape
    g = object_boxes.shape[1]
    k = min(m, n)
    reach = _widened(object_boxes) if widen_small else object_boxes
    step = max(1, CHUNK // (b * n))
    parts = [
        _candidates(
            log_scores, boxes, centres, object_boxes[:, i : i + step], object_labels[:, i : i + step], point_valid,
            alpha, beta, k, reach[:, i : i + step] if candidates == "inside" else None,
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
    alpha: float, beta: float, k: int, within: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The k best points of each object: index, -log t (inf where the point is out of the question), u, each [B, G', k].

    within [B, G', 4]: boxes that points must lie in, None for anywhere.
    """
    # a head's scores lie class after class in memory: gathered in that order, whole rows are copied
    log_s = log_scores.transpose(1, 2).gather(1, labels.unsqueeze(2).expand(-1, -1, log_scores.shape[1]))
    u = pairwise_iou(object_boxes, boxes)
    log_t = alpha * log_s if alpha else torch.zeros_like(u)  # 0 * -inf would be NaN
    if beta:
        log_t = log_t + beta * u.log()
    out = ~point_valid.unsqueeze(1)
    if within is not None:
        out = out | ~inside(centres, within.unsqueeze(2))
    cost = log_t.clamp_(max=0).abs_().masked_fill_(out, math.inf).nan_to_num_(nan=math.inf, posinf=math.inf)
    points = smallest(cost, k)
    return points, cost.gather(2, points), u.gather(2, points)


def _widened(boxes: Tensor) -> Tensor:
    middle, size = 0.5 * (boxes[..., :2] + boxes[..., 2:]), boxes[..., 2:] - boxes[..., :2]
    half = 0.5 * torch.where(size < STRIDES[0], float(STRIDES[1]), size)
    return torch.cat([middle - half, middle + half], dim=-1)
