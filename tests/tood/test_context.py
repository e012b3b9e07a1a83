"""TSCODE's contexts against their equations, written out level by level with torch's own operators."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tood.context import DetailContext, SemanticContext

SIZES = ((12, 10), (6, 5), (3, 3), (2, 2), (1, 1))  # odd sides too: a stride of 2 rounds up
C = 6
GENERATOR = torch.Generator().manual_seed(0)
PYRAMID = [torch.randn(2, C, h, w, generator=GENERATOR) for h, w in SIZES]
FINER = torch.randn(2, 9, 24, 20, generator=GENERATOR)


def lively(module: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module


def half(context: nn.Module, level: Tensor, kernel: int) -> Tensor:
    return F.conv2d(level, context.down.weight, context.down.bias, stride=2, padding=kernel // 2)


def nearest(source: Tensor, like: Tensor) -> Tensor:
    """Cell y of H reads cell floor(y * h / H) of h."""
    (h, w), (height, width) = source.shape[-2:], like.shape[-2:]
    rows, columns = torch.arange(height) * h // height, torch.arange(width) * w // width
    return source[:, :, rows][:, :, :, columns]


@pytest.mark.parametrize("kernel", [3, 5, 7])
def test_semantic_context_is_the_halved_level_beside_the_level_above(kernel):
    """Eq. 3: G_l = Concat(DConv(P_l), P_{l+1})."""
    context = lively(SemanticContext(C, kernel=kernel))
    found = context(PYRAMID)
    for i, level in enumerate(PYRAMID):
        down = half(context, level, kernel)
        above = PYRAMID[i + 1] if i < 4 else down  # nothing lies above the last level
        torch.testing.assert_close(found[i], torch.cat([down, above], dim=1))
    assert context.out_channels == 2 * C


@pytest.mark.parametrize(("down", "pool"), [("avg", F.avg_pool2d), ("max", F.max_pool2d)])
@pytest.mark.parametrize("kernel", [3, 5, 7])
def test_semantic_context_may_halve_by_pooling(down, pool, kernel):
    context = SemanticContext(C, down, kernel)
    assert list(context.parameters()) == []
    for level, found in zip(PYRAMID, context(PYRAMID), strict=True):
        assert torch.equal(found[:, :C], pool(level, kernel, stride=2, padding=kernel // 2))


def test_semantic_context_without_the_level_above_is_the_halved_level_alone():
    context = lively(SemanticContext(C, upper=False))
    assert context.out_channels == C
    for level, found in zip(PYRAMID, context(PYRAMID), strict=True):
        torch.testing.assert_close(found, half(context, level, 3))


def test_detail_context_adds_the_level_above_and_the_detail_below():
    """Eq. 5: F_l = P_l + up(P_{l+1}) + DConv(up(P_l) + P_{l-1}), with C2, projected, below P3."""
    context = lively(DetailContext(C, FINER.shape[1]))
    found = context(PYRAMID, FINER)
    below = [F.conv2d(FINER, context.project.weight, context.project.bias), *PYRAMID[:-1]]
    for i, level in enumerate(PYRAMID):
        expected = level + half(context, nearest(level, below[i]) + below[i], 3)
        if i < 4:
            expected = expected + nearest(PYRAMID[i + 1], level)
        torch.testing.assert_close(found[i], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("upper", [0, 1, 2])
def test_detail_context_may_look_at_no_one_or_two_levels_above(upper):
    found = DetailContext(C, C, lower=False, upper=upper)(PYRAMID, None)
    for i, level in enumerate(PYRAMID):
        expected = sum((nearest(above, level) for above in PYRAMID[i + 1 : i + 1 + upper]), level)
        torch.testing.assert_close(found[i], expected)


def test_the_projection_is_made_only_where_it_is_needed():
    assert DetailContext(C, C).project is None
    assert DetailContext(C, 9).project.weight.shape == (C, 9, 1, 1)
    without = DetailContext(C, 9, lower=False)
    assert (without.project, without.down, list(without.parameters())) == (None, None, [])


@pytest.mark.parametrize("make", [lambda: SemanticContext(C), lambda: DetailContext(C, 9)], ids=["semantic", "detail"])
def test_all_levels_share_one_downsampling_and_every_parameter_learns(make):
    context = lively(make())
    arguments = (PYRAMID,) if isinstance(context, SemanticContext) else (PYRAMID, FINER)
    for level in context(*arguments):
        context.zero_grad()
        level.square().sum().backward(retain_graph=True)
        assert context.down.weight.grad.any()
    context.zero_grad()
    sum(level.square().sum() for level in context(*arguments)).backward()
    assert all(p.grad.any() for p in context.parameters())


def test_levels_keep_their_shapes_under_detail_and_halve_under_semantic_context():
    assert [tuple(f.shape) for f in DetailContext(C, 9)(PYRAMID, FINER)] == [(2, C, h, w) for h, w in SIZES]
    assert [tuple(f.shape) for f in SemanticContext(C)(PYRAMID)] == [(2, 2 * C, (h + 1) // 2, (w + 1) // 2) for h, w in SIZES]
