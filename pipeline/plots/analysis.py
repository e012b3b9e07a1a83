"""Pictures of an analysis: confusions, kinds of error, task alignment. Built like those of `pipeline.plots.runs`."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from pipeline.plots.runs import ACCENT, COLOURS, FAINT, INK, panels
from tood.error_kinds import Cost

NUMBERED_CLASSES = 20  # with more, counts in the cells could not be read
NAMED_CLASSES = 100
RED = COLOURS[1]


def confusions(matrix: np.ndarray, names: Sequence[str], threshold: float) -> Figure:
    """Each true class by what is said of it, as shares of its objects, with counts where they can be read.

    matrix: [K+1,K+1] counts, rows are what is there, columns what is said to be there, the last of either is nothing.
    """
    shown = [*names, "nothing"]
    side = len(shown)
    numbered = side <= NUMBERED_CLASSES + 1
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    inches = max(4.2, 0.5 * side + 2) if numbered else 13
    figure, (axes,) = panels(inches + 0.8, inches, 1)
    axes.grid(visible=False)
    image = axes.imshow(share, cmap="Blues", norm=PowerNorm(0.5, 0, 1))  # a root: rare confusions show too
    axes.spines[:].set_visible(False)
    axes.axhline(side - 1.5, color=INK, lw=0.8)
    axes.axvline(side - 1.5, color=INK, lw=0.8)
    if numbered:
        for (row, column), count in np.ndenumerate(matrix):
            if count:
                ink = "white" if share[row, column] > 0.35 else INK
                axes.text(column, row, f"{count:,}", ha="center", va="center", color=ink, fontsize=10 if side <= 12 else 7)
    if side <= NAMED_CLASSES + 1:
        size = 10 if side <= 12 else 8 if side <= 30 else 6
        axes.set_xticks(range(side), shown, rotation=90 if side > 6 else 0, fontsize=size)
        axes.set_yticks(range(side), shown, fontsize=size)
    axes.tick_params(length=0)
    axes.set(xlabel="detected as", ylabel="what is there")
    axes.set_title(f"Confusions at IoU .50, scores from {threshold:g}")
    bar = figure.colorbar(image, ax=axes, shrink=0.8, pad=0.02, label="share of the row")
    bar.set_ticks([0, 0.05, 0.2, 0.5, 1], labels=["0", ".05", ".20", ".50", "1"])
    bar.outline.set_visible(False)
    return figure


def error_costs(costs: Mapping[str, Cost], ap50: float) -> Figure:
    """How often each kind of error occurs, and the AP50 that mending it alone would gain."""
    figure, (often, dear) = panels(9, 3.6, 2)
    places, names = np.arange(len(costs)), list(costs)
    counts, gains = [cost.count for cost in costs.values()], [cost.gain for cost in costs.values()]
    for axes, values, texts, colour in (
        (often, counts, [f"{count:,}" for count in counts], FAINT),
        (dear, gains, [f"{gain:.3f}" for gain in gains], ACCENT),
    ):
        axes.barh(places, values, color=colour, height=0.7)
        for place, value, text in zip(places, values, texts, strict=True):
            axes.text(max(value, 0), place, f" {text}", va="center", color=INK, fontsize=9)
        axes.set_xlim(0, 1.2 * max([*values, 1e-3]))
        axes.xaxis.get_major_locator().set_params(nbins=5)
        axes.set_yticks(places, names)
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
    often.set_title("errors at IoU .50")
    dear.set_title(f"AP50 gained by mending them (now {ap50:.3f})")
    dear.set_yticklabels([])
    return figure


def alignment(pcc: np.ndarray, iou: np.ndarray) -> Figure:
    """How the figures of TOOD's Table 6 are spread over the objects. pcc, iou: [A]; NaN where an object has none."""
    figure, row = panels(9, 3.6, 2)
    for axes, values, bounds, label in (
        (row[0], pcc, (-1, 1), "PCC of score and IoU rankings, top 50"),
        (row[1], iou, (0, 1), "mean IoU, top 10"),
    ):
        known = values[~np.isnan(values)]
        axes.hist(known, bins=40, range=bounds, color=ACCENT, alpha=0.85, rwidth=0.92)
        axes.set(xlim=bounds, xlabel=label, ylabel="objects")
        if len(known):
            axes.axvline(known.mean(), color=RED, lw=2, label=f"mean {known.mean():.3f}")
            axes.legend(loc="upper left")
        axes.xaxis.get_major_locator().set_params(nbins=5)
        axes.yaxis.get_major_locator().set_params(integer=True)
    figure.suptitle("Task alignment, object by object")
    return figure
