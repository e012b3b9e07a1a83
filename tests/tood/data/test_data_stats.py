"""Figures of a data set: counted by hand, and points inside as the detector's own priors and test have them."""

import numpy as np
import pytest
import torch

from tood.boxes import inside
from tood.data.coco import CocoData
from tood.data.record import ImageRecord
from tood.data.stats import figures_of, points_inside, size_classes, statistics
from tood.priors import PriorGrid, make_priors


def record(number: int, height: int, width: int, boxes: list, labels: list, crowd: list | None = None) -> ImageRecord:
    array = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    areas = ((array[:, 2] - array[:, 0]) * (array[:, 3] - array[:, 1])).astype(np.float64)
    marks = np.array(crowd or [False] * len(array), dtype=bool)
    return ImageRecord(number, None, height, width, array, np.array(labels, dtype=np.int64), marks, areas)


def data(*records: ImageRecord) -> CocoData:
    return CocoData(tuple(records), ("cat", "dog"), (1, 2), None, "")


SET = data(
    record(1, 100, 200, [[0, 0, 20, 10], [10, 10, 110, 90], [0, 0, 200, 100]], [0, 1, 1], [False, False, True]),
    record(2, 200, 100, [[50, 50, 90, 90]], [0]),
    record(3, 50, 50, [], []),
)


def test_counts_sizes_and_shapes():
    s = statistics(SET, long_side=400, short_side=200)
    assert s.per_image.tolist() == [2, 1, 0]
    assert s.scales.tolist() == [2, 2, 4]
    assert s.owners.tolist() == [0, 0, 1]
    figures = figures_of(s, m=13)
    assert {key: figures[key] for key in ("images", "images_without_objects", "objects", "crowds")} == {
        "images": 3, "images_without_objects": 1, "objects": 3, "crowds": 1}  # fmt: skip
    assert figures["classes"] == {"cat": {"objects": 2, "images": 2}, "dog": {"objects": 1, "images": 1}}
    assert figures["sizes"] == {"all": 3, "small": 1, "medium": 2, "large": 0}
    assert figures["sizes_after_resize"] == {"small": 1, "medium": 1, "large": 1}
    assert figures["aspect_ratio"]["max"] == 2
    assert figures["objects_an_image"]["mean"] == 1


def test_sizes_go_by_cocos_bounds():
    assert size_classes(np.array([1023, 1024, 9215.9, 9216])).tolist() == [0, 1, 1, 2]


@pytest.mark.parametrize("offset", [0.0, 0.5])
@pytest.mark.parametrize("size", [(96, 160), (250, 333), (800, 1333)])
def test_points_inside_are_those_of_the_detectors_own_priors(size, offset):
    height, width = size
    draw = np.random.default_rng(3)
    corners = draw.uniform(0, 1, (300, 2, 2)) ** np.array([1, 2])[:, None] * [width, height]
    boxes = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
    boxes[:40] = boxes[:40].round() // 8 * 8  # edges upon points
    boxes = boxes.astype(np.float32).astype(np.float64)
    cells = [(-(-height // 32) * 4, -(-width // 32) * 4)]
    for _ in range(4):
        cells.append(tuple(-(-side // 2) for side in cells[-1]))
    priors = make_priors(tuple(cells), torch.device("cpu"), PriorGrid(centre_offset=offset))
    is_inside = inside(priors.centres.double(), torch.from_numpy(boxes).unsqueeze(1))
    expected = torch.stack([part.sum(1) for part in is_inside.split(priors.counts, dim=1)], dim=1)
    found = points_inside(boxes, np.tile([height, width], (300, 1)), offset)
    assert found.tolist() == expected.tolist()
    assert (found.sum(axis=1) == 0).any()


def test_an_object_between_the_points_has_none():
    found = statistics(data(record(1, 64, 64, [[1, 1, 7, 7], [7, 7, 9, 9]], [0, 0])), long_side=64, short_side=64)
    assert found.points.tolist() == [[0] * 5, [1, 0, 0, 0, 0]]
    figures = figures_of(found, m=2)
    assert figures["objects_without_a_point"] == {"all": 1, "small": 1, "medium": 0, "large": 0}
    assert figures["objects_with_fewer_points_than_m"]["all"] == 2
    assert figures["levels"]["8"] == {
        "objects_with_a_point": {"all": 1, "small": 1, "medium": 0, "large": 0},
        "points_an_object": 0.5,
    }


def test_a_set_without_objects_has_figures_too():
    figures = figures_of(statistics(data(record(1, 50, 50, [], [])), long_side=64, short_side=64), m=13)
    assert (figures["objects"], figures["side"]["mean"], figures["levels"]["8"]["points_an_object"]) == (0, None, None)
