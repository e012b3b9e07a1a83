"""Is tonight's figure worse than those of the nights before by more than noise? Pure functions.

A figure fails if it is worse than the median of earlier passed nights by more than

    max(relevant, t sqrt(v (1 + c(n))))

n     earlier nights that differ (a rerun of the same code gives the same bits, and is no second piece of evidence)
v     variance of one night's figure (below);  c  1/n, for a median of more than two nights pi/2n
t     Student's quantile at FAMILY / metrics of the suite: that any of them fails by chance has probability FAMILY a night

Few nights say little about their variance, and Student's quantile at two or three of them would let everything pass. So what was
known beforehand (`Rule.noise`, in the suite's YAML) counts as WEIGHT degrees of freedom, and what was seen joins it:

    accuracy   v is the variance between seeds / seeds, and no less than what was seen of it, nor of the variance between nights
    speed      v is the variance between nights of the ratio's logarithm, and no less than the timings' own spread says

Accuracy is judged as it is, speed by its logarithm: twice the time is as far from once as half of it is. Lower is better for
speed and exact figures, higher for accuracy.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

from pipeline.statistics import t_quantile

FAMILY = 0.001  # probability that chance fails a clean night, any of its metrics
WEIGHT = 8  # degrees of freedom of what was known beforehand
FREEDOM = 10  # most of them that the quantile is taken at, however many nights there are: real noise has heavier tails than normal
WINDOW = 20  # most nights that a figure is compared with

Kind = Literal["accuracy", "speed", "exact"]
Status = Literal["passed", "improved", "new", "failed"]


class Figure(NamedTuple):
    """What a night measured of a metric."""

    value: float  # accuracy: mean over seeds; speed: median ratio to the reference
    noise: float = math.nan  # accuracy: standard deviation between seeds; speed: standard error of the ratio's logarithm
    count: int = 1  # seeds or pairs of timings


class Rule(NamedTuple):
    kind: Kind
    noise: float = 0.0  # known beforehand: accuracy: between seeds; speed: between nights, as a share
    relevant: float = 0.0  # smallest change that matters; speed: as a share


@dataclass(frozen=True)
class Judged:
    """A metric's verdict, and what it came from; None is not known, or no bound."""

    metric: str
    kind: Kind
    status: Status
    value: float | None
    before: float | None = None  # median of the nights it was compared with
    nights: int = 0
    low: float | None = None  # by statistics, it passes from here
    high: float | None = None  # to here
    expected_low: float | None = None  # by the suite's expected range
    expected_high: float | None = None
    noise: float | None = None
    count: int = 1
    why: str = ""

    @property
    def change(self) -> float | None:
        """Accuracy: difference. Speed: factor."""
        if self.value is None or self.before is None:
            return None
        return self.value / self.before if self.kind == "speed" else self.value - self.before

    @property
    def passes(self) -> tuple[float | None, float | None]:
        """The range in which the figure would have passed, of statistics and expectation together."""
        worst = self.low if self.kind == "accuracy" else self.high
        low = [end for end in (self.expected_low, worst if self.kind == "accuracy" else None) if end is not None]
        high = [end for end in (self.expected_high, worst if self.kind == "speed" else None) if end is not None]
        return max(low, default=None), min(high, default=None)


def judge(
    metric: str,
    figure: Figure | None,
    history: Sequence[Figure],
    rule: Rule,
    expected: tuple[float, float] = (-math.inf, math.inf),
    metrics: int = 1,
    missing: str = "it was not measured",
) -> Judged:
    """The verdict on one metric. history: of earlier passed nights, oldest first; metrics: how many the night has in all."""
    ends = [None if math.isinf(end) else end for end in expected]
    shared = {"expected_low": ends[0], "expected_high": ends[1]}
    history = [past for past in history if math.isfinite(past.value)][-WINDOW:]
    band = band_of(history, rule, figure, metrics) if history and rule.kind != "exact" else None
    if band:
        shared |= {"before": band.centre, "nights": len(history), "low": band.low, "high": band.high}
    if figure is None or not math.isfinite(figure.value) or (rule.kind == "speed" and figure.value <= 0):
        why = f"vanished: {missing}" if figure is None else f"is {figure.value}: {missing}"
        return Judged(metric, rule.kind, "failed", None, why=why, **shared)
    value = figure.value
    shared |= {"noise": figure.noise if math.isfinite(figure.noise) else None, "count": figure.count}
    reasons = [reason for reason in (_outside(value, expected), _worse(value, band, rule, len(history)) if band else "") if reason]
    if reasons:
        return Judged(metric, rule.kind, "failed", value, why="; ".join(reasons), **shared)
    if band is None:
        why = "" if rule.kind == "exact" else "no earlier night to compare with"
        return Judged(metric, rule.kind, "passed" if rule.kind == "exact" else "new", value, why=why, **shared)
    better = value > band.high if rule.kind == "accuracy" else value < band.low
    return Judged(metric, rule.kind, "improved" if better else "passed", value, **shared)


