"""Pictures of an analysis: what is drawn, for few and for many classes, and for nothing at all."""

import numpy as np
import pytest

from pipeline.plots.analysis import NAMED_CLASSES, NUMBERED_CLASSES, alignment, confusions, error_costs
from tests.pipeline.plots.test_runs import picture
from tood.error_kinds import KINDS, Cost


def test_confusions_are_counted_and_coloured_by_their_share_of_a_row():
    matrix = np.array([[8, 1, 1], [0, 0, 5], [2, 0, 0]])
    figure = confusions(matrix, ["cup", "plate"], 0.3)
    axes = figure.axes[0]
    shares = axes.images[0].get_array()
    assert shares.tolist() == [[0.8, 0.1, 0.1], [0, 0, 1], [1, 0, 0]]
    written = {(int(y), int(x)): text.get_text() for text in axes.texts for x, y in [text.get_position()]}
    assert written == {(0, 0): "8", (0, 1): "1", (0, 2): "1", (1, 2): "5", (2, 0): "2"}
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["cup", "plate", "nothing"]
    assert "0.3" in axes.get_title()
    picture(figure)


@pytest.mark.parametrize(
    ("classes", "numbered", "named"),
    [(NUMBERED_CLASSES, True, True), (NUMBERED_CLASSES + 1, False, True), (NAMED_CLASSES + 1, False, False)],
)
def test_confusions_of_many_classes_stay_readable(classes, numbered, named):
    figure = confusions(np.eye(classes + 1, dtype=int), [f"class {k}" for k in range(classes)], 0.3)
    axes = figure.axes[0]
    assert bool(axes.texts) == numbered
    assert ("class 1" in [tick.get_text() for tick in axes.get_yticklabels()]) == named
    if not named:
        picture(figure)


def test_errors_are_bars_with_their_numbers():
    costs = {kind: Cost(100 * i, 0.01 * i - 0.001) for i, kind in enumerate(KINDS)}
    figure = error_costs(costs, 0.6)
    often, dear = figure.axes
    assert [bar.get_width() for bar in often.patches] == [0, 100, 200, 300, 400, 500]
    assert [bar.get_width() for bar in dear.patches] == pytest.approx([cost.gain for cost in costs.values()])
    assert [tick.get_text() for tick in often.get_yticklabels()] == list(KINDS)
    assert dear.texts[1].get_text().strip() == "0.009"
    assert "0.600" in dear.get_title()
    picture(figure)
    picture(error_costs({kind: Cost(0, 0.0) for kind in KINDS}, -1.0))


def test_alignment_is_spread_over_the_objects():
    pcc, iou = np.array([0.5, -1, 1, np.nan]), np.array([0.0, 1.0, 0.5, np.nan])
    figure = alignment(pcc, iou)
    for axes, values in zip(figure.axes, (pcc, iou), strict=True):
        assert sum(bar.get_height() for bar in axes.patches) == 3
        assert axes.lines[0].get_xdata()[0] == pytest.approx(np.nanmean(values))
    picture(figure)
    picture(alignment(np.array([np.nan]), np.array([])))
