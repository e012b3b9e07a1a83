"""A ratio of medians lies in its interval, which holds the true one as often as it says."""

import numpy as np
import pytest

from tood.bench.ratio import ratio_of


def test_a_ratio_is_of_medians_over_all_runs():
    ratio = ratio_of("a", [[2.0, 2.0], [2.0, 9.0]], "b", [[1.0], [1.0, 1.0]])
    assert (ratio.seconds, ratio.seconds_of, ratio.ratio, ratio.calls) == (2.0, 1.0, 2.0, 4)
    assert ratio.low <= 2.0 <= ratio.high


def test_runs_that_differ_widen_the_interval():
    times = np.random.default_rng(5).lognormal(0, 0.1, 24)
    mixed, sorted_ = times.reshape(4, 6).tolist(), np.sort(times).reshape(4, 6).tolist()
    alike, apart = ratio_of("a", mixed, "b", mixed), ratio_of("a", sorted_, "b", sorted_)
    assert apart.high - apart.low > 1.3 * (alike.high - alike.low)


def test_the_interval_of_four_runs_holds_the_true_ratio_nine_times_of_ten():
    draw = np.random.default_rng(3)
    held, runs, wide = 0, 100, []

    def measured(centre: float) -> list[list[float]]:
        return (centre * draw.lognormal(0, 0.03, (4, 1)) * draw.lognormal(0, 0.01, (4, 1))).tolist()

    for _ in range(runs):
        ratio = ratio_of("a", measured(1.1), "b", measured(1.0))
        held += ratio.low <= 1.1 <= ratio.high
        wide.append(ratio.high - ratio.low)
    assert held >= 0.85 * runs
    assert np.mean(wide) == pytest.approx(0.1, abs=0.02)
