"""Properties of boxes, assigners and losses that hold for any numbers, searched for counterexamples.

Together with tests/tood/test_assign*.py, where assigners are compared with plain loops.
"""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.tood.assigning import EVERY_ASSIGNER, PRIORS, SIZES, WIDTH, N, assign, of_objects, random_batch, renamed
from tood.boxes import (
    aligned_giou,
    aligned_iou,
    box_to_delta,
    box_to_distance,
    delta_to_box,
    distance_to_box,
    overlap_share,
    pairwise_iou,
)
from tood.losses import (
    binary_cross_entropy,
    centerness,
    distribution_focal,
    giou_loss,
    iou_loss,
    matchability,
    negative_focal,
    positive_focal,
    quality_focal,
    smooth_l1,
    varifocal,
)

FEW = settings(max_examples=12, derandomize=True, deadline=None)
SEED, COUNT = st.integers(0, 100_000), st.integers(1, 7)


def shared_best_anchor(batch: dict[str, Tensor]) -> bool:
    """Is an anchor the best of two objects? Max-IoU gives it to the later one: there the order of objects is a tie-break."""
    iou = pairwise_iou(batch["object_boxes"], PRIORS.anchors)
    iou = iou.masked_fill(~(batch["object_valid"].unsqueeze(-1) & batch["point_valid"].unsqueeze(1)), -1)
    best = iou.amax(-1, keepdim=True)
    return bool((((iou == best) & (best > 0)).sum(1) > 1).any())


def equidistant(batch: dict[str, Tensor]) -> bool:
    """Are two points of a level equally far from an object's centre? ATSS takes the lower: there the order of points is one."""
    middle = 0.5 * (batch["object_boxes"][..., :2] + batch["object_boxes"][..., 2:])
    distance = (middle.unsqueeze(2) - PRIORS.centres).square().sum(-1).flatten(0, 1)
    levels = [level.sort(-1).values.diff(dim=-1) for level in distance.split(PRIORS.counts, dim=-1)]
    return any((gaps == 0).any() for gaps in levels)


@EVERY_ASSIGNER
@FEW
@given(SEED, COUNT, st.randoms(use_true_random=False))
def test_renumbering_the_objects_renumbers_the_owners(name, seed, count, random):
    batch = random_batch(2, count, seed)
    assume(name not in ("max_iou", "probabilistic") or not shared_best_anchor(batch))
    order = torch.tensor(random.sample(range(count), count))
    found, mixed = assign(name, batch), assign(name, of_objects(batch, order))
    assert torch.equal(renamed(mixed.object, order), found.object)
    for a, b in zip(mixed[1:4], found[1:4], strict=True):
        assert torch.equal(a, b)


@EVERY_ASSIGNER
@FEW
@given(SEED, COUNT, st.lists(st.integers(0, 100), min_size=1, max_size=6))
def test_padding_rows_change_nothing_wherever_they_stand(name, seed, count, places):
    """Copies of real objects, marked as padding, between the real ones."""
    batch = random_batch(2, count, seed)
    rows, valid = list(range(count)), [True] * count
    for place in places:
        rows.insert(place % (len(rows) + 1), place % count)
        valid.insert(place % len(rows), False)
    padded = of_objects(batch, torch.tensor(rows)) | {"object_valid": torch.tensor(valid).expand(2, -1)}
    found, same = assign(name, batch), assign(name, padded)
    assert torch.equal(renamed(same.object, torch.tensor(rows)), found.object)
    assert torch.tensor(valid)[same.object[same.object >= 0]].all()
    for a, b in zip(same[1:4], found[1:4], strict=True):
        assert torch.equal(a, b)


def mirror_boxes(boxes: Tensor) -> Tensor:
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack([WIDTH - x2, y1, WIDTH - x1, y2], dim=-1)


def mirrored_points() -> Tensor:
    """Index of the point that lies where each point lands."""
    levels, start = [], 0
    for height, width in SIZES:
        levels.append((torch.arange(height * width).view(height, width).flip(1) + start).flatten())
        start += height * width
    return torch.cat(levels)


