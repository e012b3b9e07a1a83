"""From a file to a sample: decode, resize with the ratio kept, mix with others, flip. Boxes are (x1, y1, x2, y2) in pixels."""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from tood.boxes import clip
from tood.config import DataConfig
from tood.data import cache
from tood.data.decoding import Jpeg, decode, read_jpeg
from tood.data.mixing import ALONE, Partners, Picture, mixup, mosaic, plan_mixup, plan_mosaic
from tood.data.record import ImageRecord
from tood.errors import DataError


class Sample(NamedTuple):
    """One image with the objects to learn (crowds are kept apart), after resize and flip. Of several mixed: the first's facts."""

    image: Tensor | Jpeg  # u8 [3,H,W] RGB; with data.resize=device still to be resized to `size`, with data.decode=device a file
    boxes: Tensor  # f32 [G,4] xyxy px of the resized image
    labels: Tensor  # i64 [G]
    image_id: int
    original_size: tuple[int, int]  # (height, width) in the file
    scale: tuple[float, float]  # (width, height): resized / original
    crowds: Tensor  # f32 [I,4] xyxy px of the resized image: regions that hold objects which nobody counted
    size: tuple[int, int]  # (height, width) of the resized image


def load_sample(
    record: ImageRecord,
    config: DataConfig,
    *,
    training: bool,
    seed: tuple[int, ...] = (),
    partners: Partners = ALONE,
    scale: float = 1.0,
) -> Sample:
    """Decode and resize an image; in training also draw its scale and flip, and mix it with its `partners`.

    All randomness comes from `seed` (run seed, epoch, image id), so a sample depends neither on the number of loader
    processes nor on what was loaded before. `scale`: times the configuration's sides, for an evaluation's further views.
    Raises DataError as `decode_record`.
    """
    draw = np.random.default_rng(seed) if training else None
    short_side = config.short_side * scale
    if training and config.short_side_min > 0:
        short_side = int(draw.integers(config.short_side_min, config.short_side, endpoint=True))
    size = resize_shape(record.height, record.width, config.long_side * scale, short_side)
    flips = training and draw.random() < config.flip
    if partners == ALONE:
        as_decoded, as_file = (training and where == "device" for where in (config.resize, config.decode))
        picture = _picture(record, size, flips=flips, as_decoded=as_decoded, as_file=as_file)
        return _sample(record, picture, size)
    if partners.mosaic:
        tiles = (record, *partners.mosaic)
        plan = plan_mosaic(draw, size, [(tile.height, tile.width) for tile in tiles])
        picture = mosaic(map(_picture, tiles, plan.sizes), plan.centre, size)
    else:
        picture = _picture(record, size)
    if partners.mixup:
        second = partners.mixup
        plan = plan_mixup(draw, size, (second.height, second.width))
        picture = mixup(picture, _picture(second, plan.size), plan.corner)
    image, boxes, labels, crowds = picture
    if flips:
        image, boxes, crowds = image.flip(-1), flip_boxes(boxes, size[1]), flip_boxes(crowds, size[1])
    return _sample(record, Picture(image, boxes, labels, crowds), size)


def _sample(record: ImageRecord, picture: Picture, size: tuple[int, int]) -> Sample:
    scale, (image, boxes, labels, crowds) = (size[1] / record.width, size[0] / record.height), picture
    return Sample(image, boxes, labels, record.image_id, (record.height, record.width), scale, crowds, size)


def _picture(
    record: ImageRecord, size: tuple[int, int], *, flips: bool = False, as_decoded: bool = False, as_file: bool = False
) -> Picture:
    """The image of a record with its objects and, apart from them, its crowds.

    The image is resized unless `as_decoded`, and decoded unless it goes `as_file` and is one for `decode_jpegs`.
    """
    image = _file(record, flips) if as_file else None
    if image is None:
        image = decode_record(record)
        early = flips and (as_decoded or math.prod(image.shape[1:]) < math.prod(size))  # the same pixels, where there are fewer
        if early:
            image = image.flip(-1)
        if not as_decoded:
            image = resize(image, size)
        if flips and not early:
            image = image.flip(-1)
    scale = (size[1] / record.width, size[0] / record.height)
    boxes = resize_boxes(torch.from_numpy(record.boxes), scale, size)
    if flips:
        boxes = flip_boxes(boxes, size[1])
    crowd = torch.from_numpy(record.crowd)
    return Picture(image, boxes[~crowd], torch.from_numpy(record.labels)[~crowd], boxes[crowd])


def decode_record(record: ImageRecord) -> Tensor:
    """The image of a record, u8 [3,H,W] RGB, from its cache if it has one. Raises DataError where it is broken or has not the
    annotated size.
    """
    if record.cache is not None and (kept := cache.read(record)) is not None:
        return kept
    image = decode(record.path)
    _check_size(record, *image.shape[1:])
    if record.cache is not None:
        cache.keep(record, image)
    return image


def _file(record: ImageRecord, mirrored: bool) -> Jpeg | None:
    """Of a record whose image `decode_jpegs` can decode. Raises DataError as `decode_record`, for what its header shows."""
    jpeg = read_jpeg(record.path)
    if jpeg is None:
        return None
    _check_size(record, *jpeg.shape[1:])
    return jpeg._replace(mirrored=mirrored)


def _check_size(record: ImageRecord, height: int, width: int) -> None:
    if (height, width) != (record.height, record.width):
        raise DataError(
            f"{record.path}: image {record.image_id} is {width} pixels wide and {height} high, its annotations say "
            f"{record.width} x {record.height}; correct the JSON, or restore the image it was made for"
        )


def resize_shape(height: int, width: int, long_side: float, short_side: float) -> tuple[int, int]:
    """(height, width) of the largest image of the same ratio with sides <= long_side and short_side, at least 1 px."""
    scale = min(long_side / max(height, width), short_side / min(height, width))
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    """u8 [3,H,W] -> u8 [3,*size], bilinear without antialiasing, within a grey level of OpenCV's; memory as in `decode`.

    Of a mirrored image it is the mirror image, to the bit. On a GPU by way of float32: within a grey level of the CPU's.
    """
    if image.shape[1:] == size:
        return image
    batch = image.permute(1, 2, 0).unsqueeze(0).permute(0, 3, 1, 2)  # strides that say channels-last: no repacking
    if image.device.type == "cpu":
        return interpolate(batch, size, mode="bilinear", align_corners=False).squeeze(0)
    return interpolate(batch.float(), size, mode="bilinear", align_corners=False).squeeze(0).round_().to(torch.uint8)


def resize_boxes(boxes: Tensor, scale: tuple[float, float], size: tuple[int, int]) -> Tensor:
    """Boxes [G,4] times scale (width, height), clipped to the resized image's size (height, width)."""
    return clip(boxes * torch.tensor([*scale, *scale], dtype=boxes.dtype), *size)


def flip_boxes(boxes: Tensor, width: Tensor | int) -> Tensor:
    """Boxes [G,4] of the horizontally mirrored image; its width, or the width [G] of each box's own."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack([width - x2, y1, width - x1, y2], dim=-1)
