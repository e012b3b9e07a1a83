"""Pictures of a data set, its splits side by side or over each other. Built like those of `pipeline.plots.runs`."""

import itertools
from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.plots.runs import ACCENT, COLOURS, FAINT, INK, panels
from tood.data.stats import LARGE, SIZES, SMALL, Statistics, size_classes
from tood.priors import STRIDES

SHOWN_CLASSES = 40
RED = COLOURS[1]
TICKS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)


def classes(splits: Mapping[str, Statistics]) -> Figure:
    """Objects of each class, a panel a split, in the order of the first split's counts."""
    first = next(iter(splits.values()))
    counts = {name: np.bincount(s.labels, minlength=len(s.names)) for name, s in splits.items()}
    order = np.argsort(-next(iter(counts.values())), kind="stable")[:SHOWN_CLASSES]
    figure, row = panels(3.2 + 3.4 * len(splits), 1.5 + 0.3 * max(len(order), 2), len(splits))
    for axes, (name, of_class) in zip(row, counts.items(), strict=True):
        axes.barh(range(len(order)), of_class[order], color=ACCENT if axes is row[0] else FAINT, height=0.7)
        for place, count in enumerate(of_class[order]):
            axes.text(count, place, f" {count:,}", va="center", color=INK, fontsize=9)
        axes.set(title=f"{name}: {of_class.sum():,} objects", xlim=(0, 1.25 * max(of_class.max(initial=1), 1)))
        axes.set_yticks(range(len(order)), [first.names[k] for k in order] if axes is row[0] else [""] * len(order))
        axes.xaxis.get_major_locator().set_params(nbins=4, integer=True)
        axes.set_ylim(max(len(order), 1) - 0.4, -0.6)
        axes.grid(axis="y", visible=False)
    if len(first.names) > len(order):
        figure.suptitle(f"the {len(order)} most frequent of {len(first.names)} classes")
    return figure


def sizes(splits: Mapping[str, Statistics]) -> Figure:
    """Sides of objects, in the file and after the recipe's resize, with COCO's bounds between small, medium and large."""
    figure, row = panels(10, 3.6, 2)
    in_file = {name: np.sqrt(s.areas) for name, s in splits.items()}
    resized = {name: np.sqrt(s.areas) * s.scales[s.owners] for name, s in splits.items()}
    for axes, values, title in ((row[0], in_file, "in the file"), (row[1], resized, "after the recipe's resize")):
        known = np.concatenate(list(values.values()))
        low, high = (known.min(), known.max()) if len(known) else (8, 512)
        for bound, label in ((SMALL, None), (LARGE, "COCO's bounds")):
            axes.axvline(np.sqrt(bound), color=RED, lw=1.2, ls="--", zorder=3, label=label)
        _shares(axes, values, np.geomspace(max(low, 1) * 0.95, max(high, 2) * 1.05, 41))
        axes.set_xscale("log", base=2)
        _ticks(axes, max(low, 1), max(high, 2))
        axes.set(xlabel="side of the object, px (root of its area)", title=title)
    return figure


