"""When an exported detector counts as the same: nearest detections of a class, and what a rounding may decide."""

import pytest
import torch

from tood.export.check import Deviation, DeviationError, ExportError, deviation, require_same

BOXES = [[0.0, 0.0, 10.0, 10.0], [5.0, 5.0, 20.0, 20.0], [30.0, 30.0, 40.0, 40.0]]


def detections(boxes=BOXES, scores=(0.9, 0.5, 0.2), labels=(0, 1, 0)) -> dict[str, torch.Tensor]:
    count = len(scores)
    return {
        "boxes": torch.tensor(boxes[:count]).reshape(-1, 4),
        "scores": torch.tensor(scores),
        "labels": torch.tensor(labels[:count]),
    }


def moved(by: float) -> list[list[float]]:
    return [BOXES[0], [5.0 + by, 5.0, 20.0, 20.0], BOXES[2]]


def test_the_same_deviates_by_nothing():
    assert deviation(detections(), detections(), 0.05, 100) == Deviation(0.0, 0.0, 6)


def test_roundings_are_measured_and_the_order_is_of_no_account():
    found = detections(moved(0.01), (0.9, 0.50005, 0.2))
    found = {key: value[[1, 0, 2]] for key, value in found.items()}
    apart = deviation(detections(), found, 0.05, 100)
    assert apart.box == pytest.approx(0.01, abs=1e-5)
    assert apart.score == pytest.approx(5e-5, abs=1e-6)
    require_same(apart)


@pytest.mark.parametrize(
    "found",
    [
        detections(moved(0.1)),
        detections(scores=(0.9, 0.499, 0.2)),
        detections(labels=(0, 0, 0)),
        detections(scores=(0.9, 0.5)),
        detections(scores=()),
    ],
)
def test_what_differs_is_refused(found):
    apart = deviation(detections(), found, 0.05, 100)
    with pytest.raises(DeviationError, match="it was removed"):
        require_same(apart)


def test_a_detection_that_only_one_side_has_is_excused_at_the_threshold_and_at_the_last_place():
    at_threshold = deviation(detections(scores=(0.9, 0.5, 0.05004)), detections(scores=(0.9, 0.5)), 0.05, 100)
    assert at_threshold == Deviation(0.0, 0.0, 4, 1)
    elsewhere = detections([*BOXES[:2], [50.0, 50.0, 60.0, 60.0]])
    assert deviation(detections(), elsewhere, 0.05, 3) == Deviation(0.0, 0.0, 4, 2)
    assert deviation(detections(), elsewhere, 0.05, 4).box == pytest.approx(20.0)  # a place was left: no excuse
    lost = detections([[50.0, 50.0, 60.0, 60.0], *BOXES[1:]])
    assert deviation(detections(), lost, 0.05, 3).box == pytest.approx(50.0)  # the best one was not the last


def test_nothing_compared_proves_nothing():
    nothing = deviation(detections(scores=()), detections(scores=()), 0.05, 100)
    assert nothing == Deviation(0.0, 0.0, 0)
    with pytest.raises(ExportError, match="nothing to compare"):
        require_same(nothing)


def test_deviations_of_images_add_up():
    assert Deviation(0.1, 2.0, 5, 1).and_of(Deviation(0.2, 1.0, 7)) == Deviation(0.2, 2.0, 12, 1)
