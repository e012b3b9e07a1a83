"""Box arithmetic against hand-made figures, torchvision's, and laws that hold for any boxes."""

import math

import pytest
import torch
import torchvision.ops as ops
from hypothesis import given, settings
from hypothesis import strategies as st

from tood.boxes import (
    aligned_giou,
    aligned_iou,
    box_to_delta,
    box_to_distance,
    clip,
    delta_to_box,
    distance_to_box,
    inside,
    overlap_share,
    pairwise_iou,
)

COORDINATE = st.integers(-3, 40)
ANY_BOXES = st.lists(st.tuples(*[COORDINATE] * 4), min_size=1, max_size=6)


def proper_boxes(count: int, seed: int) -> torch.Tensor:
    corners = torch.rand(count, 2, 2, generator=torch.Generator().manual_seed(seed)) * 100 - 20
    return torch.cat([corners.amin(1), corners.amax(1) + 0.5], dim=1)


def test_iou_and_giou_of_boxes_worked_out_by_hand():
    a = torch.tensor([[0.0, 0, 4, 4], [0, 0, 2, 2], [0, 0, 2, 2]])
    b = torch.tensor([[2.0, 2, 4, 4], [2, 0, 4, 2], [4, 0, 6, 2]])
    assert aligned_iou(a, b).tolist() == [0.25, 0, 0]
    assert aligned_giou(a, b).tolist() == pytest.approx([0.25, 0, -1 / 3])


def test_pairwise_and_aligned_agree_with_torchvision():
    a, b = proper_boxes(40, 0), proper_boxes(30, 1)
    torch.testing.assert_close(pairwise_iou(a, b), ops.box_iou(a, b))
    torch.testing.assert_close(aligned_iou(a[:, None], b[None]), ops.box_iou(a, b))
    torch.testing.assert_close(aligned_giou(a[:, None], b[None]), ops.generalized_box_iou(a, b))


def test_boxes_of_a_thousandth_of_a_cell_still_have_an_iou():
    a, b = torch.tensor([[0.0, 0, 0.004, 0.004]]), torch.tensor([[0.0, 0, 0.004, 0.002]])
    for found in (aligned_iou(a, b), pairwise_iou(a, b), aligned_giou(a, b)):
        assert found.item() == pytest.approx(0.5)


def test_pairwise_takes_leading_dimensions():
    a, b = proper_boxes(6, 0).view(2, 3, 4), proper_boxes(10, 1).view(2, 5, 4)
    both = pairwise_iou(a, b)
    assert both.shape == (2, 3, 5)
    assert torch.equal(both[1], pairwise_iou(a[1], b[1]))


@settings(max_examples=60, derandomize=True, deadline=None)
@given(ANY_BOXES, ANY_BOXES)
def test_any_boxes_even_inside_out_or_without_area_keep_the_bounds(first, second):
    a, b = torch.tensor(first).float(), torch.tensor(second).float()
    iou = pairwise_iou(a, b)
    assert torch.equal(iou, aligned_iou(a[:, None], b[None]))
    assert torch.equal(iou, pairwise_iou(b, a).T)
    assert ((iou >= 0) & (iou <= 1)).all()
    proper = (a[:, 2:] >= a[:, :2]).all(1)[:, None] & (b[:, 2:] >= b[:, :2]).all(1)
    giou = aligned_giou(a[:, None], b[None])
    assert torch.isfinite(giou).all()
    assert ((giou >= -1) & (giou <= iou + 1e-6))[proper].all()


def test_giou_has_finite_gradients_where_boxes_touch_coincide_or_vanish():
    boxes = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 2], [3, 3, 3, 3], [5, 5, 1, 1]], requires_grad=True)
    targets = torch.tensor([[0.0, 0, 2, 2], [2, 2, 4, 4], [3, 3, 3, 3], [0, 0, 2, 2]])
    aligned_giou(boxes, targets).sum().backward()
    assert torch.isfinite(boxes.grad).all()
    assert boxes.grad[1].abs().sum() > 0


