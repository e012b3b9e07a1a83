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
    low: float  # of the ratio, 95 % interval
    high: float
    calls: int


def ratio_of(what: str, own: Sequence[Sequence[float]], of: str, others: Sequence[Sequence[float]]) -> Ratio:
    """Of medians. own, others: the seconds of each run's calls; the interval comes from drawing each run's calls anew."""
    generator = np.random.default_rng(0)
    drawn = [
        np.median(np.concatenate([generator.choice(run, (DRAWS, len(run))) for run in runs], axis=1), axis=1)
        for runs in (own, others)
    ]
    low, high = np.quantile(drawn[0] / drawn[1], [0.025, 0.975])
    medians = [float(np.median(np.concatenate(runs))) for runs in (own, others)]
    return Ratio(what, medians[0], of, medians[1], medians[0] / medians[1], float(low), float(high), sum(map(len, own)))
