"""Task alignment: side sampling against torchvision's deformable convolution, gradients, repeatability, and Eq. 5."""

import math

import pytest
import torch
from torchvision.ops import deform_conv2d

from tood.alignment import AlignmentMap, aligned_boxes, aligned_log_scores, sample_sides


def inputs(height: int, width: int, reach: float, dtype=torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(height * 100 + width)
    maps = torch.randn(2, 4, height, width, generator=generator, dtype=dtype)
    return maps, torch.randn(2, 8, height, width, generator=generator, dtype=dtype) * reach


def by_deform_conv(maps: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """Each map is its own group, moved by its own offsets, under a 1x1 kernel of weight 1."""
    return deform_conv2d(maps, offsets, torch.ones(4, 1, 1, 1, dtype=maps.dtype))


@pytest.mark.parametrize(("height", "width"), [(13, 9), (1, 6), (7, 1), (1, 1)])
@pytest.mark.parametrize("reach", [0.3, 3, 100])
def test_sampling_is_deform_conv_with_weight_one(height, width, reach):
    maps, offsets = inputs(height, width, reach)
    torch.testing.assert_close(sample_sides(maps, offsets), by_deform_conv(maps, offsets))


@pytest.mark.parametrize("shift", [0.0, 1.0, -1.0, -2.0, 5.0, 6.0, 1e4, -1e30, math.inf])
def test_whole_cells_and_places_far_outside_are_exact(shift):
    maps, _ = inputs(5, 6, 1)
    offsets = torch.full((2, 8, 5, 6), shift)
    expected = torch.zeros_like(maps)
    for y in range(5):
        for x in range(6):
            if 0 <= y + shift < 5 and 0 <= x + shift < 6:
                expected[:, :, y, x] = maps[:, :, int(y + shift), int(x + shift)]
    assert torch.equal(sample_sides(maps, offsets), expected)


def test_gradients_are_those_of_deform_conv():
    gradients = []
    for sample in (sample_sides, by_deform_conv):
        maps, offsets = (t.requires_grad_() for t in inputs(6, 7, 2, torch.float64))
        sample(maps, offsets).square().sum().backward()
        gradients.append((maps.grad, offsets.grad))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_gradients_are_those_of_finite_differences():
    maps, offsets = inputs(3, 4, 1.5, torch.float64)
    maps, offsets = maps[:1].requires_grad_(), offsets[:1].requires_grad_()
    assert torch.autograd.gradcheck(sample_sides, (maps, offsets))


def test_gradients_are_finite_at_any_finite_offset():
    maps, _ = inputs(5, 5, 1)
    places = torch.tensor([0.0, -0.0, 1, -1, -2, 5, 1e4, -1e30, 3e38, 1e-45])
    offsets = places[torch.randint(len(places), (2, 8, 5, 5), generator=torch.Generator().manual_seed(0))]
    maps.requires_grad_()
    offsets.requires_grad_()
    aligned_boxes(maps, offsets).square().sum().backward()
    assert torch.isfinite(maps.grad).all()
    assert torch.isfinite(offsets.grad).all()


def test_a_diverged_offset_shows_as_nan_and_not_as_a_wild_index():
    maps, offsets = inputs(4, 4, 1)
    offsets[0, 0, 2, 3] = math.nan
    sampled = sample_sides(maps, offsets)
    assert sampled[0, 0, 2, 3].isnan()
    assert sampled.isnan().sum() == 1


def test_two_runs_with_several_threads_agree_to_the_bit():
    def run() -> list[torch.Tensor]:
        maps, offsets = (t.requires_grad_() for t in inputs(40, 50, 8))
        out = sample_sides(maps, offsets)  # many cells read the same place, so the order of sums shows
        out.square().sum().backward()
        return [out, maps.grad, offsets.grad]

    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert all(torch.equal(a, b) for a, b in zip(run(), run(), strict=True))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("side", [0, 1])
def test_a_box_that_sampling_turns_inside_out_keeps_all_its_old_sides(side):
    boxes = torch.tensor([1.0, 2, 5, 8]).view(1, 4, 1, 1).repeat(1, 1, 1, 3)
    boxes[0, side, 0, 2] = 99  # the rightmost cell's x1 or y1
    offsets = torch.zeros(1, 8, 1, 3)
    offsets[0, 2 * side + 1, 0, 0] = 2  # the leftmost box reads it
    offsets[0, 5, 0, 0] = 0.5
    result = aligned_boxes(boxes, offsets)
    assert result[0, :, 0, 0].tolist() == [1, 2, 5, 8]
    offsets[0, 2 * side + 1, 0, 0] = 1  # its other neighbour is harmless
    offsets[0, 2 * side, 0, 0] = 0.25  # a quarter of the way out of the map, where 0 lies
    shrunk = [1.0, 2, 5, 8]
    shrunk[side] *= 0.75
    assert aligned_boxes(boxes, offsets)[0, :, 0, 0].tolist() == shrunk


def test_a_score_is_the_geometric_mean_of_both_probabilities():
    a, m = torch.linspace(-30, 30, 61), torch.linspace(20, -25, 61)
    direct = (torch.sigmoid(a.double()) * torch.sigmoid(m.double())).sqrt().log()
    torch.testing.assert_close(aligned_log_scores(a, m).double(), direct, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("logit", [-1e30, -1e4, -104.0, 0.0, 1e4, 1e30])
def test_a_score_and_its_gradient_are_finite_for_any_logit(logit):
    x = torch.tensor([logit, 0.0], requires_grad=True)
    out = aligned_log_scores(x, x.flip(0))
    out.sum().backward()
    assert torch.isfinite(out).all()
    assert torch.isfinite(x.grad).all()
    assert x.grad[0] == pytest.approx(1 / (1 + math.exp(min(logit, 80))), abs=1e-6)  # each logit enters twice, halved


def test_the_map_of_scores_starts_at_its_bias_and_learns_through_both_convolutions():
    torch.manual_seed(0)
    align = AlignmentMap(16, 4, 1, std=0.01, bias=-4.595)
    out = align(torch.randn(2, 16, 5, 5))
    assert out.shape == (2, 1, 5, 5)
    assert (torch.sigmoid(out) - 0.01).abs().max() < 1e-4
    out.square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in align.parameters())
