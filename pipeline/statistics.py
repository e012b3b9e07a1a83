"""How sure a difference between detectors is: over the images they were measured on and over the seeds they were trained with.

Measured figures vary for two reasons. Other images would have given other figures: images are drawn anew with replacement, the
same ones for every run (a paired bootstrap). Another seed would have given another detector: runs of one configuration tell
how far. The variance of a difference of means over n_A and n_B seeds is estimated by

    s^2 (1/n_A + 1/n_B) + max(0, v - i (1/n_A + 1/n_B))

s^2   variance between seeds, pooled over the groups; v  variance of the difference over resamples;
i     variance over resamples of a run about its group's mean: how much of what a seed does depends on the images. It is part of
      s^2 already and would count twice.

The interval is Student's t with Satterthwaite's degrees of freedom. Where no group has two seeds, s is not known and the
interval is about these very weights. Numpy alone. Shapes: B resamples, I images, R runs.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

LEVEL = 0.95
RESAMPLES = 1000


class Sample(NamedTuple):
    """A figure of every run of a group."""

    values: np.ndarray  # f64 [R] as measured
    resampled: np.ndarray  # f64 [R,B] on resampled images, the same for all groups


class Between(NamedTuple):
    """What seeds do, pooled over groups with two runs and more."""

    variance: float  # s^2
    of_images: float  # i
    freedom: int  # 0: not known


class Difference(NamedTuple):
    value: float  # second minus first
    low: float
    high: float
    error: float  # standard error
    p: float  # two-sided
    level: float
    runs: tuple[int, int]
    seeds_known: bool


def draws(images: int, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """How often each image occurs in each of `resamples` drawings of as many images, with replacement. i32 [B,I]."""
    generator = np.random.default_rng(seed)
    return generator.multinomial(images, np.full(images, 1 / images), size=resamples).astype(np.int32)


def between_seeds(groups: Sequence[Sample]) -> Between:
    """Pooled variances of the groups' runs about their group's mean. A figure that is not defined makes it unknown."""
    freedom = sum(len(group.values) - 1 for group in groups)
    if not freedom:
        return Between(0.0, 0.0, 0)
    spread = sum(((group.values - group.values.mean()) ** 2).sum() for group in groups)
    apart = 0.0
    for group in groups:
        about_mean = group.resampled - group.resampled.mean(axis=0)  # [R,B]
        apart += _variances(about_mean).sum()  # of R runs together (R - 1) i
    return Between(float(spread) / freedom, float(apart) / freedom, freedom)


def difference(first: Sample, second: Sample, between: Between, images: int, level: float = LEVEL) -> Difference:
    """Mean of the second group's figure minus mean of the first's, with its interval. images: how many there are."""
    value = float(second.values.mean() - first.values.mean())
    runs = len(first.values), len(second.values)
    share = 1 / runs[0] + 1 / runs[1]
    seeds = between.variance * share
    over_images = _variances((second.resampled.mean(axis=0) - first.resampled.mean(axis=0))[None])[0]
    if between.freedom:
        over_images = max(0.0, over_images - between.of_images * share)
    variance = seeds + over_images
    if not math.isfinite(variance) or not math.isfinite(value):
        return Difference(value, math.nan, math.nan, math.nan, math.nan, level, runs, between.freedom > 0)
    error = math.sqrt(variance)
    if not error:
        return Difference(value, value, value, 0.0, float(value == 0), level, runs, between.freedom > 0)
    # the variances' own uncertainty: seeds have `freedom` pieces of evidence, images one less than there are
    unsure = (seeds**2 / between.freedom if between.freedom else 0.0) + over_images**2 / max(1, images - 1)
    freedom = variance**2 / unsure
    reach = t_quantile((1 + level) / 2, freedom) * error
    return Difference(
        value, value - reach, value + reach, error, 2 * t_tail(abs(value) / error, freedom), level, runs, between.freedom > 0
    )


def permutation_p(values: np.ndarray, observed: float) -> float:
    """Two-sided p of an observed difference among those of random exchanges, itself counted as one of them."""
    return float((np.sum(np.abs(values) >= abs(observed) - 1e-12) + 1) / (len(values) + 1))


def simultaneous(level: float, comparisons: int) -> float:
    """The level of each of several intervals that hold together at `level` (Bonferroni)."""
    return 1 - (1 - level) / max(1, comparisons)


def mean_error(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean, standard deviation between values, and standard error of the mean; NaN where one value does not tell."""
    column = np.asarray(values, dtype=np.float64)
    spread = float(column.std(ddof=1)) if len(column) > 1 else math.nan
    return float(column.mean()), spread, spread / math.sqrt(len(column))


def t_tail(t: float, freedom: float) -> float:
    """P(T > t) of Student's t, t >= 0."""
    return 0.5 * _beta_share(freedom / (freedom + t * t), freedom / 2, 0.5)


def t_quantile(p: float, freedom: float) -> float:
    """The t that Student's distribution stays below with probability p >= 0.5."""
    low, high = 0.0, 1.0
    while t_tail(high, freedom) > 1 - p:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if t_tail(middle, freedom) > 1 - p else (low, middle)
    return (low + high) / 2


def _variances(rows: np.ndarray) -> np.ndarray:
    """Variance over the resamples in which a figure is defined. [R,B] -> [R]"""
    return np.array([np.var(row[~np.isnan(row)], ddof=1) if np.sum(~np.isnan(row)) > 1 else math.nan for row in rows])


def _beta_share(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function I_x(a, b), by Lentz's continued fraction."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - _beta_share(1 - x, b, a)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)) / a
    tiny = 1e-300
    c, d = 1.0, 1 / max(1 - (a + b) * x / (a + 1), tiny)
    share = d
    for m in range(1, 10_000):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / (1 + term * d or tiny)
            c = 1 + term / c or tiny
            share *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return front * share
