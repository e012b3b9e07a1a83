"""Where priors lie, in what order, and which of them a padded image may use."""

import math

import torch

from tood.priors import STRIDES, inside_image, make_priors

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


def test_an_image_uses_the_cells_that_its_own_padding_to_32_fills():
    """mmdetection's rule: ceil(padded side / stride) cells a side, level by level."""
    sizes = torch.tensor([[97, 129], [128, 192], [33, 1], [64, 160]])
    levels = tuple((math.ceil(128 / s), math.ceil(192 / s)) for s in STRIDES)
    found = inside_image(make_priors(levels, torch.device("cpu")), sizes)
    for image, (height, width) in enumerate(sizes.tolist()):
        padded = [32 * math.ceil(side / 32) for side in (height, width)]
        expected = [
            y < math.ceil(padded[0] / stride) and x < math.ceil(padded[1] / stride)
            for (rows, columns), stride in zip(levels, STRIDES, strict=True)
            for y in range(rows)
            for x in range(columns)
        ]
        assert found[image].tolist() == expected


def test_priors_first_made_by_a_prediction_can_be_trained_with():
    make_priors.cache_clear()
    with torch.inference_mode():
        make_priors(SIZES, torch.device("cpu"))
    boxes = torch.ones(34, 4, requires_grad=True)
    (boxes / make_priors(SIZES, torch.device("cpu")).strides[:, None]).sum().backward()  # division keeps its divisor
    assert boxes.grad[:24].eq(1 / 8).all()
