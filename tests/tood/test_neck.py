"""The feature pyramid against the same sums written out."""

import itertools

import pytest
import torch

from tood.neck import FeaturePyramid


def features(height: int, width: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(2, c, height // s, width // s, generator=generator) for c, s in ((4, 1), (6, 2), (8, 4)))


@pytest.fixture
def neck() -> FeaturePyramid:
    torch.manual_seed(0)
    neck = FeaturePyramid((4, 6, 8), 5)
    for parameter in neck.parameters():  # biases start at 0, where a missing one would not show
        torch.nn.init.normal_(parameter)
    return neck


def double(x: torch.Tensor) -> torch.Tensor:
    return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


def test_levels_are_sums_from_the_top_and_p6_p7_have_no_relu(neck):
    c3, c4, c5 = features(16, 24)
    m5 = neck.lateral[2](c5)
    m4 = neck.lateral[1](c4) + double(m5)
    m3 = neck.lateral[0](c3) + double(m4)
    expected = [conv(m) for conv, m in zip(neck.output, (m3, m4, m5), strict=True)]
    expected.append(neck.extra[0](expected[2]))
    expected.append(neck.extra[1](expected[3]))
    assert (expected[3] < 0).any()  # else a ReLU would not show
    for ours, theirs in zip(neck((c3, c4, c5)), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(("height", "width"), [(4, 4), (12, 20), (100, 168)])
def test_each_level_halves_the_one_before_rounding_up(neck, height, width):
    shapes = [tuple(p.shape) for p in neck(features(height, width))]
    for (_, _, h, w), following in itertools.pairwise(shapes):
        assert following == (2, 5, -(-h // 2), -(-w // 2))
    assert shapes[0] == (2, 5, height, width)


def test_every_parameter_receives_a_gradient(neck):
    sum(p.square().sum() for p in neck(features(8, 8))).backward()
    assert all(p.grad.abs().sum() > 0 for p in neck.parameters())


def test_convolutions_start_xavier_uniform_with_zero_bias():
    torch.manual_seed(0)
    conv = FeaturePyramid((4, 6, 8), 64).output[0]
    bound = (6 / (2 * 64 * 9)) ** 0.5
    assert conv.weight.abs().max() <= bound
    assert conv.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
    assert not conv.bias.any()
