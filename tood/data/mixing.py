"""Several images as one: mosaic and mixup, on pixels of u8 and boxes (x1, y1, x2, y2) in pixels of the result.

Both are the peers' (YOLOX, mmdetection). Their mosaic is a canvas of twice the training size, from which an affine map
then takes a window of that size; here the map is a scale alone, and each tile is resized once, to where it ends up. The
result has the size that its first image would have had alone, so that batches keep their shapes.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tood.boxes import clip
from tood.config import AugmentConfig
from tood.data.decoding import Jpeg
from tood.data.record import ImageRecord

FILL = 114  # grey where no image lies, near ImageNet's mean
MIN_SIDE = 2.0  # px; an object of which no more is left in width or height is dropped
MOSAIC_SCALES = (0.5, 1.0)  # of a mosaic's images, times their training size; 0.5: the whole canvas is seen
MIXUP_SCALES = (0.5, 1.5)  # of the second image, times the size at which it just fits into the first


class Picture(NamedTuple):
    image: Tensor | Jpeg  # u8 [3,H,W], in memory [H,W,3]; a file only where nothing is mixed with it
    boxes: Tensor  # f32 [G,4] of the objects to learn
    labels: Tensor  # i64 [G]
    crowds: Tensor  # f32 [I,4]


class Partners(NamedTuple):
    """The further images that go into one."""

    mosaic: tuple[ImageRecord, ...] = ()  # three, or none
    mixup: ImageRecord | None = None


ALONE = Partners()


class Pairing:
    """Who is mixed with whom in an epoch: drawn from (seed, epoch) for all images at once, whichever rank loads which."""

    def __init__(self, images: Sequence[ImageRecord], config: AugmentConfig, seed: int, epoch: int):
        draw = np.random.default_rng(np.random.SeedSequence((seed, epoch), spawn_key=(1,)))  # not the order's stream
        self.images, count = images, len(images)
        with_objects = np.flatnonzero([not record.crowd.all() for record in images])  # a second image has something to add
        self.is_mosaic = draw.random(count) < config.mosaic
        self.tiles = draw.integers(count, size=(count, 3))
        self.is_mixed = draw.random(count) < (config.mixup if len(with_objects) else 0)
        self.second = draw.choice(with_objects if len(with_objects) else count, size=count)

    def of(self, index: int) -> Partners:
        """Partners of the image at `index`."""
        tiles = tuple(self.images[i] for i in self.tiles[index]) if self.is_mosaic[index] else ()
        return Partners(tiles, self.images[self.second[index]] if self.is_mixed[index] else None)


# -- mosaic ----------------------------------------------------------------------------------------------------------


class MosaicPlan(NamedTuple):
    centre: tuple[int, int]  # (x, y) px where the four meet, inside the picture
    sizes: tuple[tuple[int, int], ...]  # (height, width) of each


def plan_mosaic(draw: np.random.Generator, size: tuple[int, int], images: Sequence[tuple[int, int]]) -> MosaicPlan:
    """A scale and the point where four images of sizes (height, width) meet in a picture of `size`.

    Seen at scale s, the canvas of twice the picture's sides lies around the picture's middle; the centre is uniform in the
    middle half of each of its sides, so that at s = 1 it can be anywhere in the picture.
    """
    scale = draw.uniform(*MOSAIC_SCALES)
    y, x = (int(side * (0.5 + scale * (draw.random() - 0.5)) + 0.5) for side in size)
    return MosaicPlan((x, y), tuple(_fitted(image, size, scale) for image in images))


def mosaic(pictures: Iterable[Picture], centre: tuple[int, int], size: tuple[int, int]) -> Picture:
    """Four pictures with a corner each at `centre` (x, y): top left, top right, bottom left, bottom right; cut to `size`."""
    canvas, parts = _grey(size), []
    for number, picture in enumerate(pictures):
        height, width = picture.image.shape[1:]
        corner = (centre[0] - (width if number % 2 == 0 else 0), centre[1] - (height if number < 2 else 0))
        _paste(canvas, picture.image, corner)
        parts.append(_moved(picture, corner, size))
    return Picture(canvas, *(torch.cat(column) for column in zip(*parts, strict=True)))


# -- mixup -----------------------------------------------------------------------------------------------------------


class MixupPlan(NamedTuple):
    size: tuple[int, int]  # (height, width) of the second image
    corner: tuple[int, int]  # (x, y) px of its top left corner; negative where it is larger than the first


def plan_mixup(draw: np.random.Generator, size: tuple[int, int], image: tuple[int, int]) -> MixupPlan:
    """A scale and a place for a second image of size `image` (height, width) over a picture of `size`."""
    fitted = _fitted(image, size, draw.uniform(*MIXUP_SCALES))
    y, x = (int(draw.integers(min(0, room), max(0, room), endpoint=True)) for room in np.subtract(size, fitted).tolist())
    return MixupPlan(fitted, (x, y))


def mixup(first: Picture, second: Picture, corner: tuple[int, int]) -> Picture:
    """Half of each: the mean of the pixels, rounded down, and the objects of both with their full weight."""
    size = tuple(first.image.shape[1:])
    other = _grey(size)
    _paste(other, second.image, corner)
    image = (first.image & other).add_((first.image ^ other).bitwise_right_shift_(1))  # (a + b) // 2 without leaving u8
    added = _moved(second, corner, size)
    return Picture(image, *(torch.cat(pair) for pair in zip(first[1:], added, strict=True)))


# -- both ------------------------------------------------------------------------------------------------------------


def _fitted(image: tuple[int, int], size: tuple[int, int], scale: float) -> tuple[int, int]:
    """(height, width) of an image, ratio kept, that just fits into `size`, times scale."""
    scale *= min(size[0] / image[0], size[1] / image[1])
    return max(1, int(image[0] * scale + 0.5)), max(1, int(image[1] * scale + 0.5))


def _grey(size: tuple[int, int]) -> Tensor:
    return torch.full((*size, 3), FILL, dtype=torch.uint8).permute(2, 0, 1)


def _paste(canvas: Tensor, image: Tensor, corner: tuple[int, int]) -> None:
    """Copy the part of an image that lies in the canvas when its top left corner is at `corner` (x, y)."""
    (x, y), (height, width) = corner, image.shape[1:]
    left, top = max(x, 0), max(y, 0)
    right, bottom = min(x + width, canvas.shape[2]), min(y + height, canvas.shape[1])
    if left < right and top < bottom:
        canvas[:, top:bottom, left:right] = image[:, top - y : bottom - y, left - x : right - x]


def _moved(picture: Picture, corner: tuple[int, int], size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes, labels and crowds at their new place, cut to `size` (height, width), without what is lost or nearly so."""
    shift = torch.tensor([*corner, *corner], dtype=picture.boxes.dtype)
    boxes, crowds = clip(picture.boxes + shift, *size), clip(picture.crowds + shift, *size)
    kept = ((boxes[:, 2:] - boxes[:, :2]) > MIN_SIDE).all(1)
    seen = (crowds[:, 2:] > crowds[:, :2]).all(1)
    return boxes[kept], picture.labels[kept], crowds[seen]
