"""Towers turn a pyramid level into the features that classes and boxes are predicted from.

B images, C channels, n layers, H x W cells of one level.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn


class TowerFeatures(NamedTuple):
    classes: Tensor  # [B, C, H, W]
    boxes: Tensor  # [B, C, H, W]
    interactive: Tensor | None  # [B, n * C, H, W], what the alignment reads; towers without interaction have none


class ConvNormRelu(nn.Module):
    def __init__(self, in_channels: int, channels: int, groups: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        self.norm = nn.GroupNorm(groups, channels)
        nn.init.normal_(self.conv.weight, std=0.01)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu_(self.norm(self.conv(x)))


def _stack(in_channels: int, channels: int, layers: int, groups: int) -> list[ConvNormRelu]:
    return [ConvNormRelu(channels if i else in_channels, channels, groups) for i in range(layers)]


class ParallelTower(nn.Module):
    """Two separate stacks of convolutions (RetinaNet, FCOS, ATSS)."""

    def __init__(self, in_channels: int, channels: int, layers: int, groups: int):
        super().__init__()
        self.classes = nn.Sequential(*_stack(in_channels, channels, layers, groups))
        self.boxes = nn.Sequential(*_stack(in_channels, channels, layers, groups))

    def forward(self, x: Tensor) -> TowerFeatures:
        return TowerFeatures(self.classes(x), self.boxes(x), None)


class TaskDecomposition(nn.Module):
    """Layer attention, Eq. 2-4: task features from the interactive ones, weighted layer by layer and image by image."""

    def __init__(self, channels: int, layers: int, groups: int, shrink: int = 8):
        super().__init__()
        self.layers = layers
        hidden = max(channels // shrink, 1)
        self.attention = nn.Sequential(
            nn.Conv2d(layers * channels, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, layers, 1), nn.Sigmoid()
        )
        self.reduce = nn.Conv2d(layers * channels, channels, 1, bias=False)
        self.norm = nn.GroupNorm(groups, channels)
        for conv in (self.attention[0], self.attention[2]):
            nn.init.normal_(conv.weight, std=0.001)
            nn.init.zeros_(conv.bias)
        nn.init.normal_(self.reduce.weight, std=0.01)

    def forward(self, interactive: Tensor, pooled: Tensor) -> Tensor:
        """interactive [B, n * C, H, W], pooled [B, n * C, 1, 1] -> [B, C, H, W]."""
        b, _, h, w = interactive.shape
        attention = self.attention(pooled).view(b, 1, self.layers, 1)  # w of Eq. 3
        # w scales the 1x1 weights instead of the feature maps: the same product, and no scaled copy of the maps.
        weight = self.reduce.weight.view(1, -1, self.layers, interactive.shape[1] // self.layers) * attention
        reduced = torch.bmm(weight.flatten(2), interactive.flatten(2)).view(b, -1, h, w)
        return torch.relu_(self.norm(reduced))


class InteractiveTower(nn.Module):
    """T-head: one stack of n convolutions shared by both tasks (Eq. 1); each task takes its view by layer attention."""

    def __init__(self, in_channels: int, channels: int, layers: int, groups: int):
        super().__init__()
        self.layers = nn.ModuleList(_stack(in_channels, channels, layers, groups))
        self.class_view = TaskDecomposition(channels, layers, groups)
        self.box_view = TaskDecomposition(channels, layers, groups)

    def forward(self, x: Tensor) -> TowerFeatures:
        outputs = []
        for layer in self.layers:
            x = layer(x)
            outputs.append(x)
        interactive = torch.cat(outputs, dim=1)
        pooled = interactive.mean((2, 3), keepdim=True)
        return TowerFeatures(self.class_view(interactive, pooled), self.box_view(interactive, pooled), interactive)


TOWERS = {"parallel": ParallelTower, "t_head": InteractiveTower}
