"""GroupNorm (Wu & He, 2018) that leaves a map in the precision, and a large one laid out in memory, as it came.

torch does so on a CPU. On CUDA autocast has it computed in float32, and up to torch 2.13 it is so channel by channel, in NCHW:
between two convolutions in bfloat16 and channels_last that is the conversion to and fro of both, several times the traffic of
the norm itself.

B images, C channels, G groups, c channels of a group, H x W cells.
"""

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from tood.devices import known_to_host
from tood.precision import full_precision

RESOLVED = 2**-20  # of a mean square: the least variance that is believed, as sums in float32 can tell no less
LARGE = 2**23  # values of a map from which on traffic weighs more than the launch of a few small kernels


class GroupNorm(nn.GroupNorm):
    """x [B, C, H, W] -> the same, in x's precision; statistics in float32."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == self.weight.dtype or known_to_host(x):
            return super().forward(x)
        if x.numel() < LARGE or torch.compiler.is_compiling():  # a compiler fuses the conversions
            return super().forward(x).to(x.dtype)
        return AsItCame.apply(x, self.weight, self.bias, self.num_groups, self.eps)


class AsItCame(torch.autograd.Function):
    """The norm as two sums over each channel and one pass, y = factor x + offset; its gradient as two sums and three passes."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        with full_precision(x.device.type):
            exact = torch.promote_types(x.dtype, torch.float32)
            means = x.mean((2, 3), dtype=exact).unflatten(1, (groups, -1))  # of channels, [B, G, c]
            length = torch.linalg.vector_norm(x, dim=(2, 3), dtype=exact)  # reads x as it is, and sums in float32
            squares = length.square().unflatten(1, (groups, -1)) / x[0, 0].numel()
            mean = means.mean(2, keepdim=True)  # [B, G, 1]
            # within channels, where no less than RESOLVED of the square is left of a difference, and between them
            variance = torch.maximum(squares - means.square(), RESOLVED * squares) + (means - mean).square()
            scale = torch.rsqrt(variance.mean(2, keepdim=True) + eps)  # 1 / sigma
            factor = weight.view(groups, -1) * scale  # [B, G, c]
            ctx.save_for_backward(x, weight, mean, scale)
            return _weighed_sum(x, factor, torch.addcmul(bias.view(groups, -1), mean, factor, value=-1))

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor):
        x, weight, mean, scale = ctx.saved_tensors
        with full_precision(x.device.type):
            groups = mean.shape[1]
            weight = weight.view(groups, -1)
            sums = dy.sum((2, 3), dtype=mean.dtype).unflatten(1, (groups, -1))  # of dy, [B, G, c]
            products = (dy * x).sum((2, 3), dtype=mean.dtype).unflatten(1, (groups, -1))
            products = (products - mean * sums) * scale  # of dy x', where x' = (x - mean) / sigma
            # dx = (w dy - mean of w dy - x' mean of (w dy x')) / sigma, means over a group
            values = x[0, 0].numel() * weight.shape[1]
            even = (weight * sums).sum(2, keepdim=True) / values
            along = (weight * products).sum(2, keepdim=True) / values * scale
            dx = _weighed_sum(x, -along * scale, (along * mean - even) * scale)
            dx = torch.addcmul(dx, dy, _of_channels(weight * scale), out=dx)
            return dx, products.sum(0).flatten(), sums.sum(0).flatten(), None, None


def _weighed_sum(x: Tensor, factor: Tensor, offset: Tensor) -> Tensor:
    """factor x + offset, computed in float32, written in x's precision and as it lies."""
    factor, offset = (_of_channels(value.expand(-1, -1, x.shape[1] // value.shape[1])) for value in (factor, offset))
    return torch.addcmul(offset, x, factor, out=torch.empty_like(x))


def _of_channels(values: Tensor) -> Tensor:
    """[B, G, c] -> [B, C, 1, 1]."""
    return values.flatten(1)[:, :, None, None]
