"""Assigners against plain loops over objects and points, and the laws that any assignment of a batch must keep."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tood.assign.atss import assign_atss
from tood.assign.ownership import Assignment, smallest
from tood.assign.task_aligned import assign_task_aligned
from tood.priors import Priors, make_priors

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


def tal(log_scores, boxes, objects, labels, points, *, alpha=1.0, beta=6.0, m=5, candidates="all") -> Assignment:
    """One image of lists through the real thing."""
    valid = torch.tensor([[p in points for p in range(N)]])
    object_boxes = torch.tensor(objects).view(1, -1, 4)
    return assign_task_aligned(
        log_scores[None], boxes[None], PRIORS.centres, object_boxes, torch.tensor([labels], dtype=torch.int64),
        torch.ones(1, len(objects), dtype=torch.bool), valid, alpha=alpha, beta=beta, m=m, candidates=candidates,
    )  # fmt: skip


@FEW
@given(OBJECTS, SEED, st.booleans(), st.sampled_from(["all", "inside"]), st.sampled_from([1, 4, 100]), st.sampled_from([(1.0, 6.0), (0.5, 2.0), (0.0, 1.0), (1.0, 0.0)]))  # fmt: skip
def test_task_aligned_is_the_plain_loop(objects, seed, ties, candidates, m, powers):
    boxes_of, labels = [o[0] for o in objects], [o[1] for o in objects]
    log_scores, boxes = predictions(seed, ties)
    points = set(range(N)) - {1, 7, 40}
    alpha, beta = powers
    options = {"alpha": alpha, "beta": beta, "m": m, "candidates": candidates}
    found = tal(log_scores, boxes, boxes_of, labels, points, **options)
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


@FEW
@given(st.lists(st.sampled_from([0.0, 1e-45, 1e-38, 0.5, 0.50000006, 3e38, math.inf]), min_size=1, max_size=12), SEED)
def test_smallest_orders_by_cost_then_index(costs, k):
    k = k % len(costs) + 1
    cost = torch.tensor(costs)
    expected = sorted(range(len(costs)), key=lambda i: (cost[i].item(), i))[:k]
    assert smallest(cost, k).tolist() == expected


def random_batch(b: int, g: int, seed: int) -> dict[str, Tensor]:
    r = torch.Generator().manual_seed(seed)
    reach = torch.rand(b, N, 4, generator=r) * 20 * torch.tensor([-1, -1, 1, 1])
    corner, side = torch.rand(b, g, 2, generator=r) * 30 - 4, torch.rand(b, g, 2, generator=r) * 30 + 4
    return {
        "log_scores": torch.rand(b, N, K, generator=r).log(),
        "boxes": PRIORS.centres.repeat(1, 2) + reach,
        "object_boxes": torch.cat([corner, corner + side], dim=2),
        "object_labels": torch.randint(K, (b, g), generator=r),
        "object_valid": torch.ones(b, g, dtype=torch.bool),
        "point_valid": torch.rand(b, N, generator=r) > 0.1,
    }


def run(name: str, batch: dict[str, Tensor], priors: Priors = PRIORS) -> Assignment:
    if name == "atss":
        used = {k: batch[k] for k in ("object_boxes", "object_valid", "point_valid")}
        return assign_atss(priors, topk=4, **used)
    return assign_task_aligned(centres=priors.centres, alpha=1.0, beta=6.0, m=5, candidates=name, **batch)


ASSIGNERS = pytest.mark.parametrize("name", ["all", "inside", "atss"])


@ASSIGNERS
def test_renumbering_the_objects_renumbers_the_owners(name):
    batch, order = random_batch(3, 6, 0), torch.tensor([3, 0, 5, 1, 4, 2])
    found = run(name, batch)
    mixed = run(name, batch | {k: v[:, order] for k, v in batch.items() if k.startswith("object_")})
    assert (found.object >= 0).any()
    assert torch.equal(torch.where(mixed.object >= 0, order[mixed.object], -1), found.object)
    assert torch.equal(mixed.target, found.target)


@ASSIGNERS
def test_padding_rows_change_nothing_wherever_they_stand(name):
    batch = random_batch(2, 4, 1)
    rows = torch.tensor([0, 1, 0, 2, 3, 3])  # copies of real objects, marked as padding
    padded = batch | {k: v[:, rows] for k, v in batch.items() if k.startswith("object_")}
    padded["object_valid"] = torch.tensor([[1, 1, 0, 1, 1, 0]]).bool().expand(2, 6)
    found, same = run(name, batch), run(name, padded)
    assert torch.equal(torch.where(same.object >= 0, rows[same.object], -1), found.object)
    assert torch.equal(same.iou, found.iou)
    assert torch.equal(same.target, found.target)


@ASSIGNERS
def test_a_batch_is_each_image_alone(name):
    batch = random_batch(4, 5, 2)
    batch["object_valid"][1] = False
    together = run(name, batch)
    for i in range(4):
        alone = run(name, {k: v[i : i + 1] for k, v in batch.items()})
        for a, b in zip(alone[:4], together[:4], strict=True):
            assert torch.equal(a[0], b[i])
    assert not (together.object[1] >= 0).any()


@ASSIGNERS
def test_chunks_of_objects_change_nothing(name, monkeypatch):
    batch = random_batch(2, 7, 3)
    whole = run(name, batch)
    for module in ("task_aligned", "atss"):
        monkeypatch.setattr(f"tood.assign.{module}.CHUNK", 2 * 2 * N)  # two objects at a time
    for a, b in zip(run(name, batch)[:4], whole[:4], strict=True):
        assert torch.equal(a, b)


@ASSIGNERS
def test_without_objects_everything_is_background(name):
    found = run(name, random_batch(2, 0, 4))
    assert (found.object == -1).all()
    assert not found.target.any()
    assert not found.iou.any()


@ASSIGNERS
def test_points_outside_the_image_get_nothing(name):
    batch = random_batch(2, 6, 5)
    assert not (run(name, batch).object[~batch["point_valid"]] >= 0).any()
    batch["point_valid"][:] = False
    assert (run(name, batch).object == -1).all()
