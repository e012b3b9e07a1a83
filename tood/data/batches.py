"""What a batch is: samples stacked, padded, and normalised for a backbone.

Shapes: B images of a batch, H x W their padded size.
"""

import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tood.config import DataConfig
from tood.data.decoding import Jpeg, decode_jpegs
from tood.data.targets import Targets, pad_targets
from tood.data.transforms import Sample, resize

MULTIPLE = 32  # batches are padded to a multiple of it: the stride of C5
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # ImageNet's, RGB, of 0..255


class Pixels(NamedTuple):
    """What a backbone was trained to read: channels in which order, less `mean`, over `std` (of 0..255, in that order)."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    bgr: bool


PIXELS = {
    "rgb": Pixels(MEAN, STD, bgr=False),
    "bgr": Pixels(MEAN[::-1], (1.0, 1.0, 1.0), bgr=True),  # Caffe's ResNets, with ImageNet's mean
    "bgr_detectron": Pixels((102.9801, 115.9465, 122.7717), (1.0, 1.0, 1.0), bgr=True),  # the same, with Detectron's mean
}


class Batch(NamedTuple):
    images: Tensor  # u8 [B,3,H,W], in memory [B,H,W,3] as decoders write it; padded right and below with 0
    sizes: Tensor  # i64 [B,2] (height, width) of each resized image
    targets: Targets
    image_ids: Tensor  # i64 [B]
    original_sizes: Tensor  # i64 [B,2] (height, width) in the file
    scales: Tensor  # f32 [B,2] (width, height): resized / original

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        return Batch(*(value.to(device, non_blocking=non_blocking) for value in self))


class Decoded(NamedTuple):
    """A batch whose images are still to be resized, which `to` does once they are on the device (data.resize=device)."""

    images: Tensor  # u8 [B,3,h,w], in memory [B,h,w,3]; each in the top left corner, the rest is undefined
    shapes: tuple[tuple[int, int], ...]  # (height, width) of each
    sizes: tuple[tuple[int, int], ...]  # (height, width) that each is to have
    canvas: tuple[int, int] | None  # (height, width) that all are padded to; None: as little as can be
    batch: Batch  # the rest, its images without content

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        arrived = self.images.to(device, non_blocking=non_blocking)
        images = [image[:, :height, :width] for image, (height, width) in zip(arrived, self.shapes, strict=True)]
        return _resized(images, self, device, non_blocking)


class Files(NamedTuple):
    """A batch whose images are still to be decoded too, which `to` does on the device (data.decode=device)."""

    images: tuple[Jpeg | Tensor, ...]  # files without their content; what is no such file is decoded already, u8 [3,h,w]
    content: Tensor  # u8: of all files, one after the other, as one tensor travels at less cost than many
    lengths: tuple[int, ...]  # bytes of each
    sizes: tuple[tuple[int, int], ...]  # as in Decoded
    canvas: tuple[int, int] | None
    batch: Batch

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        files = (image for image in self.images if isinstance(image, Jpeg))
        contents = self.content.split(list(self.lengths))
        decoded = iter(decode_jpegs([file._replace(content=c) for file, c in zip(files, contents, strict=True)], device))
        images = [
            next(decoded) if isinstance(image, Jpeg) else image.to(device, non_blocking=non_blocking) for image in self.images
        ]
        return _resized(images, self, device, non_blocking)


Loaded = Batch | Decoded | Files  # what a loader yields


def _resized(images: Sequence[Tensor], batch: Decoded | Files, device: torch.device | str, non_blocking: bool) -> Batch:
    """The whole batch, of its images on the device."""
    resized = [resize(image, tuple(size)) for image, size in zip(images, batch.sizes, strict=True)]  # older torch pins lists
    return batch.batch.to(device, non_blocking)._replace(images=stack_images(resized, batch.canvas)[0])


def arriving(batches: Iterable[Loaded], device: torch.device) -> Iterator[Batch]:
    """Batches on the device. To a GPU each travels while the step before it is computed, by a stream of its own."""
    if device.type != "cuda":
        for batch in batches:
            yield batch.to(device)
        return
    road, computing = torch.cuda.Stream(device), torch.cuda.current_stream(device)
    for batch in batches:
        with torch.cuda.stream(road):
            arrived = batch.to(device, non_blocking=True)
        computing.wait_stream(road)
        for value in (*arrived, *arrived.targets):
            if isinstance(value, Tensor):
                value.record_stream(computing)  # its memory is the road's, and must not serve another batch before
        yield arrived


def normalise(images: Tensor, sizes: Tensor, pixels: str = "rgb") -> Tensor:
    """RGB images as the backbone reads them, then 0 in the padding. u8 or f32 [B,3,H,W], sizes [B,2] -> f32 [B,3,H,W], contiguous.

    pixels: a key of PIXELS, backbone.pixels in a configuration.
    """
    mean, std = _statistics(images.device, pixels)
    images = images.flip(1) if PIXELS[pixels].bgr else images
    values = images.to(torch.float32, memory_format=torch.contiguous_format, copy=True).sub_(mean).div_(std)
    rows, columns = (torch.arange(n, device=images.device) for n in images.shape[2:])
    outside_rows, outside_columns = rows >= sizes[:, :1], columns >= sizes[:, 1:]  # [B,H], [B,W]
    return values.masked_fill_((outside_rows[:, :, None] | outside_columns[:, None, :])[:, None], 0)


@functools.cache
def _statistics(device: torch.device, pixels: str) -> tuple[Tensor, Tensor]:
    mean, std = (torch.tensor(values, device=device)[:, None, None] for values in (PIXELS[pixels].mean, PIXELS[pixels].std))
    return mean, std


def stack_images(images: Sequence[Tensor], canvas: tuple[int, int] | None = None) -> tuple[Tensor, Tensor]:
    """u8 images [3,h,w] of any sizes -> u8 [B,3,H,W], padded to `canvas` or a common multiple of 32, and their sizes i64 [B,2]."""
    sizes = torch.tensor([image.shape[1:] for image in images])
    stacked = _empty(len(images), *(canvas or padded(*sizes.amax(0).tolist())), images[0].device)
    for i, image in enumerate(images):
        height, width = image.shape[1:]
        stacked[i, :, :height, :width] = image
        stacked[i, :, height:] = 0
        stacked[i, :, :height, width:] = 0
    return stacked, sizes


def _empty(count: int, height: int, width: int, device: torch.device) -> Tensor:
    """u8 [count, 3, height, width], in memory [count, height, width, 3], not yet written to."""
    return torch.empty((count, height, width, 3), dtype=torch.uint8, device=device).permute(0, 3, 1, 2)


def padded(height: int, width: int) -> tuple[int, int]:
    """The size that images of [height, width] are padded to."""
    return -(-height // MULTIPLE) * MULTIPLE, -(-width // MULTIPLE) * MULTIPLE


def buckets(config: DataConfig) -> tuple[tuple[int, int], ...]:
    """(height, width) of what training batches are padded to, the smallest first: landscape, portrait, and both in one batch."""
    short, long = sorted((config.short_side, config.long_side))
    sides = {short + (long - short) * k / config.buckets for k in range(1, config.buckets + 1)}
    landscape = {padded(short, math.ceil(side)) for side in sides}
    portrait = {(width, height) for height, width in landscape}
    return tuple(sorted(landscape | portrait | {padded(long, long)}, key=lambda shape: (math.prod(shape), shape)))


def collate(samples: list[Sample], shapes_allowed: Sequence[tuple[int, int]] = ()) -> Loaded:
    """Samples that are to be resized on the device come as a Decoded, or as Files where some are to be decoded there.

    shapes_allowed: pad to the first of them that is enough.
    """
    as_files = any(isinstance(s.image, Jpeg) for s in samples)
    shapes, sizes = tuple(tuple(s.image.shape[1:]) for s in samples), tuple(s.size for s in samples)
    height, width = map(max, zip(*sizes, strict=True))
    canvas = next(((h, w) for h, w in shapes_allowed if h >= height and w >= width), None)
    resized = shapes == sizes and not as_files
    images = _empty(len(samples), 0, 0, torch.device("cpu")) if not resized else stack_images([s.image for s in samples], canvas)[0]
    batch = Batch(
        images,
        torch.tensor(sizes),
        pad_targets([s.boxes for s in samples], [s.labels for s in samples], [s.crowds for s in samples]),
        torch.tensor([s.image_id for s in samples]),
        torch.tensor([s.original_size for s in samples]),
        torch.tensor([s.scale for s in samples], dtype=torch.float32),
    )
    if resized:
        return batch
    if as_files:
        contents = [s.image.content for s in samples if isinstance(s.image, Jpeg)]
        nothing = torch.empty(0, dtype=torch.uint8)
        images = tuple(s.image._replace(content=nothing) if isinstance(s.image, Jpeg) else s.image for s in samples)
        return Files(images, torch.cat(contents), tuple(map(len, contents)), sizes, canvas, batch)
    stacked = _empty(len(samples), *map(max, zip(*shapes, strict=True)), torch.device("cpu"))
    for i, (sample, (height, width)) in enumerate(zip(samples, shapes, strict=True)):
        stacked[i, :, :height, :width] = sample.image
    return Decoded(stacked, shapes, sizes, canvas, batch)
