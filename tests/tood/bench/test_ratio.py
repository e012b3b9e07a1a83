"""A ratio of medians lies in its interval, which holds the true one as often as it says."""

import numpy as np
import pytest

from tood.bench.ratio import ratio_of


def test_a_ratio_is_of_medians_over_all_runs():
    ratio = ratio_of("a", [[2.0, 2.0], [2.0, 9.0]], "b", [[1.0], [1.0, 1.0]])
    assert (ratio.seconds, ratio.seconds_of, ratio.ratio, ratio.calls) == (2.0, 1.0, 2.0, 4)
    assert ratio.low <= 2.0 <= ratio.high


def test_the_interval_holds_the_true_ratio_about_as_often_as_it_says():
    draw = np.random.default_rng(3)
    held = 0
    for _ in range(60):
        own, others = (1.1 * draw.lognormal(0, 0.1, (3, 8)), draw.lognormal(0, 0.1, (3, 8)))
        ratio = ratio_of("a", own, "b", others)
        held += ratio.low <= 1.1 <= ratio.high
    assert held >= 52
    assert ratio.high - ratio.low == pytest.approx(0.14, abs=0.06)
