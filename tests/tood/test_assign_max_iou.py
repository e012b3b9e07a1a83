"""Assignment by the highest IoU against a plain loop over anchors and objects."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tood.assign import max_iou
from tood.assign.max_iou import assign_max_iou
from tood.priors import PRIORS, PriorGrid, make_priors

ANCHORS = make_priors(((3, 3), (2, 2), (1, 1), (1, 1), (1, 1)), torch.device("cpu"), PriorGrid(PRIORS["nine_anchors"])).anchors
N = len(ANCHORS)
FEW = settings(max_examples=40, derandomize=True, deadline=None)
LOW, SIDE = st.integers(-30, 40), st.sampled_from([4, 24, 32, 64, 80, 500])
BOX = st.tuples(LOW, LOW, SIDE, SIDE).map(lambda b: [b[0], b[1], b[0] + b[2], b[1] + b[3]])
BOXES = st.lists(BOX, min_size=1, max_size=6)


def slow_ious(boxes: list[list[float]]) -> list[list[float]]:
    """[G][N], in float32 as the assigner has them: equality of IoUs decides."""
    out = []
    for x1, y1, x2, y2 in torch.tensor(boxes).float():
        row = []
        for a1, b1, a2, b2 in ANCHORS:
            overlap = (torch.minimum(x2, a2) - torch.maximum(x1, a1)).clamp(min=0)
            overlap = overlap * (torch.minimum(y2, b2) - torch.maximum(y1, b1)).clamp(min=0)
            row.append((overlap / ((x2 - x1) * (y2 - y1) + (a2 - a1) * (b2 - b1) - overlap)).item())
        out.append(row)
    return out


def slow_max_iou(iou, points, positive, negative):
    owner, ignored = [-1] * N, [False] * N
    for p in points:
        best = max(row[p] for row in iou)
        first = [row[p] for row in iou].index(best)
        if best >= positive:
            owner[p] = first
        ignored[p] = negative <= best < positive
    for g, row in enumerate(iou):  # a later object takes anchors from an earlier one
        best = max(row[p] for p in points)
        for p in points:
            if best > 0 and row[p] == best:
                owner[p], ignored[p] = g, False
    return owner, ignored


def run(boxes, points=range(N), positive_iou=0.5, negative_iou=0.4):
    valid = torch.tensor([[p in set(points) for p in range(N)]])
    everyone = torch.ones(1, len(boxes), dtype=torch.bool)
    objects = torch.tensor([boxes]).float()
    return assign_max_iou(ANCHORS, objects, everyone, valid, positive_iou=positive_iou, negative_iou=negative_iou)


@settings(max_examples=15, derandomize=True, deadline=None)
@given(BOXES, st.sampled_from([(0.5, 0.4), (0.1, 0.1), (0.7, 0.3)]), st.booleans())
def test_max_iou_is_the_plain_loop(boxes, limits, whole_image):
    points = sorted(set(range(N)) - (set() if whole_image else {0, 9, 27, 70, 85}))
    found = run(boxes, points, *limits)
    owner, ignored = slow_max_iou(slow_ious(boxes), points, *limits)
    assert found.object[0].tolist() == owner
    assert found.ignored[0].tolist() == ignored
    assert torch.equal(found.target, (found.object >= 0).float())


def test_an_object_that_no_anchor_fits_keeps_its_best_ones():
    speck = [20.0, 20, 23, 22]
    found = run([speck])
    assert (found.object == 0).any()
    assert found.iou.max() < 0.4
    lost = run([speck, [1e4, 1e4, 1e4 + 9, 1e4 + 9]])  # far from all anchors: forced to nothing
    assert 1 not in lost.object


def test_all_anchors_of_the_best_iou_are_kept():
    """The middle of four cells' anchors: each has the same IoU."""
    found = run([[2.0, 2, 6, 6]])
    owned = (found.object[0] == 0).nonzero().flatten()
    assert len(owned) > 1
    assert found.iou[0, owned].unique().numel() == 1


def test_of_equal_objects_the_first_gets_the_anchors_and_the_last_the_best_of_them():
    box = ANCHORS[4].tolist()
    found = run([box, box])
    assert found.object[0, 4] == 1
    others = found.object[0][(found.object[0] >= 0) & (torch.arange(N) != 4)]
    assert len(others) > 0
    assert (others == 0).all()


def test_the_iou_of_a_point_is_that_with_its_owner():
    """Also where an object was given an anchor that fits another object better."""
    generator = torch.Generator().manual_seed(0)
    corner, side = torch.rand(8, 2, generator=generator) * 30, torch.rand(8, 2, generator=generator) * 60 + 3
    boxes = torch.cat([corner, corner + side], dim=1).tolist()
    found, iou = run(boxes), torch.tensor(slow_ious(boxes))
    owner = found.object[0]
    expected = torch.where(owner >= 0, iou.gather(0, owner.clamp(min=0)[None])[0], 0.0)
    torch.testing.assert_close(found.iou[0], expected)
    assert (expected < iou.amax(0) * (owner >= 0)).any()


def test_chunks_of_objects_change_nothing(monkeypatch):
    boxes = [[0.0, 0, 40, 40], [4, 4, 44, 44], [0, 0, 40, 40], [20, 20, 23, 22], [4, 4, 44, 44]]
    whole = run(boxes)
    monkeypatch.setattr(max_iou, "CHUNK", 2 * N)
    for a, b in zip(run(boxes), whole, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("objects", [torch.zeros(2, 0, 4), torch.full((2, 3, 4), 7.0)], ids=["none", "padding"])
def test_without_objects_everything_is_background_and_nothing_ignored(objects):
    nobody = torch.zeros(objects.shape[:2], dtype=torch.bool)
    everywhere = torch.ones(2, N, dtype=torch.bool)
    found = assign_max_iou(ANCHORS, objects, nobody, everywhere, positive_iou=0.5, negative_iou=0.0)
    assert (found.object == -1).all()
    assert not found.target.any()
    assert not found.iou.any()
