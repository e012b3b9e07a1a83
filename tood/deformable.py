"""Deformable convolutions: every tap reads, bilinearly, from a place that the features themselves choose.

v1 (Dai et al., 2017)   y(p) = sum_k w_k x(p + p_k + d_k)
v2 (Zhu et al., 2019)   y(p) = sum_k w_k m_k x(p + p_k + d_k), with m_k in (0, 1)

B images, C channels of x [B, C, H, W], K taps of a kernel in row order, D deformable groups: channels of one group read from
the same places. Offsets d [B, 2 D K, h, w]: (dy, dx) tap after tap, in cells of x. Masks m [B, D K, h, w]. Outside x lies 0.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from tood.devices import any_order, known_to_host
from tood.precision import full_precision

SIDE = 3  # of the modules' kernels
TAPS = SIDE * SIDE


class DeformableConv(nn.Module):
    """v1, 3x3, its offsets from a convolution of its own input. Starts as a plain convolution. Never has a bias."""

    def __init__(
        self, in_channels: int, out_channels: int, *, stride: int = 1, padding: int = 1, groups: int = 1, deform_groups: int = 1
    ):
        super().__init__()
        self.stride, self.padding = stride, padding
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, SIDE, SIDE))
        nn.init.kaiming_uniform_(self.weight, nonlinearity="relu")
        self.conv_offset = _starting_at_zero(in_channels, 2 * TAPS * deform_groups, stride, padding)

    def forward(self, x: Tensor) -> Tensor:
        with full_precision(x.device.type):
            offset = self.conv_offset(at_least_float32(x))
        return deformable_conv(x, offset, self.weight, stride=self.stride, padding=self.padding)


class ModulatedDeformableConv(nn.Module):
    """v2, 3x3, its offsets and masks from a convolution of its own input. Starts with offsets 0 and masks 1/2.

    The first two thirds of that convolution's channels are the offsets as they stand, the last third the masks' logits.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: int = 1,
        padding: int = 1,
        groups: int = 1,
        deform_groups: int = 1,
        bias: bool = False,
    ):
        super().__init__()
        self.stride, self.padding = stride, padding
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, SIDE, SIDE))
        bound = (in_channels * TAPS) ** -0.5
        nn.init.uniform_(self.weight, -bound, bound)
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.conv_offset = _starting_at_zero(in_channels, 3 * TAPS * deform_groups, stride, padding)

    def forward(self, x: Tensor) -> Tensor:
        with full_precision(x.device.type):
            chosen = self.conv_offset(at_least_float32(x))
        masks = chosen.shape[1] // 3
        offset, mask = chosen.split((2 * masks, masks), dim=1)
        return deformable_conv(x, offset, self.weight, self.bias, mask=mask.sigmoid(), stride=self.stride, padding=self.padding)


def deformable_conv(
    x: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    stride: int = 1,
    padding: int = 0,
) -> Tensor:
    """v1, or v2 where a mask is given, with offsets from wherever the caller has them. Differentiable in every tensor.

    weight [O, C / groups, kh, kw] tells the groups, offset the deformable groups. Computed in float32 also under autocast,
    whose short mantissa would move the places by whole cells; the result has the dtype of x. A NaN offset counts as 0 (the
    kernels would read outside of memory), so it is the NaN of x or of the mask that reaches the loss, where it is reported.
    """
    with full_precision(x.device.type):
        exact = at_least_float32(x)
        offset, weight, bias, mask = (t if t is None else t.to(exact.dtype) for t in (offset, weight, bias, mask))
        places = offset.nan_to_num(nan=0.0)
        if not known_to_host(x) and torch.are_deterministic_algorithms_enabled():
            y = _Repeatable.apply(exact, places, weight, bias, mask, stride, padding)
        else:
            y = _kernel()(exact, places, weight, bias, stride, padding, mask=mask)
    return y.to(x.dtype)


def _kernel() -> Callable[..., Tensor]:
    """torchvision's, imported where it is needed: it brings torch's compiler, a second of every process that computes nothing."""
    from torchvision.ops import deform_conv2d

    return deform_conv2d


def at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _starting_at_zero(in_channels: int, out_channels: int, stride: int, padding: int) -> nn.Conv2d:
    conv = nn.Conv2d(in_channels, out_channels, SIDE, stride=stride, padding=padding)
    nn.init.zeros_(conv.weight)
    nn.init.zeros_(conv.bias)
    return conv


