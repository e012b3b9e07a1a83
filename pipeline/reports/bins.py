"""Trials by the values of an axis: as they are where these are few, in equal steps where a search has drawn many."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from pipeline.reports.svg import number
from pipeline.reports.sweep_facts import Trial, Word
from pipeline.statistics import t_quantile

FEW = 20  # values that are shown as they are
BINS = 8


class Axis(NamedTuple):
    name: str
    labels: list[str]  # of the bins, in order
    centres: list[float]  # numbers to place them by; 0, 1, 2, ... for words
    numeric: bool
    binned: bool  # a bin is a span of numbers
    log: bool
    place: Callable[[Word], int]  # the bin of a value


class Mean(NamedTuple):
    count: int
    mean: float
    half: float  # of the 95 % interval of the mean; NaN with one trial


def axis_of(name: str, trials: Sequence[Trial], few: int = FEW) -> Axis:
    """The axis and its bins. Numbers come in their order, words in the order of their names."""
    values = {t.settings[name] for t in trials if name in t.settings}
    numeric = all(isinstance(value, float) for value in values)
    ordered = sorted(values) if numeric else sorted(map(str, values))
    log = numeric and bool(ordered) and ordered[0] > 0 and ordered[-1] / ordered[0] > 30
    if not numeric or len(ordered) <= few:
        places = {value: i for i, value in enumerate(ordered)}
        labels = [number(v) if numeric else v for v in ordered]
        centres = [float(v) if numeric else float(i) for i, v in enumerate(ordered)]
        return Axis(name, labels, centres, numeric, False, log, lambda value: places[value if numeric else str(value)])
    ends = np.geomspace(ordered[0], ordered[-1], BINS + 1) if log else np.linspace(ordered[0], ordered[-1], BINS + 1)
    middle = [float(math.sqrt(a * b) if log else (a + b) / 2) for a, b in itertools.pairwise(ends)]
    labels = [f"{float(f'{a:.3g}'):g}–{float(f'{b:.3g}'):g}" for a, b in itertools.pairwise(ends)]

    def place(value: Word) -> int:
        return int(np.clip(np.searchsorted(ends, value, "right") - 1, 0, BINS - 1))

    return Axis(name, labels, middle, True, True, log, place)


def means(axes: Sequence[Axis], trials: Sequence[Trial]) -> dict[tuple[int, ...], Mean]:
    """Mean of the metric in each cell of some axes, over whatever else the trials differ in."""
    cells: dict[tuple[int, ...], list[float]] = {}
    for trial in trials:
        if trial.value is not None and all(axis.name in trial.settings for axis in axes):
            cells.setdefault(tuple(axis.place(trial.settings[axis.name]) for axis in axes), []).append(trial.value)
    return {cell: _mean(values) for cell, values in cells.items()}


def told_apart(axis: Axis, trials: Sequence[Trial]) -> float:
    """The share of the variance of the metric that lies between the axis' values."""
    values = np.array([t.value for t in trials if t.value is not None and axis.name in t.settings])
    if len(values) < 3 or not values.var():
        return 0.0
    between = sum(cell.count * (cell.mean - values.mean()) ** 2 for cell in means([axis], trials).values())
    return float(between / (len(values) * values.var()))


def _mean(values: Sequence[float]) -> Mean:
    count = len(values)
    half = t_quantile(0.975, count - 1) * float(np.std(values, ddof=1)) / math.sqrt(count) if count > 1 else math.nan
    return Mean(count, float(np.mean(values)), half)
