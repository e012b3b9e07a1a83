import io

import numpy as np
import pytest
from PIL import Image

from pipeline.plots.runs import NAMED_CLASSES, SHOWN_TRIALS, learning_curves, precision_recall, sweep_ranking

RECALLS = np.linspace(0, 1, 101)


def picture(figure) -> Image.Image:
    """The figure as it is stored; fails where it cannot be drawn."""
    data = io.BytesIO()
    figure.savefig(data, format="png")
    return Image.open(data)


def labels(figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].get_legend().get_texts()]


def precision(classes: int) -> np.ndarray:
    thresholds = np.linspace(0.97, 0.1, 10)[:, None, None]
    return thresholds * (1 - RECALLS[:, None] ** (1 + np.arange(classes)))


def test_precision_recall_curves_have_the_figures_as_their_means():
    array = precision(3)
    figure = precision_recall(array, ["RBC", "WBC", "Platelets"])
    lines = {line.get_label().split(" (")[0]: line.get_ydata() for line in figure.axes[0].lines}
    assert np.mean(lines["AP50"]) == pytest.approx(array[0].mean())
    assert np.mean(lines["AP75"]) == pytest.approx(array[5].mean())
    assert np.mean(lines["AP"]) == pytest.approx(array.mean())
    assert np.array_equal(lines["WBC"], array[0, :, 1])
    assert f"AP50 ({array[0].mean():.3f})" in labels(figure)
    assert picture(figure).width > 600


def test_classes_without_objects_do_not_count():
    array = precision(3)
    array[:, :, 1] = -1
    figure = precision_recall(array, ["a", "b", "c"])
    assert f"AP ({array[:, :, [0, 2]].mean():.3f})" in labels(figure)
    assert not any(label.startswith("b ") for label in labels(figure))


def test_many_classes_have_curves_but_no_names():
    many = NAMED_CLASSES + 1
    figure = precision_recall(precision(many), [str(k) for k in range(many)])
    assert len(figure.axes[0].lines) == many + 3
    assert len(labels(figure)) == 3


def test_nothing_detected_can_be_drawn():
    picture(precision_recall(np.full((10, 101, 2), -1.0), ["a", "b"]))
    assert "AP (0.000)" in labels(precision_recall(np.zeros((10, 101, 2)), ["a", "b"]))


def test_ranking_is_best_first_and_shows_what_failed():
    rows = [
        {"params": {"alpha": 0.5, "head": "t_head"}, "value": 0.3},
        {"params": {"alpha": 1.0, "head": "parallel"}, "value": None},
        {"params": {"alpha": 1.5, "head": "t_head"}, "value": float("nan")},
        {"params": {"alpha": 1.0, "head": "t_head"}, "value": 0.4, "published": 0.425},
    ]
    figure = sweep_ranking(rows)
    axes = figure.axes[0]
    ranked = [tick.get_text() for tick in axes.get_yticklabels()]
    assert ranked[:2] == ["alpha 1, head t_head", "alpha 0.5, head t_head"]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([0.4, 0.3, 0, 0])
    assert [text.get_text().strip() for text in axes.texts] == ["0.400 (-0.025)", "0.300", "no figure", "no figure"]
    assert axes.lines[0].get_xydata().tolist() == [[0.425, 0]]
    assert axes.get_xlim()[1] > 0.425
    assert axes.yaxis_inverted()
    picture(figure)


def test_ranking_of_many_and_of_none():
    rows = [{"params": {"seed": seed}, "value": seed / 100} for seed in range(SHOWN_TRIALS + 5)]
    figure = sweep_ranking(rows)
    assert len(figure.axes[0].patches) == SHOWN_TRIALS
    assert figure.axes[0].get_title() == f"best {SHOWN_TRIALS} of {SHOWN_TRIALS + 5} trials"
    picture(sweep_ranking([]))


def test_learning_curves_name_the_best():
    histories = {f"trial {i}": [(epoch, i * epoch / 100) for epoch in range(1, 5)] for i in range(14)}
    histories["empty"] = []
    histories["diverged"] = [(1, float("nan"))]
    figure = learning_curves(histories)
    assert labels(figure)[:2] == ["trial 13", "trial 12"]
    assert len(labels(figure)) == 10
    assert len(figure.axes[0].lines) == 15
    best = max(figure.axes[0].lines, key=lambda line: line.get_linewidth())
    assert best.get_ydata().tolist() == pytest.approx([0.13, 0.26, 0.39, 0.52])
    picture(figure)
    picture(learning_curves({}))
