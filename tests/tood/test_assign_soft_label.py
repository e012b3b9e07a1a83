"""Soft label assignment against a plain loop over objects and points, and at its edges."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tood.assign import soft_label
from tood.assign.soft_label import assign_soft_label, class_cost, cost_of_no_object
from tood.priors import make_priors

PRIORS = make_priors(((6, 6), (3, 3), (2, 2), (1, 1), (1, 1)), torch.device("cpu"))
N, K = len(PRIORS.centres), 3
CENTRES, STRIDES = PRIORS.centres.tolist(), PRIORS.strides.tolist()


def iou_of(a, b):
    overlap = max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    return overlap / max((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - overlap, 1e-6)


def slow_soft_label(scores, boxes, objects, labels, points, topk, iou_weight):
    """One image, plain lists: scores[p][k], boxes[p]; `points`: those inside the image."""

    def is_inside(p, box):
        (x, y), (x1, y1, x2, y2) = CENTRES[p], box
        return min(x - x1, y - y1, x2 - x, y2 - y) > 0

    def cost(g, p):
        u, of_classes = iou_of(objects[g], boxes[p]), 0.0
        for k, s in enumerate(scores[p]):
            target = u if k == labels[g] else 0.0
            cross_entropy = -(target * math.log(s) + (1 - target) * math.log(1 - s))
            of_classes += (target - s) ** 2 * cross_entropy
        x, y = (objects[g][0] + objects[g][2]) / 2, (objects[g][1] + objects[g][3]) / 2
        distance = math.dist(CENTRES[p], (x, y)) / STRIDES[p]
        return of_classes - iou_weight * math.log(u + 1e-7) + 10 ** (distance - 3)

    usable = [p for p in points if any(is_inside(p, box) for box in objects)]
    wanted_by = {}
    for g in range(len(objects)):
        ious = sorted((iou_of(objects[g], boxes[p]) for p in usable), reverse=True)
        count = max(int(sum(ious[:topk])), 1)
        for p in sorted(usable, key=lambda p: (cost(g, p), p))[: min(count, topk)]:
            wanted_by.setdefault(p, []).append(g)
    owner = [min(wanted_by[p], key=lambda g: (cost(g, p), g)) if p in wanted_by else -1 for p in range(N)]
    return owner, [iou_of(objects[g], boxes[p]) if g >= 0 else 0.0 for p, g in enumerate(owner)]


def make(seed, count):
    r = torch.Generator().manual_seed(seed)
    corner, side = torch.rand(count, 2, generator=r) * 30 - 4, torch.rand(count, 2, generator=r) * 40 + 2
    reach = torch.rand(N, 4, generator=r) * 25 * torch.tensor([-1, -1, 1, 1])
    scores = torch.rand(N, K, generator=r).clamp(0.01, 0.99)
    return (
        scores,
        PRIORS.centres.repeat(1, 2) + reach,
        torch.cat([corner, corner + side], 1),
        torch.randint(K, (count,), generator=r),
    )


def run(scores, boxes, objects, labels, points=range(N), topk=5, iou_weight=3.0):
    valid = torch.tensor([[p in set(points) for p in range(N)]])
    everyone = torch.ones(1, len(objects), dtype=torch.bool)
    return assign_soft_label(
        scores.log()[None], boxes[None], PRIORS, objects[None], labels[None], everyone, valid, topk=topk, iou_weight=iou_weight
    )


@settings(max_examples=40, derandomize=True, deadline=None)
@given(st.integers(0, 100_000), st.integers(1, 6), st.sampled_from([1, 5, 13, 100]), st.sampled_from([0.0, 3.0]), st.booleans())
def test_soft_label_is_the_plain_loop(seed, count, topk, iou_weight, whole_image):
    scores, boxes, objects, labels = make(seed, count)
    points = set(range(N)) - (set() if whole_image else {0, 9, 27, 40, 50})
    found = run(scores, boxes, objects, labels, points, topk, iou_weight)
    plain = [values.double().tolist() for values in (scores, boxes, objects)]
    owner, iou = slow_soft_label(*plain, labels.tolist(), points, topk, iou_weight)
    assert found.object[0].tolist() == owner
    assert found.iou[0].tolist() == pytest.approx(iou, abs=1e-5)
    assert torch.equal(found.target, found.iou)
    assert torch.equal(found.metric, (found.object >= 0).float())


def test_an_object_takes_as_many_points_as_its_best_ious_sum_up_to():
    objects, labels = torch.tensor([[-2.0, -2, 42, 42]]), torch.tensor([1])
    for quality, expected in ((1.0, 13), (0.5, 6), (0.01, 1)):
        x2 = -2 + 44 * quality
        boxes = torch.tensor([-2.0, -2, x2, 42]).expand(N, 4).clone()
        found = run(torch.full((N, K), 0.5), boxes, objects, labels, topk=13)
        assert (found.object == 0).sum() == expected


def test_of_equal_costs_the_lower_point_and_the_lower_object_win():
    box = torch.tensor([-2.0, -2, 42, 42])
    middle = torch.tensor([box[0] + box[2], box[1] + box[3]]) / 2  # (20, 20): four points of the finest level are equally far
    found = run(torch.full((N, K), 0.5), torch.zeros(N, 4), torch.stack([box, box]), torch.tensor([1, 1]))
    cost = (PRIORS.centres - middle).norm(dim=1) / PRIORS.strides
    assert found.object[0, cost.argmin()] == 0
    assert (found.object >= 0).sum() == 1


def test_a_box_that_is_no_number_harms_no_other_point():
    scores, boxes, objects, labels = make(0, 3)
    plain = run(scores, boxes, objects, labels, set(range(N)) - {14})
    boxes[14] = float("nan")
    found = run(scores, boxes, objects, labels)
    assert torch.equal(found.object, plain.object)
    assert torch.isfinite(found.iou).all()


@pytest.mark.parametrize("chunk", [1, 1000, 1 << 22])
@pytest.mark.parametrize("spread", [1.0, 4.0])
def test_the_class_cost_is_mmdetections(chunk, spread, monkeypatch):
    """DynamicSoftLabelAssigner's own lines, in float64: the other classes of a point count as scores that should be 0."""
    monkeypatch.setattr(soft_label, "CHUNK", chunk)
    r = torch.Generator().manual_seed(3)
    logits, iou = spread * torch.randn(2, 80, 37, generator=r) - 2, torch.rand(2, 5, 37, generator=r)
    labels = torch.randint(80, (2, 5), generator=r)
    log_scores = torch.nn.functional.logsigmoid(logits).transpose(1, 2)  # in memory as the head makes them
    log_s = log_scores.transpose(1, 2).gather(1, labels.unsqueeze(2).expand(-1, -1, 37))
    found = class_cost(log_s, iou, cost_of_no_object(log_scores))

    pred_scores = logits.double().transpose(1, 2).unsqueeze(1).expand(-1, 5, -1, -1)  # [B, G, N, K]
    target = torch.nn.functional.one_hot(labels, 80).double().unsqueeze(2) * iou.unsqueeze(3)
    scale_factor = target - pred_scores.sigmoid()
    losses = torch.nn.functional.binary_cross_entropy_with_logits(pred_scores, target, reduction="none")
    expected = (losses * scale_factor.abs().pow(2.0)).sum(dim=-1)
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)


def test_points_with_the_same_scores_cost_the_same_to_the_bit_wherever_they_lie():
    for k in (3, 7, 80):
        row = torch.rand(k, generator=torch.Generator().manual_seed(k)).log()
        costs = cost_of_no_object(row[None, :, None].expand(2, k, 131).contiguous().transpose(1, 2))
        assert len(costs.unique()) == 1


def test_a_point_that_says_another_class_is_not_taken():
    """Two points lie alike and say the object's class alike; one is as sure of another class, and loses though it is first."""
    object_box, labels = torch.tensor([[-2.0, -2, 42, 42]]), torch.tensor([1])
    boxes = object_box.expand(N, 4) * 0.2  # so that one point is all that the object takes
    scores = torch.full((N, K), 0.5)
    first = run(scores, boxes, object_box, labels).object[0].argmax().item()
    scores[first, 2] = 0.9
    again = run(scores, boxes, object_box, labels).object[0]
    assert (again >= 0).sum() == 1
    assert again[first] == -1
