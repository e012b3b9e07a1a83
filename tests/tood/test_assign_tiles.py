"""Pairs found by tiles are those found by looking at every object and point; the smallest of groups are those of a sort."""

import pytest
import torch

from tood.assign.ownership import smallest_of_groups
from tood.assign.tiles import TILE, tiled, touching
from tood.boxes import pairwise_iou


def boxes(generator: torch.Generator, *shape: int, spread: float = 100.0) -> torch.Tensor:
    corner = spread * torch.rand(*shape, 2, generator=generator)
    return torch.cat([corner, corner + 20 * torch.rand(*shape, 2, generator=generator) - 1], dim=-1).round()  # some are inside out


@pytest.mark.parametrize("points", [1, TILE, 5 * TILE + 3])
@pytest.mark.parametrize("seed", range(4))
def test_every_pair_that_overlaps_is_found_and_no_other(points, seed):
    r = torch.Generator().manual_seed(seed)
    objects, own = boxes(r, 2, 6), boxes(r, 2, points)
    own[0, points // 2, 1], own[1, -1] = torch.nan, torch.tensor([-torch.inf, -torch.inf, torch.inf, torch.inf])
    found = touching(objects, tiled(own))
    table = torch.zeros(12, points, dtype=torch.bool)
    table[found.row, found.point] = True
    assert torch.equal(found.image, found.row // 6)
    assert len(found.row) == table.sum()
    assert ((found.row * points + found.point).diff() > 0).all()  # in rising order: equal metrics go to the lower point
    overlap = (pairwise_iou(objects, own) > 0).view(12, points)
    assert (overlap <= table).all()
    inside_out = (own[..., 2:] <= own[..., :2]).any(-1).repeat_interleave(6, dim=0)
    sound = (objects[..., 2:] > objects[..., :2]).all(-1).view(12, 1) & own.isfinite().all(-1).repeat_interleave(6, dim=0)
    assert not (table & ~overlap & sound & ~inside_out).any()


def test_points_shared_by_all_images_are_boxes_without_an_area():
    centres = torch.tensor([[4.0, 4], [12, 4], [20, 4], [4, 12]])
    objects = torch.tensor([[[0.0, 0, 12, 8]], [[10, 0, 30, 8]]])
    found = touching(objects, tiled(centres.repeat(1, 2)).unsqueeze(0))
    assert found.image.tolist() == [0, 1, 1]
    assert found.point.tolist() == [0, 1, 2]  # one on the edge is not inside


@pytest.mark.parametrize("k", [1, 3, 50])
@pytest.mark.parametrize("seed", range(4))
def test_the_smallest_of_groups_are_those_of_a_stable_sort(k, seed):
    r = torch.Generator().manual_seed(seed)
    group = torch.randint(7, (400,), generator=r).sort().values
    group = group[group != 3]  # a group without entries
    cost = torch.randint(12, group.shape, generator=r) / 4.0  # many are equal
    cost[cost == 0.5] = torch.inf
    entry, of, rank = smallest_of_groups(cost, group, 7, k)
    for g in range(7):
        mine = (group == g).nonzero().squeeze(1)
        expected = mine[cost[mine].sort(stable=True).indices[:k]]
        assert torch.equal(entry[of == g], expected)
        assert torch.equal(rank[of == g], torch.arange(len(expected)))
