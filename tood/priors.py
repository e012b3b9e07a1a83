"""Where predictions start from: one prior a location of the pyramid P3..P7, as a point with a square anchor around it.

N points, all levels flattened once: level after level, row-major inside a level.
"""

import functools
from typing import NamedTuple

import torch
from torch import Tensor

STRIDES = (8, 16, 32, 64, 128)
ANCHOR_SIDE = 8  # of the square anchor, in strides
PRIORS = ("point", "anchor")  # what boxes are regressed from; assignment uses centre and anchor of either
CENTRE_OFFSET = 0.0  # of a cell's prior, in strides: priors sit on the cell's corner, as in mmdetection's ATSS family


class Priors(NamedTuple):
    centres: Tensor  # [N, 2] (x, y) in px of the network's input
    anchors: Tensor  # [N, 4] px
    strides: Tensor  # [N] px
    counts: tuple[int, ...]  # priors a level; they sum to N


@functools.lru_cache(maxsize=64)
@torch.inference_mode(False)  # or what a prediction leaves in the cache could not be trained with
def make_priors(level_sizes: tuple[tuple[int, int], ...], device: torch.device) -> Priors:
    """Priors of a pyramid whose levels are (height, width) cells large."""
    centres, strides = [], []
    for (height, width), stride in zip(level_sizes, STRIDES, strict=True):
        y = (torch.arange(height, device=device) + CENTRE_OFFSET) * stride
        x = (torch.arange(width, device=device) + CENTRE_OFFSET) * stride
        centres.append(torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).reshape(-1, 2))
        strides.append(torch.full((height * width,), float(stride), device=device))
    centre, stride = torch.cat(centres).float(), torch.cat(strides)
    half = 0.5 * ANCHOR_SIDE * stride[:, None]
    anchors = torch.cat([centre - half, centre + half], dim=1)
    return Priors(centre, anchors, stride, tuple(h * w for h, w in level_sizes))


def inside_image(priors: Priors, sizes: Tensor, divisor: int = 32) -> Tensor:
    """bool [B, N]: does the prior lie inside the image's own padding? sizes [B, 2] are (height, width) before padding.

    In a batch a smaller image is padded further than to a multiple of `divisor`; priors out there take no part.
    """
    padded = (sizes + divisor - 1) // divisor * divisor
    x, y = priors.centres.unbind(1)
    return (x < padded[:, 1:]) & (y < padded[:, :1])
