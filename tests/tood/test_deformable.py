"""Deformable convolutions against the definition written out, their start, their gradients, and where they compute."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tood.deformable import DeformableConv, ModulatedDeformableConv, _Repeatable, deformable_conv, input_gradient

GEOMETRIES = [  # channels in, out, groups, deformable groups, stride, padding, height, width
    (2, 3, 1, 1, 1, 1, 5, 4),
    (4, 4, 2, 1, 2, 1, 5, 7),
    (4, 6, 1, 2, 2, 0, 6, 5),
    (4, 4, 4, 4, 1, 2, 3, 2),
    (2, 2, 1, 2, 1, 1, 1, 1),
]


def inputs(cin, cout, groups, deform_groups, stride, padding, height, width, seed=0) -> dict[str, Tensor]:
    """Two images; offsets reach beyond every border, some are whole cells."""
    draw = torch.Generator().manual_seed(seed)
    h, w = ((n + 2 * padding - 3) // stride + 1 for n in (height, width))

    def normal(*shape):
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    offset = 2 * normal(2, 18 * deform_groups, h, w)
    offset[:, ::5] = offset[:, ::5].round()
    return {
        "x": normal(2, cin, height, width),
        "offset": offset,
        "weight": normal(cout, cin // groups, 3, 3),
        "bias": normal(cout),
        "mask": normal(2, 9 * deform_groups, h, w).sigmoid(),
    }


def bilinear(plane: Tensor, y: float, x: float) -> float:
    total = 0.0
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < plane.shape[0] and 0 <= column < plane.shape[1]:
                total += (1 - abs(y - row)) * (1 - abs(x - column)) * plane[row, column].item()
    return total


def written_out(x, offset, weight, bias, mask, stride, padding) -> Tensor:
    """The sum of the definition, cell by cell and tap by tap."""
    batch, cin = x.shape[:2]
    cout, per_group = weight.shape[:2]
    deform_groups, (h, w) = offset.shape[1] // 18, offset.shape[2:]
    y = torch.zeros(batch, cout, h, w, dtype=x.dtype)
    for b, o, i, j in torch.cartesian_prod(*map(torch.arange, y.shape)).tolist():
        for c in range(per_group):
            source = o // (cout // (cin // per_group)) * per_group + c
            d = source // (cin // deform_groups)
            for tap in range(9):
                dy, dx = offset[b, 18 * d + 2 * tap : 18 * d + 2 * tap + 2, i, j].tolist()
                value = bilinear(x[b, source], i * stride - padding + tap // 3 + dy, j * stride - padding + tap % 3 + dx)
                y[b, o, i, j] += weight[o, c, tap // 3, tap % 3] * value * (1 if mask is None else mask[b, 9 * d + tap, i, j])
    return y if bias is None else y + bias.view(-1, 1, 1)


@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_every_tap_reads_where_its_offset_says(geometry, modulated):
    given, (stride, padding) = inputs(*geometry), geometry[4:6]
    if not modulated:
        given["mask"] = given["bias"] = None
    torch.testing.assert_close(
        deformable_conv(**given, stride=stride, padding=padding), written_out(**given, stride=stride, padding=padding)
    )


def test_without_offsets_it_is_a_convolution():
    given = inputs(4, 6, 2, 2, 2, 1, 7, 6)
    x, weight, bias = given["x"], given["weight"], given["bias"]
    plain = F.conv2d(x, weight, bias, stride=2, padding=1, groups=2)
    offset = torch.zeros_like(given["offset"])
    torch.testing.assert_close(deformable_conv(x, offset, weight, bias, stride=2, padding=1), plain)


@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_the_repeatable_gradient_is_the_gradient(geometry, modulated):
    given, (stride, padding) = inputs(*geometry), geometry[4:6]
    if not modulated:
        given["mask"] = given["bias"] = None
    leaves = {name: t.requires_grad_() for name, t in given.items() if t is not None}
    expected = deformable_conv(**given, stride=stride, padding=padding)
    ours = _Repeatable.apply(*given.values(), stride, padding)
    assert torch.equal(ours, expected)
    slope = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for name, a, b in zip(
        leaves,
        torch.autograd.grad(ours, leaves.values(), slope),
        torch.autograd.grad(expected, leaves.values(), slope),
        strict=True,
    ):
        torch.testing.assert_close(a, b, msg=lambda text, name=name: f"{name}: {text}")


def test_the_gradient_of_x_stays_finite_for_any_offset():
    given = inputs(*GEOMETRIES[0])
    given["offset"][:, :6] = torch.tensor([math.inf, -math.inf, 1e30, -1e30, 1e9, -1e9], dtype=torch.float64).view(6, 1, 1)
    slope = torch.ones(2, 3, 5, 4, dtype=torch.float64)
    gradient = input_gradient(slope, given["x"].shape, given["offset"], given["weight"], given["mask"], 1, 1)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("warn_only", [False, True])
def test_the_repeatable_gradient_leaves_the_deterministic_mode_as_it_was(warn_only):
    given = inputs(*GEOMETRIES[0])
    torch.use_deterministic_algorithms(True, warn_only=warn_only)
    try:
        _Repeatable.apply(given["x"].requires_grad_(), *list(given.values())[1:], 1, 1).sum().backward()
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled() == warn_only
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_two_gradients_of_one_input_have_the_same_bits():
    torch.manual_seed(0)
    conv = ModulatedDeformableConv(64, 64, groups=4).cuda()
    torch.nn.init.normal_(conv.conv_offset.weight, std=0.05)
    x = torch.randn(2, 64, 40, 56, device="cuda", requires_grad=True)
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (torch.autograd.grad(conv(x).square().sum(), [x, *conv.parameters()]) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    unordered = torch.autograd.grad(conv(x).square().sum(), [x, *conv.parameters()])
    for a, b in zip(first, unordered, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("conv", "shapes"),
    [
        (
            DeformableConv(8, 12, deform_groups=2),
            {"weight": (12, 8, 3, 3), "conv_offset.weight": (36, 8, 3, 3), "conv_offset.bias": (36,)},
        ),
        (
            ModulatedDeformableConv(8, 12, groups=4, deform_groups=2, bias=True),
            {"weight": (12, 2, 3, 3), "bias": (12,), "conv_offset.weight": (54, 8, 3, 3), "conv_offset.bias": (54,)},
        ),
        (
            ModulatedDeformableConv(8, 8),
            {"weight": (8, 8, 3, 3), "conv_offset.weight": (27, 8, 3, 3), "conv_offset.bias": (27,)},
        ),
    ],
)
def test_parameters(conv, shapes):
    assert {name: tuple(value.shape) for name, value in conv.state_dict().items()} == shapes


@pytest.mark.parametrize(("stride", "height", "width"), [(1, 6, 7), (2, 6, 7), (2, 1, 1)])
def test_fresh_ones_are_plain_convolutions_at_the_full_and_at_half_the_size(stride, height, width):
    torch.manual_seed(0)
    x = torch.randn(2, 8, height, width)
    v1 = DeformableConv(8, 12, stride=stride, groups=4, deform_groups=2)
    torch.testing.assert_close(v1(x), F.conv2d(x, v1.weight, stride=stride, padding=1, groups=4))
    v2 = ModulatedDeformableConv(8, 12, stride=stride, groups=4, deform_groups=2, bias=True)
    torch.nn.init.normal_(v2.bias)
    torch.testing.assert_close(v2(x), F.conv2d(x, v2.weight / 2, v2.bias, stride=stride, padding=1, groups=4))


def test_the_offset_convolution_gives_offsets_tap_by_tap_and_then_the_masks():
    x = torch.randn(1, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    conv = ModulatedDeformableConv(2, 3)
    with torch.no_grad():
        conv.conv_offset.bias[:18] = torch.tensor([1.0, -2.0] * 9)  # each tap reads one row below, two columns to the left
        conv.conv_offset.bias[18:] = 30.0
        conv.conv_offset.bias[18 + 4] = -30.0  # but the middle tap nothing
        weight = conv.weight.clone()
        weight[:, :, 1, 1] = 0
        torch.testing.assert_close(conv(x), F.conv2d(F.pad(x, (3, -1, 0, 2)), weight))


def test_a_nan_offset_reads_its_own_cell_and_a_nan_in_x_is_not_lost():
    given = inputs(2, 3, 1, 1, 1, 1, 5, 4)
    x, weight = given["x"].requires_grad_(), given["weight"]
    y = deformable_conv(x, torch.full_like(given["offset"], math.nan), weight, padding=1)
    torch.testing.assert_close(y, F.conv2d(x, weight, padding=1))
    y.sum().backward()
    assert x.grad.isfinite().all()
    conv = ModulatedDeformableConv(2, 3).double()
    with torch.no_grad():
        x[0, 0, 2, 2] = math.nan
    assert conv(x)[0].isnan().any()


@pytest.mark.parametrize("kind", [DeformableConv, ModulatedDeformableConv])
def test_under_autocast_it_computes_in_float32_and_answers_in_the_dtype_of_x(kind):
    torch.manual_seed(0)
    conv = kind(8, 8)
    torch.nn.init.normal_(conv.conv_offset.weight, std=0.3)
    x = torch.randn(1, 8, 9, 9).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        y = conv(x)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, conv(x.float()).bfloat16())
    y.float().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in conv.parameters())
