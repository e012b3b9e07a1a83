"""How many times as long one way takes as another, and how sure that is."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

DRAWS = 10_000  # of the bootstrap


class Ratio(NamedTuple):
    what: str
    seconds: float  # median
    of: str
    seconds_of: float  # median
    ratio: float  # seconds / seconds_of
    low: float  # of the ratio: 95 % of the bootstrap's draws lie between
    high: float
    calls: int


def ratio_of(what: str, own: Sequence[Sequence[float]], of: str, others: Sequence[Sequence[float]]) -> Ratio:
    """Of medians. own, others: the seconds of each run's calls.

    The interval comes from drawing the runs anew, and the calls of each: processes differ by more than a process's calls. Of four
    runs it holds the true ratio nine times of ten.
    """
    generator = np.random.default_rng(0)
    drawn = [_drawn_medians(runs, generator) for runs in (own, others)]
    low, high = np.quantile(drawn[0] / drawn[1], [0.025, 0.975])
    medians = [float(np.median(np.concatenate(runs))) for runs in (own, others)]
    return Ratio(what, medians[0], of, medians[1], medians[0] / medians[1], float(low), float(high), sum(map(len, own)))


def _drawn_medians(runs: Sequence[Sequence[float]], generator: np.random.Generator) -> np.ndarray:
    lengths = np.array([len(run) for run in runs])
    table = np.full((len(runs), lengths.max()), np.nan)
    for row, run in zip(table, runs, strict=True):
        row[: len(run)] = run
    chosen = generator.integers(len(runs), size=(DRAWS, len(runs), 1))
    calls = (generator.random((DRAWS, *table.shape)) * lengths[chosen]).astype(np.int64)
    drawn = np.where(np.arange(table.shape[1]) < lengths[chosen], table[chosen, calls], np.nan)
    return np.nanmedian(drawn.reshape(DRAWS, -1), axis=1)