@EVERY_ASSIGNER
@FEW
@given(SEED, COUNT)
def test_a_mirrored_image_has_the_mirrored_assignment(name, seed, count):
    batch, there = random_batch(2, count, seed), mirrored_points()
    assert torch.equal(mirror_boxes(PRIORS.anchors)[there], PRIORS.anchors)
    assume(name not in ("atss", "ddod") or not equidistant(batch))
    mirrored = batch | {
        "log_scores": batch["log_scores"][:, there],
        "boxes": mirror_boxes(batch["boxes"][:, there]),
        "object_boxes": mirror_boxes(batch["object_boxes"]),
        "point_valid": batch["point_valid"][:, there],
    }
    found, other = assign(name, batch), assign(name, mirrored)
    for a, b in zip(other[:4], found[:4], strict=True):
        assert torch.equal(a, b[:, there])


@EVERY_ASSIGNER
@pytest.mark.parametrize("rows", [0, 3], ids=["none", "padding"])
def test_without_objects_everything_is_background(name, rows):
    batch = random_batch(2, rows, 4)
    batch["object_valid"][:] = False
    found = assign(name, batch)
    assert found.object.shape == (2, N)
    assert (found.object == -1).all()
    assert found.ignored is None or not found.ignored.any()
    for values in found[1:4]:
        assert not values.any()


@EVERY_ASSIGNER
@FEW
@given(SEED, COUNT)
def test_of_two_equal_objects_the_first_gets_everything(name, seed, count):
    """But for max-IoU's best anchors, which an object gets whatever its IoU: there the last does."""
    batch = random_batch(1, count, seed)
    twice = of_objects(batch, torch.arange(2 * count) % count)
    assume(name not in ("max_iou", "probabilistic") or not shared_best_anchor(batch))
    found, doubled = assign(name, batch).object, assign(name, twice).object
    if name in ("max_iou", "probabilistic"):
        best = pairwise_iou(batch["object_boxes"][0], PRIORS.anchors).masked_fill(~batch["point_valid"], -1)
        forced = (best == best.amax(1, keepdim=True)).any(0)
        assert (doubled[0, forced & (doubled[0] >= 0)] >= count).all()
        assert (doubled[0, ~forced] < count).all()
    else:
        assert torch.equal(doubled, found)


BOXES = st.lists(st.tuples(*[st.floats(-500, 500, width=32)] * 2, *[st.floats(0.5, 800, width=32)] * 2), min_size=1, max_size=8)


def boxes_from(corners_and_sides) -> Tensor:
    x, y, w, h = torch.tensor(corners_and_sides).unbind(-1)
    return torch.stack([x, y, x + w, y + h], dim=-1)


@settings(FEW, max_examples=60)
@given(BOXES, BOXES)
def test_box_arithmetic_in_float32_is_that_in_float64(first, second):
    a, b = boxes_from(first), boxes_from(second)
    pairs = [
        (lambda a, b: pairwise_iou(a, b), 1e-4),
        (lambda a, b: aligned_giou(a[:, None], b[None]), 1e-4),
        (lambda a, b: overlap_share(a, b), 1e-4),
        (lambda a, b: centerness(a[:, None, :2], b[None]).square(), 1e-3),
    ]
    for function, tolerance in pairs:
        exact = function(a.double(), b.double())
        torch.testing.assert_close(function(a, b).double(), exact, rtol=0, atol=tolerance)


@settings(FEW, max_examples=60)
@given(BOXES, BOXES)
def test_boxes_moved_mirrored_or_swapped_keep_their_ious(first, second):
    a, b = boxes_from(first).double(), boxes_from(second).double()
    for function in (aligned_iou, aligned_giou):
        plain = function(a[:, None], b[None])
        torch.testing.assert_close(function(a[:, None] + 33, b[None] + 33), plain)
        torch.testing.assert_close(function(mirror_boxes(a)[:, None], mirror_boxes(b)[None]), plain)
        torch.testing.assert_close(function(b[None], a[:, None]), plain)
    torch.testing.assert_close(pairwise_iou(a, a).diagonal(), torch.ones(len(a), dtype=torch.float64))


