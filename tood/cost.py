"""What a detector costs: its parameters, and the multiply-accumulates of one image. Nothing is computed, only shapes are followed.

Counted: convolutions, matrix products, and two a value for normalisations (scale and shift), the way the papers' figures came
about. A deformable convolution counts as the dense one of its kernel; the convolution that predicts its offsets counts beside
it, the bilinear reads (4 a tap and input channel, below 2 % of it) do not. Biases, activations, pooling, upsampling, decoding
and NMS do not either: together they are some tenths of a percent.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torchvision  # noqa: F401 - registers torchvision::deform_conv2d
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from tood.detectors import ModelConfig, build_detector
from tood.priors import forget_priors

HEIGHT, WIDTH = 800, 1280  # of the input that the papers report for
COCO_CLASSES = 80


class Cost(NamedTuple):
    """GMAC: 10^9 multiply-accumulates (what the papers call FLOPs) of one image. Parameters as plain counts."""

    params: int
    trainable_params: int  # without the backbone's frozen parts; what TOOD's Table 1 calls parameters
    head_params: int
    gmac: float
    head_gmac: float


def count_cost(config: ModelConfig, *, classes: int = COCO_CLASSES, height: int = HEIGHT, width: int = WIDTH) -> Cost:
    """Build the detector without memory and follow one image of height x width (multiples of 32) through it."""
    forget_priors()  # its tensors are real, and in here all must be without content ...
    try:
        with FakeTensorMode(), torch.enable_grad():  # norms are counted for themselves, as the papers do, not inside convolutions
            detector = build_detector(config, classes).eval()
            features, backbone = _macs(lambda: detector.backbone(torch.empty(1, 3, height, width)))
            pyramid, neck = _macs(lambda: detector.neck(features))
            _, head = _macs(lambda: detector.head(pyramid, features[0]))
    finally:
        forget_priors()  # ... and these must not get out
    return Cost(
        params=_count(detector),
        trainable_params=sum(p.numel() for p in detector.parameters() if p.requires_grad),
        head_params=_count(detector.head),
        gmac=(backbone + neck + head) / 1e9,
        head_gmac=head / 1e9,
    )


def _macs(run: Callable) -> tuple:
    """What `run` gives, and the multiply-accumulates on the way."""
    counter = FlopCounterMode(display=False, custom_mapping=_OTHERS)
    with counter:
        result = run()
    return result, counter.get_total_flops() / 2  # the counter takes a multiply-accumulate for two


def _deformable(_x, weight, *_args, out_shape, **_options) -> int:
    batch, _, height, width = out_shape
    return 2 * batch * math.prod(weight) * height * width


def _normalisation(x, *_args, **_options) -> int:
    return 2 * 2 * math.prod(x)


_OTHERS = {
    torch.ops.torchvision.deform_conv2d: _deformable,
    torch.ops.aten.native_batch_norm: _normalisation,
    torch.ops.aten._native_batch_norm_legit_no_training: _normalisation,
    torch.ops.aten.native_group_norm: _normalisation,
}


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
