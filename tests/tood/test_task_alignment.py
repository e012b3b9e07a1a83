"""The figures of TOOD's Table 6 for one image: equal to a plain recomputation, and what they mean by hand."""

import math

import numpy as np
import pytest
import torch

from tests.tood import slow_analysis as slow
from tood.task_alignment import agreement, correlation, ranks

GRID = torch.stack(torch.meshgrid(torch.arange(0, 160, 8), torch.arange(0, 120, 8), indexing="xy"), -1).reshape(-1, 2).float()


def scene(seed: int) -> tuple[torch.Tensor, ...]:
    """Scores, boxes, points, which of them count, objects and their labels; some scores and IoUs are equal."""
    rng = torch.Generator().manual_seed(seed)
    n, k, g = len(GRID), 3, 7
    log_scores = torch.rand(n, k, generator=rng).log()
    log_scores[::5] = log_scores[0]
    corner, size = torch.rand(g, 2, generator=rng) * 120 - 10, torch.rand(g, 2, generator=rng) * 110 + 5
    objects = torch.cat([corner, corner + size], 1)
    nearest = (GRID.unsqueeze(1) - objects.view(g, 2, 2).mean(1)).square().sum(-1).argmin(1)
    boxes = objects[nearest] + 12 * torch.randn(n, 4, generator=rng)
    boxes[::3] = boxes[::3] + 500  # many that overlap nothing
    valid = torch.rand(n, generator=rng) < 0.8
    return log_scores, boxes, valid, objects, torch.randint(0, k, (g,), generator=rng)


@pytest.mark.parametrize("seed", range(12))
def test_it_equals_the_plain_recomputation(seed):
    log_scores, boxes, valid, objects, labels = scene(seed)
    found = agreement(log_scores, boxes, GRID, valid, objects, labels)
    for i, (box, label) in enumerate(zip(objects.tolist(), labels.tolist(), strict=True)):
        scores = log_scores[valid, label].tolist()
        pcc, iou = slow.agreement(scores, boxes[valid].tolist(), GRID[valid].tolist(), box)
        assert found.pcc[i].item() == pytest.approx(pcc, abs=1e-9, nan_ok=True)
        assert found.iou[i].item() == pytest.approx(iou, abs=1e-5, nan_ok=True)


def test_the_scenes_hold_objects_of_more_and_of_fewer_points_than_are_ranked():
    inside = []
    for seed in range(12):
        _, _, valid, objects, _ = scene(seed)
        low, high = GRID.unsqueeze(0) - objects[:, None, :2], objects[:, None, 2:] - GRID.unsqueeze(0)
        inside += (((low > 0.01) & (high > 0.01)).all(-1) & valid).sum(1).tolist()
    assert min(inside) <= 1
    assert max(inside) > 60
    assert any(10 < count < 50 for count in inside)


def line_of_points(ious: list[float], scores: list[float]) -> tuple[float, float]:
    """PCC and mean IoU of one object whose points predict boxes of these IoUs."""
    n = len(ious)
    centres = torch.stack([torch.linspace(2, 98, n), torch.full((n,), 50.0)], 1)
    boxes = torch.tensor([[0.0, 0.0, 100.0, 100 * u] for u in ious])
    found = agreement(
        torch.tensor(scores).log().unsqueeze(1),
        boxes,
        centres,
        torch.ones(n, dtype=torch.bool),
        torch.tensor([[0.0, 0.0, 100.0, 100.0]]),
        torch.tensor([0]),
    )
    return found.pcc.item(), found.iou.item()


def test_what_the_correlation_says():
    ious = [0.9, 0.7, 0.5, 0.3]
    assert line_of_points(ious, [0.8, 0.6, 0.4, 0.2])[0] == pytest.approx(1)
    assert line_of_points(ious, [0.2, 0.4, 0.6, 0.8])[0] == pytest.approx(-1)
    assert line_of_points(ious, [0.8, 0.2, 0.2000001, 0.1])[0] == pytest.approx(0.8)  # of ranks: their distance is nothing
    assert math.isnan(line_of_points([0.5, 0.5], [0.2, 0.3])[0])  # equal boxes have no order
    assert math.isnan(line_of_points([0.5], [0.2])[0])


def test_only_the_fifty_surest_are_ranked_and_the_ten_surest_averaged():
    surest = [0.9 - 0.001 * i for i in range(50)]
    ious = [0.8] * 10 + [0.8 - 0.01 * i for i in range(40)]
    pcc, iou = line_of_points([*ious, *[0.99] * 20], [*surest, *[0.1] * 20])
    assert iou == pytest.approx(0.8, abs=1e-6)
    assert pcc > 0.95  # the twenty best boxes would turn it
    pcc, _ = line_of_points([*ious, *[0.99] * 20], [*surest, *[0.86] * 20])
    assert pcc < 0.8


def test_an_object_without_a_point_has_no_figures():
    found = agreement(
        torch.zeros(4, 1),
        torch.rand(4, 4),
        torch.tensor([[0.0, 0], [8, 0], [0, 8], [8, 8]]),
        torch.ones(4, dtype=torch.bool),
        torch.tensor([[1.0, 1, 7, 7], [-4, -4, 12, 12]]),
        torch.tensor([0, 0]),
    )
    assert torch.isnan(found.pcc[0])
    assert torch.isnan(found.iou[0])
    assert torch.isfinite(found.iou[1])


def test_scores_that_have_underflown_are_candidates_all_the_same():
    log_scores = torch.tensor([[-1.0], [-torch.inf], [-torch.inf]])
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 10, 2]])
    centres = torch.tensor([[5.0, 5], [50, 50], [6, 6]])
    found = agreement(
        log_scores, boxes, centres, torch.ones(3, dtype=torch.bool), torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([0])
    )
    assert found.iou.item() == pytest.approx((1 + 0.2) / 2)
    assert found.pcc.item() == pytest.approx(1)


def test_no_object_gives_no_figures():
    found = agreement(
        torch.zeros(4, 2), torch.rand(4, 4), GRID[:4], torch.ones(4, dtype=torch.bool), torch.zeros(0, 4), torch.zeros(0).long()
    )
    assert found.pcc.shape == found.iou.shape == (0,)


def test_ranks_of_equal_values_are_shared_and_those_that_do_not_count_left_out():
    values = torch.tensor([[3.0, 1.0, 3.0, 2.0, 9.0]])
    counted = torch.tensor([[True, True, True, True, False]])
    assert ranks(values, counted)[0, :4].tolist() == [3.0, 0.5, 3.0, 1.5]
    a, b = torch.rand(1, 5).double(), torch.rand(1, 5).double()
    expected = np.corrcoef(a[0, :4].numpy(), b[0, :4].numpy())[0, 1]
    assert correlation(a, b, counted).item() == pytest.approx(expected)
