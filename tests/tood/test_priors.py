"""Where priors lie, in what order, and which of them a padded image may use."""

import math

import pytest
import torch

from tood.priors import PRIORS, STRIDES, PriorGrid, inside_image, make_priors

SIZES = ((4, 6), (2, 3), (1, 2), (1, 1), (1, 1))


def test_levels_follow_each_other_row_by_row():
    priors = make_priors(SIZES, torch.device("cpu"))
    expected = [
        (x * stride, y * stride, stride)
        for (height, width), stride in zip(SIZES, STRIDES, strict=True)
        for y in range(height)
        for x in range(width)
    ]
    assert torch.cat([priors.centres, priors.strides[:, None]], dim=1).tolist() == [list(map(float, e)) for e in expected]
    assert priors.counts == (24, 6, 2, 1, 1)


def test_the_anchor_is_a_square_of_eight_strides_around_its_centre():
    priors = make_priors(SIZES, torch.device("cpu"))
    size = priors.anchors[:, 2:] - priors.anchors[:, :2]
    assert torch.equal(size, (8 * priors.strides)[:, None].expand(-1, 2))
    assert torch.equal((priors.anchors[:, 2:] + priors.anchors[:, :2]) / 2, priors.centres)


def test_a_centre_offset_moves_every_prior_by_its_share_of_a_stride():
    corner, middle = (make_priors(SIZES, torch.device("cpu"), PriorGrid(centre_offset=o)) for o in (0.0, 0.5))
    half = 0.5 * corner.strides[:, None]
    assert torch.equal(middle.centres, corner.centres + half)
    assert torch.equal(middle.anchors, corner.anchors + half)
    assert middle.counts == corner.counts


@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_nine_anchors_lie_on_a_location_ratio_by_ratio_and_thirds_of_an_octave_within(offset):
    """RetinaNet: areas (4 * 2^(i/3) strides)^2, height / width 1/2, 1 and 2, all around one centre."""
    priors = make_priors(SIZES, torch.device("cpu"), PriorGrid(PRIORS["nine_anchors"], offset))
    assert priors.counts == (216, 54, 18, 9, 9)
    at = 0
    for (height, width), stride in zip(SIZES, STRIDES, strict=True):
        for y in range(height):
            for x in range(width):
                centre = [(x + offset) * stride, (y + offset) * stride]
                for ratio in (0.5, 1.0, 2.0):
                    for third in range(3):
                        side = stride * 4 * 2 ** (third / 3)
                        w, h = side / math.sqrt(ratio), side * math.sqrt(ratio)
                        box = [centre[0] - w / 2, centre[1] - h / 2, centre[0] + w / 2, centre[1] + h / 2]
                        assert priors.anchors[at].tolist() == pytest.approx(box, rel=1e-6, abs=1e-4)
                        assert priors.centres[at].tolist() == centre
                        assert priors.strides[at] == stride
                        at += 1
    assert at == len(priors.centres)


@pytest.mark.parametrize("grid", [PriorGrid(), PriorGrid(centre_offset=0.5), PriorGrid(PRIORS["nine_anchors"], 0.5)])
def test_an_image_uses_the_cells_that_its_own_padding_to_32_fills(grid):
    """mmdetection's rule: ceil(padded side / stride) cells a side, level by level, wherever in its cell a prior lies."""
    sizes = torch.tensor([[97, 129], [128, 192], [33, 1], [64, 160]])
    levels = tuple((math.ceil(128 / s), math.ceil(192 / s)) for s in STRIDES)
    found = inside_image(make_priors(levels, torch.device("cpu"), grid), sizes)
    for image, (height, width) in enumerate(sizes.tolist()):
        padded = [32 * math.ceil(side / 32) for side in (height, width)]
        expected = [
            y < math.ceil(padded[0] / stride) and x < math.ceil(padded[1] / stride)
            for (rows, columns), stride in zip(levels, STRIDES, strict=True)
            for y in range(rows)
            for x in range(columns)
            for _ in grid.shapes
        ]
        assert found[image].tolist() == expected


def test_priors_first_made_by_a_prediction_can_be_trained_with():
    sizes = ((5, 7), *SIZES[1:])  # that no other test has asked for: priors are kept
    with torch.inference_mode():
        make_priors(sizes, torch.device("cpu"))
    boxes = torch.ones(45, 4, requires_grad=True)
    (boxes / make_priors(sizes, torch.device("cpu")).strides[:, None]).sum().backward()  # division keeps its divisor
    assert boxes.grad[:35].eq(1 / 8).all()


def test_priors_of_a_size_are_made_once():
    first, again = (make_priors(SIZES, torch.device("cpu")) for _ in range(2))
    assert first.anchors is again.anchors
    assert make_priors(SIZES, torch.device("cpu"), PriorGrid(centre_offset=0.5)).anchors is not first.anchors
