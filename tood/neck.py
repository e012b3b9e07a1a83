"""Feature pyramids, C3..C5 -> P3..P7: FPN (Lin et al., 2017) and PAFPN (Liu et al., 2018)."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tood.precision import full_precision


class FeaturePyramid(nn.Module):
    """Lateral 1x1, sum from coarse to fine, 3x3 output; in a pafpn also a sum from fine to coarse and a 3x3 after it.

    P6 comes by a convolution of stride 2 from P5 (`extra_from` output) or C5 (input), P7 by another one from P6, in between
    a ReLU where `relu_before_extra`.
    """

    def __init__(
        self,
        in_channels: tuple[int, ...],
        channels: int,
        kind: Literal["fpn", "pafpn"] = "fpn",
        extra_from: Literal["output", "input"] = "output",
        relu_before_extra: bool = False,
    ):
        """in_channels: of (C3, C4, C5); like the features, it may begin with finer maps, which are not used."""
        super().__init__()
        self.extra_from, self.relu_before_extra = extra_from, relu_before_extra
        in_channels = in_channels[-3:]
        coarsest = in_channels[-1] if extra_from == "input" else channels
        self.lateral = nn.ModuleList(nn.Conv2d(c, channels, 1) for c in in_channels)
        self.output = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in in_channels)
        self.extra = nn.ModuleList(Halving(c, channels) for c in (coarsest, channels))
        if kind == "pafpn":
            self.downsample = nn.ModuleList(Halving(channels, channels) for _ in in_channels[1:])
            self.aggregate = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in in_channels[1:])
        self.kind = kind
        for conv in self.modules():
            if isinstance(conv, nn.Conv2d):
                nn.init.xavier_uniform_(conv.weight)
                nn.init.zeros_(conv.bias)

    def forward(self, features: tuple[Tensor, ...]) -> list[Tensor]:
        """(..., C3, C4, C5) -> [P3, P4, P5, P6, P7], each [B, channels, Hl, Wl]."""
        features = features[-3:]
        merged = [lateral(c) for lateral, c in zip(self.lateral, features, strict=True)]
        for i in range(len(merged) - 1, 0, -1):
            merged[i - 1] = merged[i - 1] + enlarged(merged[i], merged[i - 1])
        pyramid = [output(x) for output, x in zip(self.output, merged, strict=True)]
        if self.kind == "pafpn":
            pyramid = self._from_fine_to_coarse(pyramid)
        p6 = self.extra[0](features[-1] if self.extra_from == "input" else pyramid[-1])
        p7 = self.extra[1](F.relu(p6) if self.relu_before_extra else p6)
        return [*pyramid, p6, p7]

    def _from_fine_to_coarse(self, levels: list[Tensor]) -> list[Tensor]:
        """Sums first, all of them; each level's 3x3 afterwards. The finest level stays as it is."""
        sums = [levels[0]]
        for downsample, level in zip(self.downsample, levels[1:], strict=True):
            sums.append(level + downsample(sums[-1]))
        return [sums[0], *(aggregate(level) for aggregate, level in zip(self.aggregate, sums[1:], strict=True))]


class Halving(nn.Conv2d):
    """A convolution of stride 2.

    Of a map one cell wide oneDNN leaves a part of the bfloat16 gradient of the weights unwritten (torch 2.13 to 2.15): whatever
    lay in memory would be learnt from. Such a map is small enough for float32.
    """

    def __init__(self, in_channels: int, channels: int, kernel: int = 3):
        super().__init__(in_channels, channels, kernel, stride=2, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        # sizes are asked last: a program exported for all of them, without autocast, is not to depend on one
        if x.device.type == "cpu" and torch.is_autocast_enabled("cpu") and x.shape[-1] == 1:
            with full_precision("cpu"):
                return super().forward(x.float()).to(torch.get_autocast_dtype("cpu"))
        return super().forward(x)


def enlarged(source: Tensor, like: Tensor) -> Tensor:
    """[B, C, h, w] -> [B, C, H, W] of `like`: each cell takes the nearest's value, in its precision."""
    with full_precision(source.device.type):  # CUDA's autocast would have copies made in float32
        return F.interpolate(source, size=like.shape[-2:], mode="nearest")