class _Repeatable(torch.autograd.Function):
    """deform_conv2d whose gradient repeats to the bit on CUDA.

    torchvision adds the gradient of x up in whatever order its threads come, and so refuses to run in torch's deterministic
    mode. Its other gradients are sums in a fixed order; that of x is computed here.
    """

    @staticmethod
    def forward(ctx, x, offset, weight, bias, mask, stride, padding):
        ctx.save_for_backward(x, offset, weight, bias, mask)
        ctx.stride, ctx.padding = stride, padding
        return _kernel()(x, offset, weight, bias, stride, padding, mask=mask)

    @staticmethod
    @once_differentiable
    def backward(ctx, slope):
        x, offset, weight, bias, mask = ctx.saved_tensors
        with any_order():  # the first gradient, which depends on it, is not used
            _, to_weight, to_offset, to_mask, to_bias = torch.ops.torchvision._deform_conv2d_backward(
                slope,
                x,
                weight,
                offset,
                x.new_zeros(len(x), 1) if mask is None else mask,
                x.new_zeros(len(weight)) if bias is None else bias,
                *(ctx.stride, ctx.stride, ctx.padding, ctx.padding, 1, 1),
                x.shape[1] // weight.shape[1],
                offset.shape[1] // (2 * weight[0, 0].numel()),
                mask is not None,
            )
        to_x = input_gradient(slope, x.shape, offset, weight, mask, ctx.stride, ctx.padding) if ctx.needs_input_grad[0] else None
        return to_x, to_offset, to_weight, None if bias is None else to_bias, None if mask is None else to_mask, None, None


def input_gradient(
    slope: Tensor, shape: torch.Size, offset: Tensor, weight: Tensor, mask: Tensor | None, stride: int, padding: int
) -> Tensor:
    """The gradient of x of this `shape` from that of y: what each tap passes back, added to the four cells that it read."""
    b, c, height, width = shape
    kh, kw = weight.shape[2:]
    taps, d, groups = kh * kw, offset.shape[1] // (2 * kh * kw), c // weight.shape[1]
    rows, columns = slope.shape[2:]

    def steps(count: int, *view: int) -> Tensor:
        return torch.arange(count, device=slope.device, dtype=slope.dtype).view(view)

    through_weights = weight.reshape(groups, len(weight) // groups, -1).mT @ slope.reshape(b, groups, -1, rows * columns)
    back = through_weights.view(b, d, c // d, taps, rows, columns)
    if mask is not None:
        back = back * mask.view(b, d, 1, taps, rows, columns)
    back = back.permute(0, 1, 3, 4, 5, 2)  # [B, D, K, h, w, C / D]: a row is what one tap of one cell passes back

    shift_y, shift_x = offset.view(b, d, kh, kw, 2, rows, columns).unbind(4)
    y = steps(rows, rows, 1) * stride - padding + steps(kh, kh, 1, 1, 1) + shift_y
    x = steps(columns, columns) * stride - padding + steps(kw, kw, 1, 1) + shift_x
    # Two cells beyond the border every tap is outside already: the bound changes nothing and keeps indices finite.
    y, x = y.clamp(-2, height + 1), x.clamp(-2, width + 1)
    top, left = y.floor(), x.floor()
    down, right = y - top, x - left
    maps = torch.arange(b * d, device=slope.device).view(b, d, 1, 1, 1, 1) * (height * width)  # where each map's cells begin
    total = slope.new_zeros(b * d * height * width, c // d)
    for row, weight_y in ((top, 1 - down), (top + 1, down)):
        for column, weight_x in ((left, 1 - right), (left + 1, right)):
            outside = (row < 0) | (row >= height) | (column < 0) | (column >= width)
            cell = maps + (row.clamp(0, height - 1) * width + column.clamp(0, width - 1)).long()
            share = (weight_y * weight_x).masked_fill(outside, 0).flatten(2, 3).unsqueeze(-1)
            total.index_add_(0, cell.flatten(), (share * back).flatten(0, 4))
    return total.view(b, d, height, width, c // d).permute(0, 1, 4, 2, 3).reshape(shape)
