"""Towers turn a pyramid level into the features that classes and boxes are predicted from.

B images, C channels, n layers, H x W cells of one level.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from tood.deformable import DeformableConv, ModulatedDeformableConv
from tood.group_norm import GroupNorm

# layer i of n -> is it deformable; the published heads that use each
DEFORMABLE = {
    "none": lambda i, n: False,
    "first": lambda i, n: i == 0,  # DDOD: DCNv1
    "first_two": lambda i, n: i < 2,  # TOOD's dconv models: DCNv2 with 4 offset groups
    "last": lambda i, n: i == n - 1,  # VFNet's mdconv models, TSCODE on DCN backbones: DCNv2
}


class TowerFeatures(NamedTuple):
    classes: Tensor  # [B, C, H, W]
    boxes: Tensor  # [B, C, H, W]
    interactive: Tensor | None  # [B, n * C, H, W], what the alignment reads; towers without interaction have none


class ConvStyle(NamedTuple):
    """What the convolutions of a tower look like."""

    groups: int = 32  # of the GroupNorm; 0: no norm
    bias: bool = False  # beside a norm; without one there always is a bias
    deformable: str = "none"  # a key of DEFORMABLE


class ConvNormRelu(nn.Module):
    def __init__(self, in_channels: int, channels: int, style: ConvStyle, deformable: bool = False):
        super().__init__()
        bias = style.bias or not style.groups
        if not deformable:
            self.conv = nn.Conv2d(in_channels, channels, 3, padding=1, bias=bias)
        elif style.deformable == "first":
            self.conv = DeformableConv(in_channels, channels)
        else:
            groups = 4 if style.deformable == "first_two" else 1
            self.conv = ModulatedDeformableConv(in_channels, channels, deform_groups=groups, bias=bias)
        self.norm = GroupNorm(style.groups, channels) if style.groups else None
        nn.init.normal_(self.conv.weight, std=0.01)
        if getattr(self.conv, "bias", None) is not None:
            nn.init.zeros_(self.conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return torch.relu_(x if self.norm is None else self.norm(x))


def _stack(in_channels: int, channels: int, layers: int, style: ConvStyle) -> list[ConvNormRelu]:
    is_deformable = DEFORMABLE[style.deformable]
    return [ConvNormRelu(channels if i else in_channels, channels, style, is_deformable(i, layers)) for i in range(layers)]


class ParallelTower(nn.Module):
    """Two separate stacks of convolutions (RetinaNet, FCOS, ATSS); with SCE's context the one of classes is short and wide."""

    interactive_channels = 0

    def __init__(self, in_channels: int, channels: int, layers: int, style: ConvStyle, wide: bool = False):
        super().__init__()
        self.class_channels, self.box_channels = channels * (2 if wide else 1), channels
        class_layers = max(layers // 2, 1) if wide else layers
        class_inputs = in_channels * (2 if wide else 1)
        self.classes = nn.Sequential(*_stack(class_inputs, self.class_channels, class_layers, style))
        self.boxes = nn.Sequential(*_stack(in_channels, channels, layers, style))

    def forward(self, class_input: Tensor, box_input: Tensor) -> TowerFeatures:
        return TowerFeatures(self.classes(class_input), self.boxes(box_input), None)


class TaskDecomposition(nn.Module):
    """Layer attention, Eq. 2-4: task features from the interactive ones, weighted layer by layer and image by image."""

    def __init__(self, channels: int, layers: int, groups: int, shrink: int = 8):
        super().__init__()
        self.layers = layers
        hidden = max(channels // shrink, 1)
        self.attention = nn.Sequential(
            nn.Conv2d(layers * channels, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, layers, 1), nn.Sigmoid()
        )
        self.reduce = nn.Conv2d(layers * channels, channels, 1, bias=not groups)
        self.norm = GroupNorm(groups, channels) if groups else None
        for conv in (self.attention[0], self.attention[2]):
            nn.init.normal_(conv.weight, std=0.001)
            nn.init.zeros_(conv.bias)
        nn.init.normal_(self.reduce.weight, std=0.01)
        if self.reduce.bias is not None:
            nn.init.zeros_(self.reduce.bias)

    def forward(self, interactive: Tensor, pooled: Tensor) -> Tensor:
        """interactive [B, n * C, H, W], pooled [B, n * C, 1, 1] -> [B, C, H, W]."""
        attention = self.attention(pooled)  # w of Eq. 3, [B, n, 1, 1]
        # w scales the maps or the 1x1 weights, whichever are smaller: the same product. Exported for all sizes, the weights.
        if not torch.compiler.is_exporting() and interactive.shape[2] * interactive.shape[3] < self.reduce.out_channels:
            weighed = interactive.unflatten(1, (self.layers, -1)) * attention.unsqueeze(2)
            reduced = self.reduce(weighed.flatten(1, 2))
        else:
            weight = self.reduce.weight.view(1, -1, self.layers, interactive.shape[1] // self.layers)
            reduced = _weigh((weight * attention.view(-1, 1, self.layers, 1)).flatten(2), interactive)
            if self.reduce.bias is not None:
                reduced = reduced + self.reduce.bias.view(-1, 1, 1)
        return torch.relu_(reduced if self.norm is None else self.norm(reduced))


def _weigh(weight: Tensor, maps: Tensor) -> Tensor:
    """A 1x1 convolution with weights for each image: [B, C', C] and [B, C, H, W] -> [B, C', H, W], in memory as the maps are."""
    size = maps.shape[-2:]
    if not torch.compiler.is_exporting() and maps.is_contiguous(memory_format=torch.channels_last):
        # rows are cells here: the product as below would be read across them, at a sixteenth of the speed in bfloat16
        return torch.bmm(maps.flatten(2).transpose(1, 2), weight.transpose(1, 2)).transpose(1, 2).unflatten(2, size)
    return torch.bmm(weight, maps.flatten(2)).unflatten(2, size)


class InteractiveTower(nn.Module):
    """T-head: one stack of n convolutions shared by both tasks (Eq. 1); each task takes its view by layer attention.

    With DPE's context the shared stack reads what boxes are to see.
    """

    def __init__(self, in_channels: int, channels: int, layers: int, style: ConvStyle):
        super().__init__()
        self.class_channels = self.box_channels = channels
        self.interactive_channels = channels * layers
        self.layers = nn.ModuleList(_stack(in_channels, channels, layers, style))
        self.class_view = TaskDecomposition(channels, layers, style.groups)
        self.box_view = TaskDecomposition(channels, layers, style.groups)

    def forward(self, _class_input: Tensor, box_input: Tensor) -> TowerFeatures:
        outputs, x = [], box_input
        for layer in self.layers:
            x = layer(x)
            outputs.append(x)
        interactive = torch.cat(outputs, dim=1)
        pooled = interactive.mean((2, 3), keepdim=True)
        return TowerFeatures(self.class_view(interactive, pooled), self.box_view(interactive, pooled), interactive)


class ChannelAttention(nn.Module):
    """Effective squeeze and excitation: one gate a channel from the pooled map, then a 1x1 convolution."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.gate = nn.Conv2d(channels, channels, 1)
        self.mix = nn.Conv2d(channels, channels, 1, bias=not groups)
        self.norm = GroupNorm(groups, channels) if groups else nn.Identity()
        nn.init.normal_(self.gate.weight, std=0.001)
        nn.init.zeros_(self.gate.bias)
        nn.init.normal_(self.mix.weight, std=0.01)

    def forward(self, x: Tensor, pooled: Tensor) -> Tensor:
        return nn.functional.silu(self.norm(self.mix(x * torch.sigmoid(self.gate(pooled)))))


class EfficientTower(nn.Module):
    """ET-head (PP-YOLOE): no stack of convolutions; each task takes its view of the level itself by channel attention."""

    interactive_channels = 0

    def __init__(self, in_channels: int, style: ConvStyle):
        super().__init__()
        self.class_channels = self.box_channels = in_channels
        self.class_view = ChannelAttention(in_channels, style.groups)
        self.box_view = ChannelAttention(in_channels, style.groups)

    def forward(self, class_input: Tensor, box_input: Tensor) -> TowerFeatures:
        classes = self.class_view(class_input, class_input.mean((2, 3), keepdim=True)) + class_input
        return TowerFeatures(classes, self.box_view(box_input, box_input.mean((2, 3), keepdim=True)), None)


TOWERS = ("parallel", "t_head", "et_head")


def build_tower(name: str, in_channels: int, channels: int, layers: int, style: ConvStyle, wide: bool = False) -> nn.Module:
    """`wide`: classes come at twice the channels (SCE's context), which the parallel tower alone can take."""
    if name == "parallel":
        return ParallelTower(in_channels, channels, layers, style, wide)
    if name == "t_head":
        return InteractiveTower(in_channels, channels, layers, style)
    return EfficientTower(in_channels, style)
