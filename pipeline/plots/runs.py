"""Figures of a run and of a sweep, built on Figure objects alone: no pyplot, no state shared between threads."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

RECALLS = np.linspace(0, 1, 101)  # COCO's R
NAMED_CLASSES = 8  # with more, a legend would hide the curves
SHOWN_TRIALS = 40
INK, FAINT, ACCENT = "#22303c", "#aab4bd", "#1b6ca8"
COLOURS = ("#1b6ca8", "#d1495b", "#2e8b57", "#e08e0b", "#7a5195", "#00798c", "#a05195", "#6c757d", "#b5651d", "#3d5a80")


def precision_recall(precision: np.ndarray, names: Sequence[str]) -> Figure:
    """Precision over recall: mean of classes at IoU .50, at .75 and over .50:.95, and each class at .50 as a thin line.

    precision: [T=10, R=101, K], COCO's array at area all and 100 detections; -1 where a class has no objects.
    names: [K], in the array's order.
    """
    known = np.ma.masked_less(precision, 0)
    few = len(names) <= NAMED_CLASSES
    figure, axes = _figure(7, 5)
    for k, name in enumerate(names):
        curve = known[0, :, k]
        if curve.count():
            colour = COLOURS[1 + k % (len(COLOURS) - 1)] if few else FAINT
            label = f"{name} ({curve.mean():.3f})" if few else None
            axes.plot(RECALLS, curve, color=colour, lw=0.9, alpha=0.8, label=label)
    means = {
        "AP50": (known[0].mean(axis=-1), "-"),
        "AP75": (known[5].mean(axis=-1), "--"),
        "AP": (known.mean(axis=(0, 2)), ":"),
    }
    for label, (curve, style) in means.items():
        if curve.count():
            axes.plot(RECALLS, curve, style, color=INK, lw=2.2, label=f"{label} ({curve.mean():.3f})")
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision", title="Precision and recall")
    if axes.lines:
        axes.legend(loc="lower left", title=f"thin: classes at IoU .50 ({len(names)})")
    return figure


def sweep_ranking(rows: Sequence[Mapping[str, Any]], metric: str = "val/AP") -> Figure:
    """Trials by their figure, best on top, each labelled with what was swept.

    rows: {"params": {name: value}, "value": the metric or None, optional "published": a paper's figure for this cell, on
    the metric's scale, optional "error": standard error of a mean}. Rows without a value, or with NaN, are shown as such at
    the bottom.
    """
    ranked = sorted(rows, key=lambda row: np.nan_to_num(_number(row["value"]), nan=-np.inf), reverse=True)[:SHOWN_TRIALS]
    labels = [", ".join(f"{name} {_short(value)}" for name, value in row["params"].items()) for row in ranked]
    values = np.array([_number(row["value"]) for row in ranked])
    figure, axes = _figure(8, 1.6 + 0.34 * max(len(ranked), 1))
    places = np.arange(len(ranked))
    axes.barh(places, np.nan_to_num(values), color=[ACCENT if i == 0 else FAINT for i in places], height=0.7)
    errors = np.nan_to_num([_number(row.get("error")) for row in ranked])
    if errors.any():
        axes.errorbar(np.nan_to_num(values), places, xerr=errors, fmt="none", ecolor=INK, elinewidth=1.2, capsize=3)
    published = [(row["published"], place) for place, row in enumerate(ranked) if row.get("published") is not None]
    if published:
        axes.plot(*zip(*published, strict=True), "D", color=COLOURS[1], ms=5, label="published")
        axes.legend(loc="lower right", title="(difference from it)")
    ends = np.nan_to_num(values) + errors
    for value, place in published:
        ends[place] = max(ends[place], value)
    apart = {place: values[place] - value for value, place in published}
    for place, (value, end) in enumerate(zip(values, ends, strict=True)):
        text = "no figure" if np.isnan(value) else f"{value:.3f}" + (f" ({apart[place]:+.3f})" if place in apart else "")
        axes.text(end, place, f"  {text}", va="center", color=INK, fontsize=9)
    axes.set(xlim=(0, (1.25 if apart else 1.15) * max([*ends, 1e-3])), xlabel=metric)
    axes.set_title(f"{len(rows)} trials" if len(rows) == len(ranked) else f"best {len(ranked)} of {len(rows)} trials")
    axes.set_yticks(places, labels)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    return figure


def learning_curves(histories: Mapping[str, Sequence[tuple[float, float]]], metric: str = "val/AP") -> Figure:
    """A metric over epochs, one curve a trial, the best bold. histories: name -> [(epoch, value)], in order."""
    shown = {name: np.array(points, dtype=float) for name, points in histories.items() if len(points)}
    figure, axes = _figure(8, 5)
    ranked = sorted(shown, key=lambda name: np.nanmax(np.append(shown[name][:, 1], -np.inf)), reverse=True)
    for place, name in enumerate(ranked):
        named = place < len(COLOURS)
        axes.plot(
            *shown[name].T,
            marker="o",
            ms=3,
            lw=2.4 if place == 0 else 1.2,
            color=COLOURS[place] if named else FAINT,
            zorder=3 - place / len(ranked),
            label=name if named else None,
        )
    axes.set(xlabel="epoch", ylabel=metric, title=f"{metric} of {len(shown)} trials")
    axes.xaxis.get_major_locator().set_params(integer=True)
    if ranked:
        title = f"best {len(COLOURS)} of {len(ranked)}" if len(ranked) > len(COLOURS) else None
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0, title=title)
    return figure


def panels(width: float, height: float, count: int) -> tuple[Figure, list[Axes]]:
    """A figure of so many inches with `count` axes side by side, in this project's dress."""
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    row = figure.subplots(1, count, squeeze=False)[0].tolist()
    for axes in row:
        axes.grid(color="#e6eaed", lw=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, row


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure, (axes,) = panels(width, height, 1)
    return figure, axes


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
