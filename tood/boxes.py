"""Boxes are (x1, y1, x2, y2), width = x2 - x1 (no +1). IoU and GIoU, pairwise and aligned; decoding; clipping."""

import torch
from torch import Tensor

EPS = 1e-6  # lower bound of a union's or a hull's area
STDS = (0.1, 0.1, 0.2, 0.2)  # of the deltas (dx, dy, dw, dh)
MAX_LOG_RATIO = 4.135166556742356  # |ln(16 / 1000)|: bound of dw and dh


def area(boxes: Tensor) -> Tensor:
    """Area of boxes [..., 4] -> [...]; negative or wrongly positive where a box is turned inside out."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def _intersection(a: Tensor, b: Tensor) -> Tensor:
    low = torch.maximum(a[..., :2], b[..., :2])
    high = torch.minimum(a[..., 2:], b[..., 2:])
    size = (high - low).clamp(min=0)
    return size[..., 0] * size[..., 1]


def aligned_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of a[i] with b[i]; the leading dimensions broadcast."""
    overlap = _intersection(a, b)
    return overlap / (area(a) + area(b) - overlap).clamp(min=EPS)


def pairwise_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of every box of a [..., M, 4] with every box of b [..., N, 4] -> [..., M, N].

    Works coordinate by coordinate, so that no [..., M, N, 2] tensor is ever made.
    """
    ax1, ay1, ax2, ay2 = a.unsqueeze(-2).unbind(-1)
    bx1, by1, bx2, by2 = b.unsqueeze(-3).unbind(-1)
    overlap = (torch.minimum(ax2, bx2) - torch.maximum(ax1, bx1)).clamp_(min=0)
    overlap *= (torch.minimum(ay2, by2) - torch.maximum(ay1, by1)).clamp_(min=0)
    union = (area(a).unsqueeze(-1) + area(b).unsqueeze(-2) - overlap).clamp_(min=EPS)
    return overlap.div_(union)


def overlap_share(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over the area of a (IoF): a [..., M, 4], b [..., N, 4] -> [..., M, N]."""
    overlap = _intersection(a.unsqueeze(-2), b.unsqueeze(-3))
    return overlap / area(a).clamp(min=EPS).unsqueeze(-1)


def aligned_giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalized IoU of a[i] with b[i]: IoU - (hull - union) / hull, in [-1, 1]."""
    overlap = _intersection(a, b)
    union = (area(a) + area(b) - overlap).clamp(min=EPS)
    size = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).clamp(min=0)
    hull = (size[..., 0] * size[..., 1]).clamp(min=EPS)
    return overlap / union - (hull - union) / hull


def distance_to_box(points: Tensor, distances: Tensor) -> Tensor:
    """Points [..., 2] and distances (left, top, right, bottom) [..., 4] -> boxes [..., 4]."""
    return torch.cat([points - distances[..., :2], points + distances[..., 2:]], dim=-1)


def box_to_distance(points: Tensor, boxes: Tensor) -> Tensor:
    """Points [..., 2] and boxes [..., 4] -> distances (left, top, right, bottom) [..., 4], negative outside."""
    return torch.cat([points - boxes[..., :2], boxes[..., 2:] - points], dim=-1)


def delta_to_box(anchors: Tensor, deltas: Tensor, stds: tuple[float, ...] = STDS) -> Tensor:
    """Anchors [..., 4] and deltas (dx, dy, dw, dh) in units of `stds` -> boxes [..., 4]."""
    dx, dy, dw, dh = (d * s for d, s in zip(deltas.unbind(-1), stds, strict=True))
    x1, y1, x2, y2 = anchors.unbind(-1)
    width, height = x2 - x1, y2 - y1
    half_w = 0.5 * width * dw.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    half_h = 0.5 * height * dh.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    x, y = 0.5 * (x1 + x2) + width * dx, 0.5 * (y1 + y2) + height * dy
    return torch.stack([x - half_w, y - half_h, x + half_w, y + half_h], dim=-1)


def box_to_delta(anchors: Tensor, boxes: Tensor, stds: tuple[float, ...] = STDS) -> Tensor:
    """The reverse of `delta_to_box`, for boxes with an area."""
    size, middle = anchors[..., 2:] - anchors[..., :2], 0.5 * (anchors[..., :2] + anchors[..., 2:])
    shift = (0.5 * (boxes[..., :2] + boxes[..., 2:]) - middle) / size
    stretch = ((boxes[..., 2:] - boxes[..., :2]) / size).log()
    deltas = torch.cat([shift, stretch], dim=-1).unbind(-1)
    return torch.stack([delta / std for delta, std in zip(deltas, stds, strict=True)], dim=-1)


def inside(points: Tensor, boxes: Tensor, margin: float = 0.01) -> Tensor:
    """Is the point more than `margin` px inside the box on every side? points [..., 2], boxes [..., 4] -> bool [...]."""
    (x, y), (x1, y1, x2, y2) = points.unbind(-1), boxes.unbind(-1)
    across = torch.minimum(x - x1, x2 - x)
    return torch.minimum(across, torch.minimum(y - y1, y2 - y)) > margin


def clip(boxes: Tensor, height: Tensor | int, width: Tensor | int) -> Tensor:
    """Clip boxes [..., 4] to an image of `height` x `width`."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    zero = torch.zeros((), device=boxes.device, dtype=boxes.dtype)
    w, h = (torch.as_tensor(v, device=boxes.device, dtype=boxes.dtype) for v in (width, height))
    return torch.stack([x1.clamp(zero, w), y1.clamp(zero, h), x2.clamp(zero, w), y2.clamp(zero, h)], dim=-1)
