"""The road of an image to the network (kind preprocess): decode, resize, normalise, pad, and its boxes.

The recorded pixels are OpenCV's. Ours come from other decoders and another resize library, so of these the shapes and
scales are compared exactly, pixels at 99 % within two grey levels, and means.
"""

import re

import numpy as np
import torch
from torch import Tensor

from tests.parity.case import Case
from tood.data.batches import normalise, stack_images
from tood.data.decoding import decode
from tood.data.transforms import flip_boxes, resize, resize_boxes, resize_shape

GREY_LEVELS = 2.0  # allowed of a pixel
MEAN_LEVELS = 1.0  # of a mean: OpenCV cuts fractions off where ours are rounded


def entries(spec: dict) -> list[str]:
    return [f"{part}-{i}" for part in ("cases", "boxes") for i in range(len(spec.get(part, [])))]


def run(case: Case) -> None:
    part, index = case.entry.rsplit("-", 1)
    recorded = case.spec[part][int(index)]
    if part == "boxes":
        _boxes(case, recorded)
    elif "batch" in recorded:
        _batch(case, recorded)
    else:
        _image(case, recorded)


def _image(case: Case, recorded: dict) -> None:
    original = _read(case, recorded["image"])
    height, width = original.shape[-2:]
    case.same("original size", [height, width], recorded["ori_shape_hw"])
    case.close("decoded mean", original.double().mean((1, 2)), recorded["decoded_mean_rgb"], MEAN_LEVELS)
    _pixels(case, "decoded pixels", original, recorded["decoded_pixels_yx"], recorded["decoded_pixels_rgb"], GREY_LEVELS)

    size = resize_shape(height, width, *_bounds(recorded))
    case.same("resized size", size, recorded["resized_shape_hw"])
    case.same("scale", [size[1] / width, size[0] / height], recorded["scale_factor_wh"])
    resized = resize(original, size)
    case.close("resized mean", resized.double().mean((1, 2)), recorded["resized_mean_rgb"], MEAN_LEVELS)
    _pixels(case, "resized pixels", resized, recorded["sample_yx"], recorded["resized_pixels_rgb"], GREY_LEVELS)

    stacked, sizes = stack_images([resized])
    case.same("padded size", stacked.shape[1:], recorded["tensor_shape"])
    images = normalise(stacked, sizes)[0]
    std = torch.tensor(case.spec["normalise"]["std_rgb"]).view(3, 1)
    inside = images[:, : size[0], : size[1]]
    step = (MEAN_LEVELS / std.flatten()).numpy()
    case.close("normalised mean", inside.double().mean((1, 2)), recorded["normalised_mean"], step)
    case.close("normalised deviation", inside.double().std((1, 2), correction=0), recorded["normalised_std"], step)
    case.close("padded mean", images.double().mean((1, 2)), recorded["padded_tensor_mean"], step)
    _pixels(case, "normalised pixels", images * std.unsqueeze(2), recorded["sample_yx"],
            np.array(recorded["normalised_pixels_rgb"]) * std.flatten().numpy(), GREY_LEVELS)  # fmt: skip
    exact = (resized - torch.tensor(case.spec["normalise"]["mean_rgb"]).view(3, 1, 1)) / std.unsqueeze(2)
    case.close("normalisation", inside, exact, 1e-5)
    assert not images[:, size[0] :].any(), "padding below is not 0"
    assert not images[:, :, size[1] :].any(), "padding on the right is not 0"


def _batch(case: Case, recorded: dict) -> None:
    images = [_read(case, name) for name in recorded["batch"]]
    stacked, _ = stack_images([resize(i, resize_shape(*i.shape[-2:], *_bounds(recorded))) for i in images])
    case.same("batch", stacked.shape, recorded["batch_tensor_shape"])


def _boxes(case: Case, recorded: dict) -> None:
    size = tuple(recorded["img_shape"])
    height, width = _read(case, recorded["image"]).shape[-2:]
    boxes = resize_boxes(torch.tensor(recorded["boxes"]), (size[1] / width, size[0] / height), size)
    case.close("resized boxes", boxes, recorded["resized_clipped"], 1e-3)
    case.close("flipped boxes", flip_boxes(boxes, size[1]), recorded["flipped_horizontally"], 1e-3)


def _pixels(case: Case, what: str, image: Tensor, places: list, recorded: list, allowed: float) -> None:
    """99 % of the sampled values are within `allowed`."""
    y, x = places
    off = np.abs(image[:, y, x].T.double().numpy() - np.asarray(recorded))
    case.close(f"99th percentile of {what}", np.quantile(off, 0.99), 0.0, allowed)


def _bounds(recorded: dict) -> tuple[int, int]:
    """(long side, short side)."""
    return max(recorded["scale"]), min(recorded["scale"])


def _read(case: Case, name: str) -> Tensor:
    """A file beside the case, or the image that `synth_formula` draws: synth_<height>x<width>."""
    if drawn := re.fullmatch(r"synth_(\d+)x(\d+)", name):
        y, x = torch.meshgrid(*(torch.arange(int(side)) for side in drawn.groups()), indexing="ij")
        red, green = ((3 * x + y) // 4) % 256, ((x + 2 * y + (x * y) // 97) // 3) % 256
        blue = ((x // 16 + y // 16) % 2) * 120 + (x % 16) * 5
        return torch.stack([red, green, blue]).to(torch.uint8)
    return decode(case.path.parent / "images" / name)