@settings(FEW, max_examples=60)
@given(BOXES, BOXES)
def test_encoded_boxes_decode_to_themselves(first, second):
    priors, boxes = boxes_from(first * len(second)).double(), boxes_from(second * len(first)).double()
    points = priors[:, :2]
    torch.testing.assert_close(distance_to_box(points, box_to_distance(points, boxes)), boxes)
    ratio = ((boxes[:, 2:] - boxes[:, :2]) / (priors[:, 2:] - priors[:, :2])).log().abs().amax(1)
    near = ratio < 4.1  # beyond a ratio of 1000 / 16 decoding is bounded
    torch.testing.assert_close(delta_to_box(priors, box_to_delta(priors, boxes))[near], boxes[near])


LOG_P = st.lists(st.floats(-80, -1 / 1024, width=32), min_size=1, max_size=8)
GAMMA = st.sampled_from([0.0, 0.5, 1.0, 2.0])


@settings(FEW, max_examples=80)
@given(LOG_P, st.floats(0, 1, width=32), GAMMA)
def test_classification_losses_in_float32_are_those_in_float64(log_p, target, gamma):
    x, t = torch.tensor(log_p), torch.tensor(target)
    for loss in (
        lambda x, t: binary_cross_entropy(x, t),
        lambda x, t: quality_focal(x, t, gamma),
        lambda x, t: negative_focal(x, gamma),
        lambda x, t: positive_focal(x, gamma),
        lambda x, t: varifocal(x, t),
        lambda x, t: matchability(x, t, gamma),
    ):
        values, slopes = [], []
        for dtype in (torch.float32, torch.float64):
            leaf = x.to(dtype).requires_grad_()
            value = loss(leaf, t.to(dtype))
            (slope,) = torch.autograd.grad(value.sum(), leaf)
            values.append(value.detach().double())
            slopes.append(slope.double())
        torch.testing.assert_close(*values, rtol=2e-4, atol=1e-6)
        assert torch.isfinite(slopes[0]).all()
        assert (values[0] >= 0).all()


@settings(FEW, max_examples=60)
@given(LOG_P, GAMMA)
def test_a_surer_right_score_costs_less_and_a_surer_wrong_one_more(log_p, gamma):
    x = torch.tensor(sorted(log_p), dtype=torch.float64)
    assert (positive_focal(x, gamma).diff() <= 1e-12).all()
    assert (negative_focal(x, gamma).diff() >= -1e-12).all()


@settings(FEW, max_examples=60)
@given(BOXES, BOXES)
def test_box_losses_are_0_for_the_target_alone_and_never_negative(first, second):
    a, b = boxes_from(first).double(), boxes_from(second).double()
    for loss in (giou_loss, iou_loss):
        assert loss(a, a).abs().max() < 1e-9
        apart = loss(a[:, None], b[None])
        assert (apart >= -1e-12).all()
        different = (a[:, None] - b[None]).abs().amax(-1) > 1e-3
        assert (apart[different] > 0).all()


@settings(FEW, max_examples=60)
@given(st.lists(st.floats(-20, 20, width=32), min_size=3, max_size=17), st.floats(0, 1, width=32), st.sampled_from([0.11, 1.0]))
def test_regression_losses_in_float32_are_those_in_float64(values, share, beta):
    x = torch.tensor(values)
    target = torch.tensor(share) * (len(values) - 1.1)
    for loss in (lambda x, t: distribution_focal(x, t), lambda x, t: smooth_l1(x, t, beta)):
        torch.testing.assert_close(loss(x, target).double(), loss(x.double(), target.double()), rtol=1e-4, atol=1e-5)
