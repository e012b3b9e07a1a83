"""Assignment by place and size against plain loops over points and objects, and at the edges of its rules."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tood.assign import center
from tood.assign.center import assign_center, assign_fovea
from tood.priors import STRIDES, PriorGrid, make_priors

SIZES = ((8, 8), (4, 4), (2, 2), (1, 1), (1, 1))
PRIORS = make_priors(SIZES, torch.device("cpu"), PriorGrid(centre_offset=0.5))
N = len(PRIORS.centres)
LEVEL = torch.arange(5).repeat_interleave(torch.tensor(PRIORS.counts)).tolist()
ALL = torch.ones(1, N, dtype=torch.bool)
FEW = settings(max_examples=40, derandomize=True, deadline=None)
# quarters of a pixel, so that float32 is exact; from specks to boxes far beyond the image, for the reach of every level
LOW, SIDE = st.integers(-2400, 250), st.sampled_from([1, 16, 31, 128, 256, 260, 512, 1000, 2048, 3000])
BOX = st.tuples(LOW, LOW, SIDE, SIDE).map(lambda b: [b[0] / 4, b[1] / 4, (b[0] + b[2]) / 4, (b[1] + b[3]) / 4])
BOXES = st.lists(BOX, min_size=1, max_size=6)


def smallest_owner(wanted_by: dict[int, list[int]], boxes: list[list[float]]) -> list[int]:
    """Each point to the smallest of its objects, ties to the lower index."""

    def size(g: int) -> float:
        x1, y1, x2, y2 = boxes[g]
        return (x2 - x1) * (y2 - y1)

    return [min(wanted_by[p], key=lambda g: (size(g), g)) if wanted_by.get(p) else -1 for p in range(N)]


def slow_center(boxes, points, radius):
    reaches = [(-1, 64), (64, 128), (128, 256), (256, 512), (512, math.inf)]
    wanted_by = {}
    for p in points:
        x, y = PRIORS.centres[p].tolist()
        low, high = reaches[LEVEL[p]]
        for g, (x1, y1, x2, y2) in enumerate(boxes):
            sides = (x - x1, y - y1, x2 - x, y2 - y)
            near = min(sides) > 0
            if radius:
                reach = radius * STRIDES[LEVEL[p]]
                near &= abs(x - (x1 + x2) / 2) < reach and abs(y - (y1 + y2) / 2) < reach
            if near and low <= max(sides) <= high:
                wanted_by.setdefault(p, []).append(g)
    return smallest_owner(wanted_by, boxes)


def slow_fovea(boxes, points, sigma):
    """The peer's way: ranges of cells a level, for objects whose size it takes."""
    wanted_by, start = {}, 0
    limits = [(1, 64), (32, 128), (64, 256), (128, 512), (256, 2048)]
    for (height, width), stride, (low, high) in zip(SIZES, STRIDES, limits, strict=True):
        for g, (x1, y1, x2, y2) in enumerate(boxes):
            if not low <= math.sqrt((x2 - x1) * (y2 - y1)) <= high:
                continue
            first, last = [], []
            for a, b in ((y1, y2), (x1, x2)):
                half = 0.5 * (b - a) / stride
                first.append(math.ceil(a / stride + (1 - sigma) * half - 0.5))
                last.append(math.floor(a / stride + (1 + sigma) * half - 0.5))
            for row in range(max(first[0], 0), min(last[0], height - 1) + 1):
                for column in range(max(first[1], 0), min(last[1], width - 1) + 1):
                    p = start + row * width + column
                    if p in points:
                        wanted_by.setdefault(p, []).append(g)
        start += height * width
    return smallest_owner(wanted_by, boxes)


def run(assign, boxes, points=range(N), **options):
    valid = torch.tensor([[p in set(points) for p in range(N)]])
    return assign(PRIORS, torch.tensor([boxes]), torch.ones(1, len(boxes), dtype=torch.bool), valid, **options)


@FEW
@given(BOXES, st.sampled_from([0.0, 0.5, 1.5, 4.0]), st.booleans())
def test_centre_sampling_is_the_plain_loop(boxes, radius, whole_image):
    points = set(range(N)) - (set() if whole_image else {0, 9, 27, 70, 85})
    found = run(assign_center, boxes, points, radius=radius)
    assert found.object[0].tolist() == slow_center(boxes, points, radius)


