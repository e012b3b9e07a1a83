"""Box forms: what the numbers that a head regresses mean. Each decodes them, relative to a prior, into a box.

Everything is in strides of the level, so that one predictor serves all levels. P priors of a level.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from tood.boxes import STDS, delta_to_box, distance_to_box

MAX_LOG_DISTANCE = 16.0  # of a distance in strides: far beyond any image, and areas and gradients stay finite
BASE_REACH = 2  # FoveaBox's base edge, in strides: 16 px on P3
LONGEST_REACH = 8  # VFNet's, in strides: 64 px on P3, FCOS's upper bound of the level


class Location(NamedTuple):
    centres: Tensor  # [P, 2] in strides
    anchors: Tensor  # [P, 4] in strides
    stride: int  # px


class BoxForm(NamedTuple):
    decode: Callable[[Tensor, Tensor, Location], Tensor]  # raw [B, P, channels], learnt scale of the level -> boxes [B, P, 4]
    channels: int = 4
    scaled: bool = True  # has a learnt scale a level
    of_anchor: bool = False  # relative to an anchor's size, not to a point
    keeps_raw: bool = False  # its objective regresses the raw numbers themselves


def _exp(values: Tensor) -> Tensor:
    return values.clamp(max=MAX_LOG_DISTANCE).exp()


def _distance(raw: Tensor, scale: Tensor, at: Location) -> Tensor:
    return distance_to_box(at.centres, scale * _exp(raw))


def _distance_px(raw: Tensor, scale: Tensor, at: Location) -> Tensor:
    return distance_to_box(at.centres, _exp(scale * raw) / at.stride)


def _distance_relu(raw: Tensor, scale: Tensor, at: Location) -> Tensor:
    return distance_to_box(at.centres, (scale * raw).clamp(min=0))


def _distance_base(raw: Tensor, _scale: Tensor, at: Location) -> Tensor:
    return distance_to_box(at.centres, BASE_REACH * _exp(raw))


def _distance_reach(raw: Tensor, scale: Tensor, at: Location) -> Tensor:
    return distance_to_box(at.centres, LONGEST_REACH * _exp(scale * raw))


def _delta(raw: Tensor, scale: Tensor, at: Location) -> Tensor:
    return delta_to_box(at.anchors, scale * raw, STDS)


def _delta_unit(raw: Tensor, _scale: Tensor, at: Location) -> Tensor:
    return delta_to_box(at.anchors, raw, (1.0, 1.0, 1.0, 1.0))


def distribution(bins: int, width: float) -> BoxForm:
    """GFL: each side a distribution over 0, width, .. bins * width strides, whose mean is the distance (GFL, Eq. 3-5)."""

    def decode(raw: Tensor, scale: Tensor, at: Location) -> Tensor:
        values = torch.arange(bins + 1, device=raw.device, dtype=raw.dtype) * width
        shares = (scale * raw).unflatten(-1, (4, bins + 1)).softmax(-1)
        return distance_to_box(at.centres, (shares * values).sum(-1))

    return BoxForm(decode, channels=4 * (bins + 1), keeps_raw=True)


BOX_FORMS = {
    "distance": BoxForm(_distance),  # scale * e^x strides (TOOD)
    "distance_px": BoxForm(_distance_px),  # e^(scale * x) pixels (FCOS)
    "distance_relu": BoxForm(_distance_relu),  # max(scale * x, 0) strides (FCOS with its improvements)
    "distance_base": BoxForm(_distance_base, scaled=False, keeps_raw=True),  # e^x base edges of 2 strides (FoveaBox)
    "distance_reach": BoxForm(_distance_reach),  # e^(scale * x) * 8 strides (VFNet)
    "delta": BoxForm(_delta, of_anchor=True),  # (dx, dy, dw, dh) with standard deviations .1 .1 .2 .2 (ATSS, PAA, DDOD)
    "delta_unit": BoxForm(_delta_unit, scaled=False, of_anchor=True, keeps_raw=True),  # without (RetinaNet)
    "distribution": distribution(16, 1.0),  # of each side, over 0..16 strides (GFL)
}
