"""Task alignment, Eq. 5-8: the map M that moves scores, the offsets O that move box sides. Both read interactive features."""

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from tood.devices import pick

ALIGNERS = ("none", "cls", "box", "both")


class AlignmentMap(nn.Module):
    """1x1 -> ReLU -> 3x3: predicts M (1 channel) or O (8 channels) from interactive features (Eq. 7, 8)."""

    def __init__(self, in_channels: int, hidden: int, out_channels: int, std: float, bias: float = 0.0):
        super().__init__()
        self.reduce = nn.Conv2d(in_channels, hidden, 1)
        self.predict = nn.Conv2d(hidden, out_channels, 3, padding=1)
        for conv in (self.reduce, self.predict):
            nn.init.normal_(conv.weight, std=std)
            nn.init.zeros_(conv.bias)
        nn.init.constant_(self.predict.bias, bias)

    def forward(self, interactive: Tensor) -> Tensor:
        return self.predict(torch.relu_(self.reduce(interactive)))


def aligned_log_scores(class_logits: Tensor, map_logits: Tensor) -> Tensor:
    """Eq. 5 in log space: log sqrt(sigmoid(logits) * sigmoid(M)). Finite, and finite in its gradient, for any logits."""
    return 0.5 * (logsigmoid(class_logits) + logsigmoid(map_logits))


def aligned_boxes(boxes: Tensor, offsets: Tensor) -> Tensor:
    """Eq. 6: each side of a box is read, bilinearly, from a place of its own choice.

    boxes [B, 4, H, W] (x1, y1, x2, y2); offsets [B, 8, H, W]: (dy, dx) of each side, in cells -> [B, 4, H, W]. Outside the
    map lies 0. A box that comes out inside out keeps its unsampled sides (mmdetection's rule; the original code has none).
    """
    sampled = sample_sides(boxes, offsets)
    broken = (sampled[:, 0] > sampled[:, 2]) | (sampled[:, 1] > sampled[:, 3])
    return torch.where(broken.unsqueeze(1), boxes, sampled)


def sample_sides(maps: Tensor, offsets: Tensor) -> Tensor:
    """Bilinear sampling of maps [B, S, H, W] at each cell plus its own offset [B, 2 S, H, W] (dy, dx), in cells.

    Element by element, map by map: the gradient adds within one row in a fixed order, so it repeats to the bit on the CPU, and
    on CUDA in deterministic mode (deform_conv2d and grid_sample have no deterministic backward there).
    """
    b, s, h, w = maps.shape
    shift_y, shift_x = offsets.view(b, s, 2, h, w).unbind(2)
    cell_y = torch.arange(h, device=maps.device, dtype=maps.dtype).view(h, 1)
    cell_x = torch.arange(w, device=maps.device, dtype=maps.dtype)
    # Two cells beyond the border every tap is outside already: the bound changes nothing and keeps indices finite.
    y = (cell_y + shift_y).clamp(-2, h + 1)
    x = (cell_x + shift_x).clamp(-2, w + 1)
    # NaN must reach the loss, where it is reported, through the weights and not as an index.
    top, left = y.detach().nan_to_num().floor(), x.detach().nan_to_num().floor()
    down, right = y - top, x - left
    flat = maps.flatten(2)
    total = torch.zeros_like(maps)
    rows, columns = ((top, 1 - down), (top + 1, down)), ((left, 1 - right), (left + 1, right))
    rows = [(row.clamp(0, h - 1) * w, (row < 0) | (row >= h), weight) for row, weight in rows]
    columns = [(column.clamp(0, w - 1), (column < 0) | (column >= w), weight) for column, weight in columns]
    for row, above_or_below, weight_y in rows:
        for column, beside, weight_x in columns:
            tap = pick(flat, (row + column).long().flatten(2)).view_as(maps)
            total = total + (weight_y * weight_x).masked_fill(above_or_below | beside, 0) * tap
    return total
