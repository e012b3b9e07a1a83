"""Where predictions start from: priors at every location of the pyramid P3..P7, each a centre with an anchor around it.

N priors, all levels flattened once: level after level, row-major inside a level, prior by prior at a location.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

STRIDES = (8, 16, 32, 64, 128)
ANCHOR_SIDE = 8  # of the square anchor, in strides


class Priors(NamedTuple):
    centres: Tensor  # [N, 2] (x, y) in px of the network's input
    anchors: Tensor  # [N, 4] px
    strides: Tensor  # [N] px
    counts: tuple[int, ...]  # priors a level; they sum to N


class PriorGrid(NamedTuple):
    """What lies at a location. Hashable, so that priors of one image size are made once."""

    shapes: tuple[tuple[float, float], ...] = ((ANCHOR_SIDE, ANCHOR_SIDE),)  # (width, height) of each anchor, in strides
    centre_offset: float = 0.0  # of a cell's priors, in strides: 0 is the cell's corner (mmdetection's ATSS family), 0.5 FCOS


def _retina_shapes() -> tuple[tuple[float, float], ...]:
    """RetinaNet's nine: ratios height / width by thirds of an octave from 4 strides, ratio by ratio."""
    sides = [4 * 2 ** (i / 3) for i in range(3)]
    return tuple((side / math.sqrt(ratio), side * math.sqrt(ratio)) for ratio in (0.5, 1.0, 2.0) for side in sides)


SQUARE = PriorGrid()
PRIORS = {  # what boxes are regressed from; assignment uses centre and anchor of any
    "point": SQUARE.shapes,
    "anchor": SQUARE.shapes,
    "nine_anchors": _retina_shapes(),
}


def make_priors(level_sizes: tuple[tuple[int, int], ...], device: torch.device, grid: PriorGrid = SQUARE) -> Priors:
    """Priors of a pyramid whose levels are (height, width) cells large; made once for each size."""
    if torch.compiler.is_compiling():  # sizes may be symbols then, and what stands for a tensor must not stay in the cache
        return _make_priors(level_sizes, device, grid)
    return _cached_priors(level_sizes, device, grid)


@functools.lru_cache(maxsize=64)
@torch.inference_mode(False)  # or what a prediction leaves in the cache could not be trained with
def _cached_priors(level_sizes: tuple[tuple[int, int], ...], device: torch.device, grid: PriorGrid) -> Priors:
    return _make_priors(level_sizes, device, grid)


def forget_priors() -> None:
    """Empty the cache: what was made of tensors without content, or must not meet such, may not stay in it."""
    _cached_priors.cache_clear()


def _make_priors(level_sizes: tuple[tuple[int, int], ...], device: torch.device, grid: PriorGrid) -> Priors:
    sides = [float(side) for shape in grid.shapes for side in shape]
    shapes = torch.cat([torch.full((1,), side, device=device) for side in sides]).view(-1, 2)  # [A, 2], not sent there
    centres, anchors, strides = [], [], []
    for (height, width), stride in zip(level_sizes, STRIDES, strict=True):
        y = (torch.arange(height, device=device) + grid.centre_offset) * stride
        x = (torch.arange(width, device=device) + grid.centre_offset) * stride
        at = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).reshape(-1, 1, 2).float()
        centre, half = at.expand(-1, len(shapes), 2).reshape(-1, 2), 0.5 * stride * shapes
        anchors.append(torch.cat([at - half, at + half], dim=-1).reshape(-1, 4))
        centres.append(centre)
        strides.append(torch.full((centre.shape[0],), float(stride), device=device))
    counts = tuple(centre.shape[0] for centre in centres)
    return Priors(torch.cat(centres), torch.cat(anchors), torch.cat(strides), counts)


def of_levels(values: Sequence[float] | Tensor, counts: Sequence[int], device: torch.device) -> Tensor:
    """One value a level -> one value a prior [N]; made on the device, so that no host has to send or wait."""
    if isinstance(values, Tensor):
        return torch.cat([value.expand(count) for value, count in zip(values.unbind(), counts, strict=True)])
    return torch.cat([torch.full((count,), value, device=device) for value, count in zip(values, counts, strict=True)])


def inside_image(priors: Priors, sizes: Tensor, divisor: int = 32) -> Tensor:
    """bool [B, N]: does the prior's cell begin inside the image's own padding? sizes [B, 2] are (height, width) before padding.

    In a batch a smaller image is padded further than to a multiple of `divisor`; priors out there take no part.
    """
    padded = (sizes + divisor - 1) // divisor * divisor
    corners = (priors.centres / priors.strides.unsqueeze(1)).floor() * priors.strides.unsqueeze(1)  # of the prior's cell
    x, y = corners.unbind(1)
    return (x < padded[:, 1:]) & (y < padded[:, :1])
