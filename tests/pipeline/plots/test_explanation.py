"""The picture of an explanation: a row a detector, patches and boxes in their colours, whatever the image's shape."""

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.plots.explanation import explanation_picture
from tood.explanation import BestPoint, Explanation
from tood.priors import make_priors

RED, GREEN = (229, 56, 59), (45, 198, 83)


def explanation(size: tuple[int, int] = (64, 96), same: bool = False, numbers: tuple[int, ...] = (1, 2)) -> Explanation:
    """Two objects of 32 px; the points of both tasks are the same or far apart."""
    priors = make_priors(tuple((-(-size[0] // s), -(-size[1] // s)) for s in (8, 16, 32, 64, 128)), torch.device("cpu"))
    n = len(priors.centres)
    objects = torch.tensor([[8.0, 8, 40, 40], [50, 20, 82, 52]])[: max(len(numbers), 1)]
    finest = priors.centres[: priors.counts[0]]
    at, other = (
        [int((finest - torch.tensor(place)).square().sum(1).argmin()) for place in places]
        for places in (((16.0, 16.0), (64.0, 40.0)), ((32.0, 32.0), (72.0, 24.0)))
    )
    ones = torch.ones(len(objects))

    def best(points: list[int]) -> BestPoint:
        return BestPoint(torch.tensor(points[: len(objects)]), objects + 2, 0.5 * ones, 0.8 * ones)

    owner = torch.full((n,), -1)
    owner[at[0]], owner[-1] = 0, len(objects) - 1
    labels = torch.zeros(len(objects), dtype=torch.int64)
    valid, maps = torch.ones(n, dtype=torch.bool), torch.linspace(0, 0.7, n)
    return Explanation(size, numbers, objects, labels, priors, valid, maps, maps, best(at), best(at if same else other), owner)


def count(drawn: Image.Image, colour: tuple[int, int, int], tolerance: int = 25) -> int:
    """Pixels of about a colour."""
    return int((np.abs(np.asarray(drawn.convert("RGB")).astype(int) - colour).max(-1) <= tolerance).sum())


@pytest.mark.parametrize("size", [(96, 64), (32, 320)])
def test_an_explanation_has_a_row_a_detector(size):
    image = torch.full((3, *size), 128, dtype=torch.uint8)
    one = explanation_picture(image, [("first", explanation(size))], "a.jpg")
    two = explanation_picture(image, [("first", explanation(size)), ("second", explanation(size))], "a.jpg")
    assert one.width == two.width
    assert one.height < two.height < 2 * one.height
    assert max(two.size) < 2500


def test_where_both_tasks_choose_one_point_it_is_red_alone():
    image = torch.full((3, 64, 96), 128, dtype=torch.uint8)
    apart, same = (explanation_picture(image, [("x", explanation(same=same))], "a.jpg") for same in (False, True))
    assert count(apart, RED) > 200
    assert count(apart, GREEN) > 200
    assert count(same, RED) > 200
    assert count(same, GREEN) < count(apart, GREEN) / 2  # the legend's


def test_a_detection_and_a_map_of_nothing_can_be_drawn():
    e = explanation(numbers=())
    nowhere = BestPoint(torch.tensor([-1]), torch.zeros(1, 4), torch.zeros(1), torch.zeros(1))
    e = e._replace(score=torch.zeros_like(e.score), classified=nowhere, localised=nowhere, owner=torch.full_like(e.owner, -1))
    assert explanation_picture(torch.zeros(3, 128, 192, dtype=torch.uint8), [("x", e)], "a.jpg").mode == "RGB"