@FEW
@given(BOXES, st.sampled_from([0.25, 0.5, 1.0]), st.booleans())
def test_fovea_is_the_plain_loop(boxes, sigma, whole_image):
    points = set(range(N)) - (set() if whole_image else {0, 9, 27, 70, 85})
    found = run(assign_fovea, boxes, points, sigma=sigma)
    assert found.object[0].tolist() == slow_fovea(boxes, points, sigma)


def test_foveas_of_random_objects_at_the_papers_sigma():
    generator = torch.Generator().manual_seed(0)
    corner, side = torch.rand(40, 2, generator=generator) * 60 - 10, torch.rand(40, 2, generator=generator) * 200 + 2
    boxes = torch.cat([corner, corner + side], dim=1).tolist()
    found = run(assign_fovea, boxes, sigma=0.4)
    assert found.object[0].tolist() == slow_fovea(boxes, set(range(N)), 0.4)
    assert (found.object >= 0).any()


@pytest.mark.parametrize(("assign", "option"), [(assign_center, {"radius": 1.5}), (assign_fovea, {"sigma": 0.4})])
def test_target_is_1_where_a_point_has_an_owner_and_0_elsewhere(assign, option):
    found = run(assign, [[4.0, 4, 60, 60]], **option)
    assert 0 < (found.object >= 0).sum() < N
    assert torch.equal(found.target, (found.object >= 0).float())
    assert found.ignored is None


def test_an_object_of_two_levels_sizes_has_a_fovea_on_both():
    side = 50.0  # within (1, 64) and (32, 128)
    found = run(assign_fovea, [[7.0, 7, 7 + side, 7 + side]], sigma=0.4)
    levels = {LEVEL[p] for p in (found.object[0] >= 0).nonzero().flatten().tolist()}
    assert levels == {0, 1}


@pytest.mark.parametrize(
    ("side", "level"), [(4, 0), (62, 0), (2 * 64, 0), (2 * 64 + 2, 1), (2 * 128 + 2, 2), (2 * 256 + 2, 3), (2 * 512 + 2, 4)]
)
def test_an_object_seen_from_its_middle_belongs_to_the_level_of_half_its_side(side, level):
    """Of an object centred on a level's first prior, that prior is positive where half the side is within the level's reach."""
    first = sum(PRIORS.counts[:level])
    x, y = PRIORS.centres[first].tolist()
    found = run(assign_center, [[x - side / 2, y - side / 2, x + side / 2, y + side / 2]], radius=1.5)
    assert found.object[0, first] == 0
    for other in {0, 1, 2, 3, 4} - {level}:
        points = slice(sum(PRIORS.counts[:other]), sum(PRIORS.counts[: other + 1]))
        seen = (PRIORS.centres[points] == PRIORS.centres[first]).all(1)
        assert (found.object[0, points][seen] == -1).all()


def test_a_box_inside_out_or_without_area_gets_nothing():
    boxes = [[40.0, 40, 10, 10], [20, 20, 20, 20], [4, 4, 4, 60]]
    for found in (
        run(assign_center, boxes, radius=1.5),
        run(assign_center, boxes, radius=0.0),
        run(assign_fovea, boxes, sigma=0.4),
    ):
        assert (found.object == -1).all()


@pytest.mark.parametrize(("assign", "option"), [(assign_center, {"radius": 0.0}), (assign_fovea, {"sigma": 1.0})])
def test_of_objects_of_one_area_the_first_wins_also_across_chunks(assign, option, monkeypatch):
    boxes = [[0.0, 0, 50, 32], [0, 0, 32, 50], [2, 2, 34, 52], [0, 0, 50, 32]]
    whole = run(assign, boxes, **option)
    assert 3 not in whole.object
    assert {0, 1} <= set(whole.object.unique().tolist())
    monkeypatch.setattr(center, "CHUNK", 1)
    assert torch.equal(run(assign, boxes, **option).object, whole.object)
