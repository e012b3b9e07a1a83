"""The norm that leaves precision and layout alone, against torch's own in float64."""

import pytest
import torch
from torch.nn.functional import group_norm

from tood.group_norm import AsItCame, GroupNorm

LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
PRECISE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 8e-3}  # of the largest value


def given(dtype: torch.dtype, layout: str, channels: int = 8) -> list[torch.Tensor]:
    """x, weight, bias and the gradient of y. Parameters have at least float32, as under autocast."""
    torch.manual_seed(0)
    x, slope = (torch.randn(2, channels, 13, 9, dtype=torch.float64) for _ in range(2))
    x = (3 * x + torch.linspace(-4, 4, channels, dtype=torch.float64).view(-1, 1, 1)).to(dtype)  # means differ within a group
    weight, bias = torch.randn(2, channels, dtype=torch.float64).to(torch.promote_types(dtype, torch.float32))
    return [x.to(memory_format=LAYOUTS[layout]), weight.clone(), bias.clone(), slope.to(dtype)]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", PRECISE)
@pytest.mark.parametrize("groups", [1, 4, 8])
def test_values_and_gradients_are_those_of_the_norm(groups, dtype, layout):
    *leaves, slope = given(dtype, layout)
    x, weight, bias = (leaf.requires_grad_() for leaf in leaves)
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    y = AsItCame.apply(x, weight, bias, groups, 1e-5)
    expected = group_norm(exact[0], groups, *exact[1:], 1e-5)
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=LAYOUTS[layout])
    y.backward(slope)
    expected.backward(slope.double())
    pairs = {"y": (y, expected)} | {n: (a.grad, b.grad) for n, a, b in zip(("x", "weight", "bias"), leaves, exact, strict=True)}
    for name, (found, wanted) in pairs.items():
        error = (found.double() - wanted).abs().max() / wanted.abs().max()
        assert error <= PRECISE[dtype], f"{name}: {error}"
    assert x.grad.dtype == dtype
    assert x.grad.is_contiguous(memory_format=LAYOUTS[layout])


def test_the_gradient_is_that_of_finite_differences():
    x, weight, bias, _ = given(torch.float64, "nhwc", channels=4)
    leaves = [leaf.detach().requires_grad_() for leaf in (x[:, :, :4, :3], weight, bias)]
    assert torch.autograd.gradcheck(lambda *leaves: AsItCame.apply(*leaves, 2, 1e-5), leaves)


def test_statistics_do_not_suffer_from_a_short_mantissa():
    """Summed in bfloat16, 4096 equal values would stop at 256 of them."""
    x = torch.full((1, 2, 64, 64), 3.0, dtype=torch.bfloat16)
    x[:, :, ::2] = 5.0
    y = AsItCame.apply(x, torch.ones(2), torch.zeros(2), 1, 1e-5)
    assert set(y.unique().tolist()) == {-1.0, 1.0}


def far(away: float) -> torch.Tensor:
    torch.manual_seed(0)
    return (torch.randn(2, 8, 80, 80) + away).bfloat16().to(memory_format=torch.channels_last)


def test_values_far_from_0_lose_nothing_and_very_far_ones_do_not_blow_up():
    """At 300 bfloat16 knows every other integer, and sums of squares in float32 no longer tell how values differ."""
    norm = (torch.ones(8), torch.zeros(8), 4, 1e-5)
    y, expected = AsItCame.apply(far(30), *norm), group_norm(far(30).double(), 4)
    assert (y - expected).abs().max() / expected.abs().max() < PRECISE[torch.bfloat16]
    assert AsItCame.apply(far(300), *norm).abs().max() < 25


def test_a_constant_map_gives_its_bias_and_no_nan():
    x = torch.full((1, 4, 6, 5), 7.3, dtype=torch.bfloat16, requires_grad=True)
    weight, bias = torch.ones(4, requires_grad=True), torch.arange(4.0, requires_grad=True)
    y = AsItCame.apply(x, weight, bias, 2, 1e-5)
    assert (y - bias.view(-1, 1, 1)).abs().max() < 1e-3
    y.sum().backward()
    assert all(leaf.grad.isfinite().all() for leaf in (x, weight, bias))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_cpu_it_is_torchs_own_to_the_bit(dtype):
    x, weight, bias, _ = given(dtype, "nhwc")
    norm, own = GroupNorm(4, 8), torch.nn.GroupNorm(4, 8)
    state = {"weight": weight.float(), "bias": bias.float()}
    for each in (norm, own):
        each.load_state_dict(state)
    assert torch.equal(norm(x), own(x))
    assert norm(x).dtype == dtype
