"""Assigners against plain loops over objects and points, on random predictions and on ones full of ties."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tood.assign.atss import assign_atss
from tood.assign.ownership import smallest
from tood.assign.task_aligned import assign_task_aligned
from tood.priors import make_priors

PRIORS = make_priors(((6, 6), (3, 3), (2, 2), (1, 1), (1, 1)), torch.device("cpu"))
N, K = len(PRIORS.centres), 3
FEW = settings(max_examples=40, derandomize=True, deadline=None)


def iou_of(a: list[float], b: list[float]) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    overlap = max(width, 0) * max(height, 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - overlap
    return overlap / max(union, 1e-6)


def is_inside(point: list[float], box: list[float]) -> bool:
    return min(point[0] - box[0], point[1] - box[1], box[2] - point[0], box[3] - point[1]) > 0.01


def owners(wishes: dict[int, list[int]], iou) -> list[int]:
    """A point goes to the highest IoU of those that want it, ties to the lowest index; `wishes` is object -> points."""
    wanted_by = {}
    for g, points in wishes.items():
        for p in points:
            wanted_by.setdefault(p, []).append(g)
    return [min(wanted_by[p], key=lambda g: (-iou(g, p), g)) if p in wanted_by else -1 for p in range(N)]


def slow_task_aligned(scores, boxes, objects, labels, points, alpha, beta, m, candidates):
    """One image. scores[p][k], boxes[p], objects[g], labels[g]; `points`: those inside the image."""
    centres = PRIORS.centres.tolist()

    def u(g, p):
        return iou_of(objects[g], boxes[p])

    def t(g, p):
        return scores[p][labels[g]] ** alpha * u(g, p) ** beta

    wishes = {}
    for g in range(len(objects)):
        pool = [p for p in points if candidates == "all" or is_inside(centres[p], objects[g])]
        best = sorted(pool, key=lambda p: (-t(g, p), p))[:m]
        wishes[g] = [p for p in best if t(g, p) > 0 and is_inside(centres[p], objects[g])]
    owner = owners(wishes, u)
    metric, target = [0.0] * N, [0.0] * N
    for g in set(owner) - {-1}:
        mine = [p for p in range(N) if owner[p] == g]
        top_t, top_u = max(t(g, p) for p in mine), max(u(g, p) for p in mine)
        for p in mine:
            metric[p], target[p] = t(g, p), t(g, p) / (top_t + 1e-7) * top_u
    return owner, metric, target


def slow_atss(objects, points, topk):
    centres, anchors = PRIORS.centres.tolist(), PRIORS.anchors.tolist()

    def u(g, p):
        return iou_of(objects[g], anchors[p])

    wishes = {}
    for g, (x1, y1, x2, y2) in enumerate(objects):
        found, start = [], 0
        for count in PRIORS.counts:
            level = [p for p in range(start, start + count) if p in points]
            distance = {p: (centres[p][0] - (x1 + x2) / 2) ** 2 + (centres[p][1] - (y1 + y2) / 2) ** 2 for p in level}
            found += sorted(level, key=lambda p: (distance[p], p))[:topk]
            start += count
        mean = sum(u(g, p) for p in found) / len(found)
        deviation = math.sqrt(sum((u(g, p) - mean) ** 2 for p in found) / (len(found) - 1))
        wishes[g] = [p for p in found if u(g, p) >= mean + deviation and is_inside(centres[p], objects[g])]
    return owners(wishes, u)


GRID_BOX = st.tuples(*[st.sampled_from([0.0, 8.0, 16.0, 24.0])] * 2, *[st.sampled_from([8.0, 16.0, 32.0])] * 2).map(
    lambda b: [b[0] - 4, b[1] - 4, b[0] + b[2] - 4, b[1] + b[3] - 4]
)
OBJECTS = st.lists(st.tuples(GRID_BOX, st.integers(0, K - 1)), min_size=1, max_size=5)
SEED = st.integers(0, 10_000)


def predictions(seed: int, ties: bool) -> tuple[Tensor, Tensor]:
    """Log scores [N, K] and boxes [N, 4]; with ties both come from a handful of values."""
    g = torch.Generator().manual_seed(seed)
    if ties:
        scores = torch.tensor([0.3, 0.6, 0.9])[torch.randint(3, (N, K), generator=g)]
        palette = torch.tensor([[-4.0, -4, 4, 4], [4, 4, 20, 20], [-4, -4, 28, 28], [90, 90, 99, 99]])
        return scores.log(), palette[torch.randint(4, (N,), generator=g)]
    reach = torch.rand(N, 4, generator=g) * 20 * torch.tensor([-1, -1, 1, 1])
    return torch.rand(N, K, generator=g).log(), PRIORS.centres.repeat(1, 2) + reach


OPTIONS = st.fixed_dictionaries(
    {
        "alpha": st.sampled_from([0.0, 0.5, 1.0]),
        "beta": st.sampled_from([0.0, 1.0, 6.0]),
        "m": st.sampled_from([1, 4, 100]),
        "candidates": st.sampled_from(["all", "inside"]),
    }
)


@FEW
@given(OBJECTS, SEED, st.booleans(), OPTIONS)
def test_task_aligned_is_the_plain_loop(objects, seed, ties, options):
    boxes_of, labels = [o[0] for o in objects], [o[1] for o in objects]
    log_scores, boxes = predictions(seed, ties)
    points = set(range(N)) - {1, 7, 40}
    found = assign_task_aligned(
        log_scores[None], boxes[None], PRIORS.centres, torch.tensor([boxes_of]), torch.tensor([labels]),
        torch.ones(1, len(labels), dtype=torch.bool), torch.tensor([[p in points for p in range(N)]]), **options,
    )  # fmt: skip
    scores = log_scores.double().exp().tolist()
    owner, metric, target = slow_task_aligned(scores, boxes.tolist(), boxes_of, labels, points, **options)
    assert found.object[0].tolist() == owner
    torch.testing.assert_close(found.metric[0], torch.tensor(metric), rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(found.target[0], torch.tensor(target), rtol=1e-4, atol=1e-7)


@FEW
@given(OBJECTS, st.sampled_from([2, 4, 9, 50]), st.booleans())
def test_atss_is_the_plain_loop(objects, topk, whole_image):
    boxes = [o[0] for o in objects]  # centres between cells: distances tie
    points = set(range(N)) - (set() if whole_image else {0, 8, 13, 38})
    valid = torch.tensor([[p in points for p in range(N)]])
    found = assign_atss(PRIORS, torch.tensor([boxes]), torch.ones(1, len(boxes), dtype=torch.bool), valid, topk=topk)
    expected = slow_atss(boxes, points, topk)
    assert found.object[0].tolist() == expected
    assert torch.equal(found.target[0], (found.object[0] >= 0).float())
    assert torch.equal(found.metric, found.target)


@pytest.mark.parametrize("topk", [1, 3, 9])
def test_atss_is_the_plain_loop_for_many_random_objects(topk):
    generator = torch.Generator().manual_seed(topk)
    corner, side = torch.rand(60, 2, generator=generator) * 40, torch.rand(60, 2, generator=generator) * 100 + 4
    boxes = torch.cat([corner - 4, corner + side], dim=1)
    valid, everywhere = torch.ones(60, 1, dtype=torch.bool), torch.ones(60, N, dtype=torch.bool)
    found = assign_atss(PRIORS, boxes[:, None], valid, everywhere, topk=topk)  # one object an image: no conflicts
    for image, box in enumerate(boxes.tolist()):
        assert found.object[image].tolist() == slow_atss([box], set(range(N)), topk)


@FEW
@given(st.lists(st.sampled_from([0.0, 1e-45, 1e-38, 0.5, 0.50000006, 3e38, math.inf]), min_size=1, max_size=12), SEED)
def test_smallest_orders_by_cost_then_index(costs, k):
    k = k % len(costs) + 1
    cost = torch.tensor(costs)
    expected = sorted(range(len(costs)), key=lambda i: (cost[i].item(), i))[:k]
    assert smallest(cost, k).tolist() == expected
