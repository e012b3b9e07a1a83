"""What somebody gives a detector to look at: taken if it is images, refused with what to give instead if it is not."""

from collections.abc import Iterable, Sequence
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from tood.errors import DataError

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
OUTSIDE = 0.5  # that a float may leave [0, 1] by, as after a bicubic resize; what is further out is of another scale


def listed(images: Any) -> list:
    """Several images as a list. Raises DataError for one alone, whose rows or letters would be taken for images."""
    if isinstance(images, Tensor | str | bytes | PathLike) or _of_numpy(images) or not isinstance(images, Iterable):
        raise DataError(f"predict: expected a list of images, got {_said(images)} alone; give predict([image])")
    return list(images)


def pixels_of(images: Sequence[Any], first: int = 0) -> list[Tensor]:
    """RGB images [3, H, W], uint8 or float in [0, 1] -> uint8. Raises DataError that names an image by its place, from `first`.

    Of floats the range is looked up, all at once: a GPU is waited for once if it has some, and not for uint8.
    """
    for place, image in enumerate(images, first):
        if not isinstance(image, Tensor):
            how = "torch.from_numpy(array), its colours first" if _of_numpy(image) else "a tensor [3, height, width]"
            raise DataError(f"predict: image {place} is {_said(image)}; give {how}")
        if image.dim() != 3 or image.shape[0] != 3 or 0 in image.shape:
            how = _advice(tuple(image.shape))
            raise DataError(f"predict: image {place} is of shape {list(image.shape)}, not RGB [3, height, width]; give {how}")
        if image.dtype != torch.uint8 and image.dtype not in FLOATS:
            raise DataError(f"predict: image {place} is of {image.dtype}; give image.to(torch.uint8), or floats in [0, 1]")
    places = [place for place, image in enumerate(images) if image.dtype != torch.uint8]
    if places:
        bounds = torch.stack([torch.stack(torch.aminmax(images[i])).float().to(images[places[0]].device) for i in places])
        for place, (low, high) in zip(places, bounds.tolist(), strict=True):
            if not (low >= -OUTSIDE and high <= 1 + OUTSIDE):  # nor if they are no numbers
                raise DataError(
                    f"predict: image {first + place} has values from {low:g} to {high:g}, but floats are read as [0, 1]; "
                    "divide them by their largest possible value, or give image.to(torch.uint8) of 0..255"
                )
    return [i if i.dtype == torch.uint8 else (i * 255).round().clamp(0, 255).to(torch.uint8) for i in images]


def _of_numpy(value: Any) -> bool:
    return type(value).__module__ == "numpy"


def _said(value: Any) -> str:
    return f"a {type(value).__module__}.{type(value).__name__}".replace("builtins.", "")


def _advice(shape: tuple[int, ...]) -> str:
    """What somebody who has an image of this shape means by it."""
    if len(shape) == 4 and shape[1] == 3:
        return "the images of a batch one by one, as list(batch)"
    if len(shape) == 3 and shape[2] in (3, 4):
        return "image.permute(2, 0, 1)[:3], the colours first"
    if len(shape) == 3 and shape[0] == 4:
        return "image[:3], without its transparency"
    if len(shape) == 2 or (len(shape) == 3 and shape[0] == 1):
        return "image.expand(3, -1, -1), where it is grey"
    return "three colours of at least one pixel"
