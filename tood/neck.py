"""Feature pyramid (FPN): C3..C5 -> P3..P7."""

import torch.nn.functional as F
from torch import Tensor, nn


class FeaturePyramid(nn.Module):
    """Lateral 1x1, top-down sum, 3x3 output; P6 and P7 by stride-2 convolutions from P5 and P6 (no ReLU between)."""

    def __init__(self, in_channels: tuple[int, ...], channels: int):
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(c, channels, 1) for c in in_channels)
        self.output = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in in_channels)
        self.extra = nn.ModuleList(nn.Conv2d(channels, channels, 3, stride=2, padding=1) for _ in range(2))
        for conv in self.modules():
            if isinstance(conv, nn.Conv2d):
                nn.init.xavier_uniform_(conv.weight)
                nn.init.zeros_(conv.bias)

    def forward(self, features: tuple[Tensor, ...]) -> list[Tensor]:
        """(C3, C4, C5) -> [P3, P4, P5, P6, P7], each [B, channels, Hl, Wl]."""
        merged = [lateral(c) for lateral, c in zip(self.lateral, features, strict=True)]
        for i in range(len(merged) - 1, 0, -1):
            merged[i - 1] = merged[i - 1] + F.interpolate(merged[i], size=merged[i - 1].shape[-2:], mode="nearest")
        pyramid = [output(x) for output, x in zip(self.output, merged, strict=True)]
        for extra in self.extra:
            pyramid.append(extra(pyramid[-1]))
        return pyramid
