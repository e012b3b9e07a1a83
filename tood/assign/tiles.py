"""Which points may matter to an object, found without looking at each: neighbours come in tiles, and a tile has a hull.

Consecutive points lie side by side on the image, and so do their boxes. An object that does not touch the hull of a tile's boxes
overlaps none of them. Nothing is lost by this, and of the table of all objects and points a few hundredths are left to compute.

B images, G objects, N points, T = N / TILE tiles rounded up, P pairs.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

TILE = 16  # points; a power of two


class Pairs(NamedTuple):
    """Objects and points, or tiles, by image, object and point in rising order."""

    image: Tensor  # int64 [P]
    row: Tensor  # int64 [P]: image * G + object
    point: Tensor  # int64 [P]


def tiled(boxes: Tensor) -> Tensor:
    """[..., N, 4] -> [..., T, 4, TILE]; the last tile is filled up with what is no number."""
    missing = -boxes.shape[-2] % TILE
    filled = pad(boxes, (0, 0, 0, missing), value=torch.nan) if missing else boxes
    return filled.unflatten(-2, (-1, TILE)).transpose(-1, -2).contiguous()


def touching(objects: Tensor, tiles: Tensor) -> Pairs:
    """Objects [B, G, 4] and boxes of points in tiles [B or 1, T, 4, TILE] -> the pairs that have more than an edge in common."""
    image, thing, tile = _touch(objects.unsqueeze(2), _hulls(tiles).unsqueeze(1)).nonzero(as_tuple=True)
    row = image * objects.shape[1] + thing
    where = image * tiles.shape[1] + tile if len(tiles) > 1 else tile
    members = tiles.flatten(0, 1).index_select(0, where).transpose(1, 2)
    touch = _touch(objects.flatten(0, 1).index_select(0, row).unsqueeze(1), members)
    pair, place = touch.nonzero(as_tuple=True)
    return Pairs(image[pair], row[pair], tile[pair] * TILE + place)


def _touch(a: Tensor, b: Tensor) -> Tensor:
    """Of boxes [..., 4] that broadcast: no edge of one lies beyond the other. False where a number is none."""
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = a.unbind(-1), b.unbind(-1)
    return (bx2 > ax1).logical_and_(bx1 < ax2).logical_and_(by2 > ay1).logical_and_(by1 < ay2)


def _hulls(tiles: Tensor) -> Tensor:
    """The box around each tile's boxes: [..., T, 4, TILE] -> [..., T, 4]. What is no number does not count."""
    low, high = tiles[..., :2, :], tiles[..., 2:, :]
    while low.shape[-1] > 1:  # by halves, since amin and amax would let one NaN hide all others
        half = low.shape[-1] // 2
        low, high = torch.fmin(low[..., :half], low[..., half:]), torch.fmax(high[..., :half], high[..., half:])
    return torch.cat([low, high], dim=-2).squeeze(-1)