class Band(NamedTuple):
    centre: float
    low: float
    high: float


def band_of(history: Sequence[Figure], rule: Rule, tonight: Figure | None, metrics: int) -> Band:
    """Where a figure lies that is the same but for noise, and relevance."""
    level = 1 - FAMILY / max(1, metrics)
    if rule.kind == "speed":
        logs = [math.log(past.value) for past in history]
        variance, freedom = _speed_variance(logs, [*history, *([tonight] if tonight else [])], rule)
        reach = max(math.log1p(rule.relevant), _reach(level, freedom, variance, len(logs)))
        centre = statistics.median(logs)
        return Band(*(math.exp(end) for end in (centre, centre - reach, centre + reach)))
    distinct = list(dict.fromkeys((past.value, past.noise, past.count) for past in history))
    variance, freedom = _accuracy_variance([Figure(*past) for past in distinct], rule)
    reach = max(rule.relevant, _reach(level, freedom, variance, len(distinct)))
    centre = statistics.median(value for value, *_ in distinct)
    return Band(centre, centre - reach, centre + reach)


def _reach(level: float, freedom: float, variance: float, nights: int) -> float:
    of_median = (1 if nights <= 2 else math.pi / 2) / nights
    return _quantile(level, min(freedom, FREEDOM)) * math.sqrt(variance * (1 + of_median))


_quantile = lru_cache(t_quantile)  # every night asks for the same few


def _speed_variance(logs: Sequence[float], figures: Sequence[Figure], rule: Rule) -> tuple[float, float]:
    freedom = WEIGHT + len(logs) - 1
    seen = _variance(logs) if len(logs) > 1 else 0.0
    variance = (WEIGHT * math.log1p(rule.noise) ** 2 + (len(logs) - 1) * seen) / freedom
    errors = [figure.noise**2 for figure in figures if math.isfinite(figure.noise)]
    return max(variance, statistics.median(errors) if errors else 0.0), freedom


def _accuracy_variance(distinct: Sequence[Figure], rule: Rule) -> tuple[float, float]:
    seeds = distinct[-1].count
    spreads = [past.noise**2 for past in distinct if math.isfinite(past.noise)]
    seen, evidence = (statistics.fmean(spreads), len(spreads) * (seeds - 1)) if spreads else (0.0, 0)
    between_seeds = max(seen, (WEIGHT * rule.noise**2 + evidence * seen) / (WEIGHT + evidence))
    variance, others = between_seeds / seeds, len(distinct) - 1
    if others:
        between_nights = _variance([past.value for past in distinct])
        variance = max(variance, (WEIGHT * variance + others * between_nights) / (WEIGHT + others))
    return variance, WEIGHT + evidence


def _variance(values: Sequence[float]) -> float:
    mean = statistics.fmean(values)
    return sum((value - mean) ** 2 for value in values) / (len(values) - 1)


def _outside(value: float, expected: tuple[float, float]) -> str:
    low, high = expected
    if value < low:
        return f"{number(value)} is below the expected {number(low)}"
    if value > high:
        return f"{number(value)} is above the expected {number(high)}"
    return ""


def _worse(value: float, band: Band, rule: Rule, nights: int) -> str:
    when = "the night before" if nights == 1 else f"{nights} nights before (median)"
    if rule.kind == "accuracy" and value < band.low:
        fallen, passes = number(band.centre - value), number(band.centre - band.low)
        return f"{number(value)} is {fallen} below the {number(band.centre)} of {when}; up to {passes} below passes"
    if rule.kind == "speed" and value > band.high:
        times, passes = f"{value / band.centre:.2f}", f"{band.high / band.centre:.2f}"
        took = f"{number(value)} times the reference operation's time against {number(band.centre)} of {when}"
        return f"{times} times as slow: {took}; up to {passes} times as slow passes"
    return ""


def number(value: float) -> str:
    """Four significant digits."""
    return f"{value:.4g}"
