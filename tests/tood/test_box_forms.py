"""Box forms: raw numbers into boxes, each against its equation worked out number by number."""

import math

import pytest
import torch
from torch import Tensor

from tood.box_forms import BOX_FORMS, MAX_LOG_DISTANCE, BoxForm, Location, distribution

CENTRES = torch.tensor([[0.5, 0.5], [7.0, 2.0], [-1.0, 30.0]])  # in strides
ANCHORS = torch.cat([CENTRES - torch.tensor([4.0, 2.0]), CENTRES + torch.tensor([4.0, 2.0])], dim=1)
STRIDE = 16
AT = Location(CENTRES, ANCHORS, STRIDE)
RAW = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
SCALE = torch.tensor(1.7)

DISTANCES = {  # raw number x, scale s -> distance in strides
    "distance": lambda x, s: s * math.exp(x),
    "distance_px": lambda x, s: math.exp(s * x) / STRIDE,
    "distance_relu": lambda x, s: max(s * x, 0.0),
    "distance_base": lambda x, s: 2 * math.exp(x),
    "distance_reach": lambda x, s: 8 * math.exp(s * x),
}


def decode(form: BoxForm, raw: Tensor = RAW, scale: Tensor = SCALE) -> Tensor:
    return form.decode(raw, scale if form.scaled else None, AT)


@pytest.mark.parametrize("name", DISTANCES)
def test_distances_reach_left_top_right_bottom_from_the_point(name):
    found = decode(BOX_FORMS[name])
    for b in range(2):
        for p, (x, y) in enumerate(CENTRES.tolist()):
            left, top, right, bottom = (DISTANCES[name](v, SCALE.item()) for v in RAW[b, p].tolist())
            assert found[b, p].tolist() == pytest.approx([x - left, y - top, x + right, y + bottom], rel=1e-5, abs=1e-5)


@pytest.mark.parametrize(("name", "stds", "scaled"), [("delta", (0.1, 0.1, 0.2, 0.2), True), ("delta_unit", (1, 1, 1, 1), False)])
def test_deltas_move_and_stretch_the_anchor(name, stds, scaled):
    found = decode(BOX_FORMS[name])
    for b in range(2):
        for p, (x1, y1, x2, y2) in enumerate(ANCHORS.tolist()):
            scale = SCALE.item() if scaled else 1.0
            dx, dy, dw, dh = (scale * v * std for v, std in zip(RAW[b, p].tolist(), stds, strict=True))
            w, h = x2 - x1, y2 - y1
            x, y = (x1 + x2) / 2 + dx * w, (y1 + y2) / 2 + dy * h
            half_w, half_h = w * math.exp(dw) / 2, h * math.exp(dh) / 2
            assert found[b, p].tolist() == pytest.approx([x - half_w, y - half_h, x + half_w, y + half_h], rel=1e-5, abs=1e-5)


@pytest.mark.parametrize(("bins", "width"), [(16, 1.0), (4, 0.5), (2, 3.0)])
def test_a_distribution_reaches_as_far_as_its_mean(bins, width):
    """GFL, Eq. 3-5: sum over i of softmax(s x)_i * i * width, side by side."""
    form = distribution(bins, width)
    assert form.channels == 4 * (bins + 1)
    raw = torch.randn(2, 3, form.channels, generator=torch.Generator().manual_seed(1))
    found = decode(form, raw)
    for b in range(2):
        for p, (x, y) in enumerate(CENTRES.tolist()):
            means = []
            for side in range(4):
                powers = [math.exp(SCALE.item() * v) for v in raw[b, p, side * (bins + 1) : (side + 1) * (bins + 1)].tolist()]
                means.append(sum(i * width * power for i, power in enumerate(powers)) / sum(powers))
            expected = [x - means[0], y - means[1], x + means[2], y + means[3]]
            assert found[b, p].tolist() == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_the_distribution_of_the_table_is_gfls():
    raw = torch.randn(2, 3, 68, generator=torch.Generator().manual_seed(2))
    assert torch.equal(decode(BOX_FORMS["distribution"], raw), decode(distribution(16, 1.0), raw))


@pytest.mark.parametrize("name", BOX_FORMS)
def test_forms_say_what_they_need_and_how_many_numbers_they_take(name):
    form = BOX_FORMS[name]
    assert form.of_anchor == name.startswith("delta")
    assert form.scaled == (name not in ("distance_base", "delta_unit"))
    assert form.keeps_raw == (name in ("distance_base", "delta_unit", "distribution"))
    assert form.channels == (68 if name == "distribution" else 4)
    raw = torch.randn(1, 3, form.channels)
    moved = form.decode(raw, SCALE if form.scaled else None, Location(CENTRES + 1, ANCHORS + 1, STRIDE))
    torch.testing.assert_close(moved, decode(form, raw) + 1)  # relative to its prior


EXPONENTIAL = [name for name in BOX_FORMS if name != "distance_relu"]  # whose distance is as wild as its number


@pytest.mark.parametrize("name", EXPONENTIAL)
@pytest.mark.parametrize("value", [1e30, -1e30, 200.0, -200.0])
def test_wild_numbers_give_finite_boxes_with_an_area_and_finite_gradients(name, value):
    form = BOX_FORMS[name]
    raw = torch.full((1, 3, form.channels), value, requires_grad=True)
    scale = torch.tensor(1.0, requires_grad=True)
    boxes = form.decode(raw, scale if form.scaled else None, AT)
    boxes.sum().backward()
    assert torch.isfinite(boxes).all()
    assert torch.isfinite(raw.grad).all()
    if name.startswith("distance") and value > 0:
        assert boxes[0, 0, 2] - CENTRES[0, 0] >= math.exp(MAX_LOG_DISTANCE) / STRIDE