def shapes(splits: Mapping[str, Statistics]) -> Figure:
    """Width over height of objects, and how many objects an image has."""
    figure, row = panels(10, 3.6, 2)
    ratios = {name: s.sides[:, 0] / s.sides[:, 1] for name, s in splits.items()}
    _shares(row[0], ratios, np.geomspace(1 / 8, 8, 49), clip=True)
    row[0].set_xscale("log", base=2)
    row[0].set_xticks([1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8], ["1:8", "1:4", "1:2", "1:1", "2:1", "4:1", "8:1"])
    row[0].set(xlabel="width : height (the ends hold what lies beyond)", title="shapes of objects")
    most = max((s.per_image.max(initial=0) for s in splits.values()), default=0)
    edges = np.arange(-0.5, most + 1.5, max(1, -(-int(most) // 50)))
    _shares(row[1], {name: s.per_image for name, s in splits.items()}, np.append(edges, edges[-1] + max(1, edges[1] - edges[0])))
    row[1].set(xlabel="objects an image", ylabel="share of images", title="how full images are")
    row[1].xaxis.get_major_locator().set_params(integer=True)
    return figure


def points(splits: Mapping[str, Statistics], m: int) -> Figure:
    """Which levels have a point inside an object, by its size, and how many points it has in all. The first split's."""
    name, s = next(iter(splits.items()))
    figure, row = panels(10, 3.8, 2)
    of_size, totals = size_classes(s.areas), s.points.sum(axis=1)
    for i, size in enumerate(SIZES):
        chosen = s.points[of_size == i]
        if len(chosen):
            row[0].plot(
                range(len(STRIDES)), (chosen > 0).mean(axis=0), "o-", color=COLOURS[i], lw=2, label=f"{size} ({len(chosen):,})"
            )
    row[0].set_xticks(range(len(STRIDES)), [str(stride) for stride in STRIDES])
    row[0].set(
        ylim=(-0.03, 1.03), xlabel="stride of the level", ylabel="share of objects", title=f"{name}: objects with a point inside"
    )
    if row[0].lines:
        row[0].legend(loc="best")
    edges = sorted({0, 1, 2, 4, 8, m, 2 * m, 4 * m, 8 * m, np.inf})
    bottom = np.zeros(len(edges) - 1)
    for i, size in enumerate(SIZES):
        chosen = totals[of_size == i]
        share = np.histogram(chosen, edges)[0] / max(len(totals), 1)
        row[1].bar(range(len(share)), share, bottom=bottom, color=COLOURS[i], width=0.8, label=size)
        bottom += share
    labels = [_span(low, high) for low, high in itertools.pairwise(edges)]
    row[1].set_xticks(range(len(labels)), labels, rotation=45)
    for place, share in enumerate(bottom):
        row[1].text(place, share, f"{share:.1%}", ha="center", va="bottom", color=INK, fontsize=8)
    row[1].axvline(edges.index(m) - 0.5, color=RED, lw=1.2, ls="--", label=f"m = {m}")
    row[1].set(ylim=(0, 1.15 * max(bottom.max(initial=0), 0.05)), xlabel="points inside, all levels", ylabel="share of objects")
    row[1].set_title(f"{name}: {int((totals == 0).sum()):,} objects have none")
    row[1].legend(loc="best")
    row[1].grid(axis="x", visible=False)
    return figure


def _span(low: float, high: float) -> str:
    if np.isinf(high):
        return f"{low:g}+"
    return f"{low:g}" if high == low + 1 else f"{low:g}-{high - 1:g}"


def _shares(axes: Axes, values: Mapping[str, np.ndarray], edges: np.ndarray, clip: bool = False) -> None:
    """Histograms as shares: the first filled, others as lines over it."""
    most = 0.0
    for i, (name, numbers) in enumerate(values.items()):
        shown = np.clip(numbers, edges[0] * 1.0001, edges[-1] * 0.9999) if clip else numbers
        share = np.histogram(shown, edges)[0] / max(len(shown), 1)
        most = max(most, share.max())
        label = f"{name} ({len(numbers):,})"
        if i == 0:
            axes.stairs(share, edges, fill=True, color=ACCENT, alpha=0.8, label=label)
        else:
            axes.stairs(share, edges, color=COLOURS[3], lw=2, label=label)
    axes.set(ylabel="share of objects", ylim=(0, 1.35 * max(most, 0.01)))  # the legend lies above the bars
    axes.legend(loc="upper right")


def _ticks(axes: Axes, low: float, high: float) -> None:
    shown = [tick for tick in TICKS if low * 0.9 <= tick <= high * 1.1]
    axes.set_xticks(shown, [str(tick) for tick in shown])
    axes.minorticks_off()
