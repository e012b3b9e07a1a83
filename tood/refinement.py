"""Star-shaped refinement (VFNet): a coarse box says where to look again, for a finer box and for the class.

B images, C channels, H x W cells of one level.
"""

import torch
from torch import Tensor, nn

from tood.deformable import deformable_conv
from tood.priors import STRIDES
from tood.towers import ConvNormRelu, ConvStyle

GRADIENT = 0.1  # share of the gradient that the coarse box gets from where its star has looked


class StarConv(nn.Module):
    """A 3x3 convolution whose nine taps lie on the box: its corners, the middles of its sides and the point itself."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, channels, 3, 3))
        nn.init.normal_(self.weight, std=0.01)

    def forward(self, x: Tensor, offsets: Tensor) -> Tensor:
        return torch.relu_(deformable_conv(x, offsets, self.weight, padding=1))


class StarRefinement(nn.Module):
    """The layers of a head whose boxes are predicted twice."""

    def __init__(self, channels: int, style: ConvStyle):
        super().__init__()
        self.coarse = ConvNormRelu(channels, channels, style)  # before the coarse box is predicted
        self.box_star, self.class_star = StarConv(channels), StarConv(channels)
        self.boxes = nn.Conv2d(channels, 4, 3, padding=1)  # factors of the coarse distances
        self.scales = nn.Parameter(torch.ones(len(STRIDES)))
        nn.init.normal_(self.boxes.weight, std=0.01)
        nn.init.zeros_(self.boxes.bias)


def star_offsets(distances: Tensor) -> Tensor:
    """Distances [B, 4, H, W] (left, top, right, bottom, in strides) -> offsets [B, 18, H, W], (dy, dx) of each tap.

    What a regular 3x3 kernel adds to its centre is taken off again, so that the taps lie exactly on the box.
    """
    followed = (1 - GRADIENT) * distances.detach() + GRADIENT * distances
    left, top, right, bottom = followed.unbind(1)
    zero = torch.zeros_like(left)
    taps = []
    for row, dy in enumerate((-top, zero, bottom)):
        for column, dx in enumerate((-left, zero, right)):
            taps += [dy - (row - 1), dx - (column - 1)]
    return torch.stack(taps, dim=1)
