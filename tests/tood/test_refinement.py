"""VFNet's star: where its nine taps lie, what they read, and which way gradients go."""

import pytest
import torch
from torch import nn

from tests.tood.dense import make_head, make_pyramid, stir
from tood import refinement
from tood.boxes import box_to_distance
from tood.refinement import StarConv, star_offsets

DISTANCES = torch.tensor([0.5, 1.25, 2.0, 3.5]).view(1, 4, 1, 1)  # left, top, right, bottom, in strides


def taps_of(offsets: torch.Tensor) -> list[tuple[float, float]]:
    """(x, y) of each tap relative to its point: what a 3x3 kernel reads at plus the offset."""
    pairs = offsets.flatten().view(9, 2).tolist()
    return [(k % 3 - 1 + dx, k // 3 - 1 + dy) for k, (dy, dx) in enumerate(pairs)]


def test_taps_lie_on_the_corners_the_middles_of_the_sides_and_the_point():
    left, top, right, bottom = DISTANCES.flatten().tolist()
    expected = [
        (-left, -top), (0, -top), (right, -top),
        (-left, 0), (0, 0), (right, 0),
        (-left, bottom), (0, bottom), (right, bottom),
    ]  # fmt: skip
    torch.testing.assert_close(torch.tensor(taps_of(star_offsets(DISTANCES))), torch.tensor(expected))


def test_a_box_of_the_regular_neighbourhood_needs_no_offsets():
    assert not star_offsets(torch.ones(2, 4, 3, 5)).any()


def test_a_star_on_the_regular_neighbourhood_is_a_plain_convolution():
    torch.manual_seed(0)
    star, x = StarConv(4), torch.randn(2, 4, 5, 6)
    expected = torch.relu(nn.functional.conv2d(x, star.weight, padding=1))
    torch.testing.assert_close(star(x, star_offsets(torch.ones(2, 4, 5, 6))), expected, rtol=1e-5, atol=1e-6)


def test_a_star_reads_the_cells_on_its_box():
    """A box two cells wide and high a side around the middle of a map of distinct numbers: nine cells, two apart."""
    x = torch.arange(49.0).view(1, 1, 7, 7)
    for tap in range(9):
        star = StarConv(1)
        nn.init.zeros_(star.weight)
        with torch.no_grad():
            star.weight.view(-1)[tap] = 1.0
        found = star(x, star_offsets(torch.full((1, 4, 7, 7), 2.0)))[0, 0, 3, 3]
        assert found.item() == x[0, 0, 3 + 2 * (tap // 3 - 1), 3 + 2 * (tap % 3 - 1)]


def test_only_a_tenth_of_the_gradient_follows_the_taps():
    distances = DISTANCES.clone().requires_grad_()
    weight = torch.randn(1, 18, 1, 1, generator=torch.Generator().manual_seed(0))
    (star_offsets(distances) * weight).sum().backward()
    dy, dx = weight.view(9, 2).unbind(1)
    full = torch.stack([-dx[::3].sum(), -dy[:3].sum(), dx[2::3].sum(), dy[6:].sum()])
    torch.testing.assert_close(distances.grad.flatten(), 0.1 * full)


def test_refined_boxes_are_the_coarse_distances_times_the_exponential_of_scaled_factors():
    head = stir(make_head("parallel", "distance_reach", star=True))
    parts = head.predictor.refinement
    nn.init.zeros_(parts.boxes.weight)
    with torch.no_grad():
        parts.boxes.bias.copy_(torch.tensor([0.1, -0.2, 0.3, 0.0]))
        parts.scales.copy_(torch.tensor([1.0, 2, 3, 4, 5]))
    found = head(*make_pyramid())
    coarse, refined = (box_to_distance(found.priors.centres, boxes) for boxes in (found.coarse, found.boxes))
    scale = torch.repeat_interleave(parts.scales.detach(), torch.tensor(found.priors.counts))[:, None]
    torch.testing.assert_close(refined, coarse * (scale * parts.boxes.bias).exp(), rtol=1e-4, atol=1e-4)


def test_refined_boxes_start_as_the_coarse_ones():
    found = make_head("parallel", "distance_reach", star=True)(*make_pyramid())
    refined, coarse = (box_to_distance(found.priors.centres, boxes) for boxes in (found.boxes, found.coarse))
    torch.testing.assert_close(refined, coarse, rtol=0.01, atol=0)


@pytest.mark.parametrize("share", [0.0, 0.1])
def test_coarse_boxes_learn_from_refined_ones_by_the_star_alone(share, monkeypatch):
    monkeypatch.setattr(refinement, "GRADIENT", share)
    head = stir(make_head("parallel", "distance_reach", star=True))
    nn.init.zeros_(head.predictor.boxes.weight)
    nn.init.constant_(head.predictor.boxes.bias, -2.0)  # boxes of about a stride: the star stays on the map
    found = head(*make_pyramid())
    found.boxes.sum().backward()
    assert head.predictor.boxes.weight.grad.any() == (share > 0)
    assert head.predictor.refinement.boxes.weight.grad.any()


def test_the_class_looks_where_the_box_is():
    head = stir(make_head("parallel", "distance_reach", star=True))
    before = head(*make_pyramid())
    with torch.no_grad():
        head.predictor.boxes.bias.sub_(1.0)
    assert not torch.equal(head(*make_pyramid()).log_scores, before.log_scores)


def test_every_layer_of_the_refinement_learns():
    head = stir(make_head("parallel", "distance_reach", star=True))
    nn.init.constant_(head.predictor.boxes.bias, -2.0)
    found = head(*make_pyramid())
    (found.log_scores.sum() + found.boxes.sum() + found.coarse.sum()).backward()
    assert [name for name, p in head.predictor.named_parameters() if not p.grad.any()] == []
