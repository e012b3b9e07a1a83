"""Tensors that are recorded by a seed alone: the same values on any platform, from numpy's frozen MT19937 stream.

value = mean + std * sqrt(3) * (2 u - 1), u uniform in [0, 1) in C order, seeded by the CRC-32 of a tag: `std` is the true
standard deviation of a uniform distribution. A state dict's tensors have the tag "<seed>|<name>", mean and std by name.
"""

import math
import re
import zlib

import numpy as np
import torch
from torch import Tensor


class FanIn(float):
    """A gain: std = gain / sqrt(fan in)."""


# name pattern | mean | std; the first match holds
_CLASS_LAYERS = "tood_cls|cls_prob_module.2|gfl_cls|atss_cls|conv_cls|retina_cls|vfnet_cls"
RULES = (
    (r"running_mean$", 0.0, 0.1),
    (r"running_var$", 1.0, 0.2),
    (rf"({_CLASS_LAYERS})\.bias$", -1.0, 0.5),
    (r"tood_reg\.bias$", 1.0, 0.2),  # anchor-free; anchor-based: mean 0
    (r"(tood_reg|atss_reg|retina_reg|ddod_reg)\.weight$", 0.0, FanIn(0.5)),
    (r"reg_offset_module\.2\.bias$", 0.0, 0.5),
    (r"conv_reg\.bias$", 1.0, 0.2),
    (r"conv_reg\.weight$", 0.0, FanIn(0.5)),
    (r"scales?\.\d+\.scale$", 1.0, 0.1),
)


def tensor(tag: str, shape: list[int], mean: float = 0.0, std: float = 1.0) -> Tensor:
    uniform = np.random.RandomState(zlib.crc32(tag.encode())).random_sample(tuple(shape))
    return torch.from_numpy(np.asarray(mean + std * math.sqrt(3.0) * (2.0 * uniform - 1.0)).astype(np.float32))


def fill(shapes: dict[str, list[int]], seed: str, anchor_free: bool = True) -> dict[str, Tensor]:
    """The state dict, under the peer's names, that `seed` and the shapes stand for."""
    return {key: _parameter(key, shape, seed, anchor_free) for key, shape in shapes.items()}


def _parameter(key: str, shape: list[int], seed: str, anchor_free: bool) -> Tensor:
    if key.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    mean, std = next(((mean, std) for pattern, mean, std in RULES if re.search(pattern, key)), _default(key, len(shape)))
    if key.endswith("tood_reg.bias") and not anchor_free:
        mean = 0.0
    if isinstance(std, FanIn):
        std = std / math.sqrt(math.prod(shape[1:]))
    return tensor(f"{seed}|{key}", shape, mean, std)


def _default(key: str, dimensions: int) -> tuple[float, float]:
    if dimensions == 0:
        return 1.0, 0.1
    if dimensions == 1:
        return (1.0, 0.2) if key.endswith("weight") else (0.0, 0.1)
    return 0.0, FanIn(1.0)