def test_overlap_share_is_of_the_first_box_and_0_for_padding():
    a = torch.tensor([[0.0, 0, 4, 4], [10, 10, 12, 12]])
    regions = torch.tensor([[0.0, 0, 2, 4], [0, 0, 100, 100], [0, 0, 0, 0]])
    assert overlap_share(a, regions).tolist() == [[0.5, 1, 0], [0, 1, 0]]


def test_distances_are_left_top_right_bottom():
    box = distance_to_box(torch.tensor([10.0, 20]), torch.tensor([1.0, 2, 3, 4]))
    assert box.tolist() == [9, 18, 13, 24]


def test_deltas_move_by_the_anchors_size_and_scale_by_exp():
    anchor = torch.tensor([0.0, 0, 20, 40])
    assert delta_to_box(anchor, torch.zeros(4)).tolist() == [0, 0, 20, 40]
    moved = delta_to_box(anchor, torch.tensor([5.0, -5, math.log(2) / 0.2, 0]))  # stds .1 and .2
    assert moved.tolist() == pytest.approx([0, -20, 40, 20])


def test_a_delta_stretches_an_anchor_at_most_1000_to_16():
    anchor = torch.tensor([0.0, 0, 16, 16])
    for sign, side in ((1, 1000), (-1, 0.256)):
        x1, y1, x2, y2 = delta_to_box(anchor, torch.tensor([0.0, 0, sign * 1e6, sign * 1e6])).tolist()
        assert (x2 - x1, y2 - y1) == pytest.approx((side, side), rel=1e-4)


def test_distances_and_boxes_are_each_others_reverse_also_from_points_outside():
    points, boxes = torch.tensor([[3.0, 4], [50, -9]]), torch.tensor([[1.0, 2, 8, 16]] * 2)
    distances = box_to_distance(points, boxes)
    assert distances.tolist() == [[2, 2, 5, 12], [49, -11, -42, 25]]
    assert torch.equal(distance_to_box(points, distances), boxes)


@pytest.mark.parametrize("stds", [(0.1, 0.1, 0.2, 0.2), (1.0, 1.0, 1.0, 1.0)])
def test_deltas_and_boxes_are_each_others_reverse(stds):
    anchors, boxes = proper_boxes(50, 4), proper_boxes(50, 5)
    torch.testing.assert_close(delta_to_box(anchors, box_to_delta(anchors, boxes, stds), stds), boxes, rtol=1e-4, atol=1e-3)
    assert not box_to_delta(anchors, anchors, stds).any()


def test_a_delta_is_shift_over_size_and_the_logarithm_of_the_ratio():
    delta = box_to_delta(torch.tensor([0.0, 0, 10, 20]), torch.tensor([5.0, 10, 25, 20]))
    assert delta.tolist() == pytest.approx([10 / 10 / 0.1, 5 / 20 / 0.1, math.log(2) / 0.2, math.log(0.5) / 0.2])


@pytest.mark.parametrize("gap", [-1, 0, 0.0099, 0.0101, 1])
@pytest.mark.parametrize("side", range(4))
def test_inside_asks_for_a_hundredth_of_a_pixel_on_every_side(gap, side):
    distances = torch.full((4,), 5.0)
    distances[side] = gap
    point = torch.tensor([1.0, -2])
    assert inside(point, distance_to_box(point, distances)).item() == (gap > 0.01)


def test_inside_broadcasts_points_over_boxes():
    points, boxes = torch.rand(30, 2) * 80, proper_boxes(12, 3).view(3, 4, 4)
    found = inside(points, boxes.unsqueeze(2))
    assert found.shape == (3, 4, 30)
    assert found.any()
    assert not found.all()
    assert torch.equal(found[2, 1], inside(points, boxes[2, 1]))


def test_clip_takes_one_size_or_a_size_a_box():
    boxes = torch.tensor([[-5.0, -6, 50, 60], [10, 10, 500, 20]])
    assert clip(boxes, 40, 30).tolist() == [[0, 0, 30, 40], [10, 10, 30, 20]]
    assert clip(boxes, torch.tensor([40, 15]), torch.tensor([30, 300])).tolist() == [[0, 0, 30, 40], [10, 10, 300, 15]]
