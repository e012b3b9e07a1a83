"""Views of the same images, for test-time augmentation: at several scales, each also mirrored."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tood.data.batches import stack_images
from tood.data.transforms import resize, resize_shape


class View(NamedTuple):
    images: Tensor  # u8 [B,3,H,W], padded right and below with 0
    sizes: Tensor  # i64 [B,2] (height, width) of each resized image
    scales: Tensor  # f32 [B,2] (width, height): resized / original
    mirrored: bool = False


def views_of(
    images: Sequence[Tensor], *, long_side: int, short_side: int, scales: Sequence[float], device: torch.device
) -> list[View]:
    """Images u8 [3,H,W] of any sizes, resized for each of `scales`: times long_side and short_side."""
    views = []
    for scale in scales:
        shapes = [resize_shape(*image.shape[-2:], long_side * scale, short_side * scale) for image in images]
        stacked, sizes = stack_images([resize(image, shape) for image, shape in zip(images, shapes, strict=True)])
        ratios = [(shape[1] / image.shape[-1], shape[0] / image.shape[-2]) for image, shape in zip(images, shapes, strict=True)]
        views.append(View(stacked.to(device), sizes.to(device), torch.tensor(ratios, device=device)))
    return views


def with_mirrored(views: Sequence[View], flip: bool) -> Iterator[View]:
    """Each view, and after it, where `flip`, its mirror image, made when it is needed."""
    for view in views:
        yield view
        if flip:
            yield mirror(view)


def mirror(view: View) -> View:
    """The images from right to left, each within its own width: the padding stays at the right."""
    images = view.images.clone()
    for i, width in enumerate(view.sizes[:, 1].tolist()):
        images[i, :, :, :width] = view.images[i, :, :, :width].flip(-1)
    return view._replace(images=images, mirrored=not view.mirrored)
