"""The feature pyramids against the same sums written out."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from tood.neck import FeaturePyramid

CHOICES = list(itertools.product(("fpn", "pafpn"), ("output", "input"), (False, True)))


def features(height: int, width: int) -> tuple[torch.Tensor, ...]:
    """C3, C4, C5; as with batches padded to a multiple of 32, each is half as large as the one before."""
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(2, c, height // s, width // s, generator=generator) for c, s in ((4, 1), (6, 2), (8, 4)))


def make_neck(*choices) -> FeaturePyramid:
    torch.manual_seed(0)
    neck = FeaturePyramid((4, 6, 8), 5, *choices)
    for parameter in neck.parameters():  # biases start at 0, where a missing one would not show
        torch.nn.init.normal_(parameter)
    return neck


def stretched(x: torch.Tensor, size: torch.Size) -> torch.Tensor:
    """Each cell of the larger map takes the value of the cell that lies over its corner."""
    rows, columns = (torch.arange(n) * m // n for n, m in zip(size, x.shape[2:], strict=True))
    return x[:, :, rows][:, :, :, columns]


@pytest.mark.parametrize("sizes", [[(16, 24), (8, 12), (4, 6)], [(7, 9), (4, 5), (2, 3)], [(5, 1), (3, 1), (2, 1)]])
@pytest.mark.parametrize(("kind", "extra_from", "relu"), CHOICES)
def test_levels_are_the_sums_written_out(kind, extra_from, relu, sizes):
    neck = make_neck(kind, extra_from, relu)
    draw = torch.Generator().manual_seed(1)
    c3, c4, c5 = (torch.randn(2, c, *size, generator=draw) for c, size in zip((4, 6, 8), sizes, strict=True))
    m5 = neck.lateral[2](c5)
    m4 = neck.lateral[1](c4) + stretched(m5, c4.shape[2:])
    m3 = neck.lateral[0](c3) + stretched(m4, c3.shape[2:])
    p3, p4, p5 = (conv(m) for conv, m in zip(neck.output, (m3, m4, m5), strict=True))
    if kind == "pafpn":
        n4 = p4 + neck.downsample[0](p3)
        n5 = p5 + neck.downsample[1](n4)
        p4, p5 = neck.aggregate[0](n4), neck.aggregate[1](n5)
    p6 = neck.extra[0](c5 if extra_from == "input" else p5)
    assert (p5 < 0).any()  # else a ReLU would not show
    assert (p6 < 0).any()
    p7 = neck.extra[1](F.relu(p6) if relu else p6)
    for ours, theirs in zip(neck((c3, c4, c5)), (p3, p4, p5, p6, p7), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_maps_finer_than_c3_are_not_used():
    torch.manual_seed(0)
    short = FeaturePyramid((4, 6, 8), 5)
    torch.manual_seed(0)
    whole = FeaturePyramid((2, 4, 6, 8), 5)
    maps = features(8, 8)
    for a, b in zip(short(maps), whole((torch.full((2, 2, 16, 16), torch.nan), *maps)), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("height", "width"), [(4, 4), (12, 20), (100, 168)])
@pytest.mark.parametrize("choices", [("fpn", "output"), ("pafpn", "input")])
def test_each_level_halves_the_one_before_rounding_up(choices, height, width):
    shapes = [tuple(p.shape) for p in make_neck(*choices)(features(height, width))]
    for (_, _, h, w), following in itertools.pairwise(shapes):
        assert following == (2, 5, -(-h // 2), -(-w // 2))
    assert shapes[0] == (2, 5, height, width)


@pytest.mark.parametrize("choices", CHOICES)
def test_every_parameter_receives_a_gradient(choices):
    neck = make_neck(*choices)
    sum(p.square().sum() for p in neck(features(8, 8))).backward()
    assert all(p.grad.abs().sum() > 0 for p in neck.parameters())


@pytest.mark.parametrize("name", ["output.0", "downsample.1", "aggregate.1"])
def test_convolutions_start_xavier_uniform_with_zero_bias(name):
    torch.manual_seed(0)
    conv = FeaturePyramid((4, 6, 8), 64, "pafpn").get_submodule(name)
    bound = (6 / (2 * 64 * 9)) ** 0.5
    assert conv.weight.abs().max() <= bound
    assert conv.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
    assert not conv.bias.any()


@pytest.mark.parametrize("size", [(4, 4), (8, 4)], ids=["one cell", "one column"])
def test_in_bfloat16_the_narrowest_maps_teach_what_they_teach_in_float32(size):
    """oneDNN's own gradient of their weights is in part what lay in memory: here large numbers."""
    neck = FeaturePyramid((4, 6, 8), 32)

    def slopes(bf16: bool) -> list[torch.Tensor]:
        neck.zero_grad(set_to_none=True)
        left = [torch.full((32 * 32 * 9,), 1e30, dtype=torch.bfloat16) for _ in range(8)]
        del left
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            levels = neck(features(*size))
        assert {level.dtype for level in levels} == {torch.bfloat16 if bf16 else torch.float32}
        sum(level.float().square().sum() for level in levels).backward()
        return [conv.weight.grad for conv in neck.extra]

    expected = slopes(bf16=False)
    for _ in range(20):
        for exact, rounded in zip(expected, slopes(bf16=True), strict=True):
            assert (rounded - exact).abs().max() < 0.03 * exact.abs().max()
