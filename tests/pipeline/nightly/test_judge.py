"""The verdict on a metric: what fails, what does not, and how often chance would fail a clean night - by simulation."""

import math

import numpy as np
import pytest

from pipeline.nightly.judge import FAMILY, Figure, Judged, Rule, band_of, judge

ACCURACY, SPEED, EXACT = Rule("accuracy", 0.01, 0.005), Rule("speed", 0.06, 0.15), Rule("exact")
METRICS = 12


def accuracy(*values: float, noise: float = 0.01, seeds: int = 3) -> list[Figure]:
    return [Figure(value, noise, seeds) for value in values]


def speed(*values: float) -> list[Figure]:
    return [Figure(value, 0.02, 50) for value in values]


def verdict(value: float | None, history: list[Figure], rule: Rule = ACCURACY, **more) -> Judged:
    template = history[0] if history else Figure(0.0)
    return judge("entry/metric", None if value is None else template._replace(value=value), history, rule, **more)


def test_without_history_a_figure_is_new_and_with_one_night_it_is_judged():
    assert verdict(0.3, []).status == "new"
    assert verdict(0.3, accuracy(0.3)).status == "passed"
    assert verdict(0.0, accuracy(0.3)).status == "failed"


def test_a_fall_says_from_what_by_how_much_and_what_would_have_passed():
    found = verdict(0.05, accuracy(0.30, 0.31), metrics=METRICS)
    assert found.status == "failed"
    assert found.before == pytest.approx(0.305)
    assert found.change == pytest.approx(-0.255)
    assert found.why.startswith("0.05 is 0.255 below the 0.305 of 2 nights before (median); up to ")
    assert found.passes == (pytest.approx(found.low), None)


def test_twice_as_slow_fails_after_two_nights_and_half_is_an_improvement():
    slow = verdict(2.1, speed(1.0, 1.05), SPEED, metrics=METRICS)
    assert slow.status == "failed"
    assert "2.05 times as slow" in slow.why
    assert slow.change == pytest.approx(2.1 / math.sqrt(1.05))
    assert verdict(0.5, speed(1.0, 1.05), SPEED, metrics=METRICS).status == "improved"
    assert verdict(1.1, speed(1.0, 1.05), SPEED, metrics=METRICS).status == "passed"


def test_what_is_too_small_to_matter_passes_however_sure_it_is():
    sure = accuracy(*(0.3 + 1e-5 * i for i in range(10)), noise=1e-6)
    rule = Rule("accuracy", 1e-6, 0.005)
    assert verdict(0.2960, sure, rule).status == "passed"
    assert verdict(0.2940, sure, rule).status == "failed"
    assert verdict(1.14, speed(*[1.0] * 10), Rule("speed", 1e-6, 0.15)).status == "passed"


def test_the_same_bits_again_are_no_second_piece_of_evidence():
    once, often = (band_of(accuracy(*[0.3] * n), ACCURACY, None, METRICS) for n in (1, 10))
    assert once == often
    assert band_of(accuracy(*(0.3 + 0.001 * i for i in range(10))), ACCURACY, None, METRICS).low > often.low


def test_seeds_that_disagree_widen_what_passes():
    assert verdict(0.25, accuracy(0.3, noise=0.01)).status == "failed"
    assert verdict(0.25, accuracy(0.3, noise=0.05)).status == "passed"


def test_what_vanished_or_is_no_number_fails_and_says_why():
    assert "vanished: training has diverged" in verdict(None, accuracy(0.3), missing="training has diverged").why
    for value in (math.nan, math.inf, -math.inf):
        assert verdict(value, accuracy(0.3)).status == "failed"
        assert verdict(value, []).value is None
    assert verdict(0.0, speed(1.0), SPEED).status == "failed"


def test_the_expected_range_holds_whatever_the_nights_before_were():
    assert verdict(0.30, accuracy(0.3), expected=(0.35, math.inf)).why == "0.3 is below the expected 0.35"
    assert verdict(0.30, [], expected=(0.1, 0.2)).why == "0.3 is above the expected 0.2"
    assert verdict(0.30, [], expected=(0.3, 0.3)).status == "new"
    assert verdict(0.0, [], EXACT, expected=(0.0, 1e-9)).status == "passed"
    assert verdict(2e-9, [], EXACT, expected=(0.0, 1e-9)).status == "failed"


def test_nights_without_a_figure_are_no_history():
    assert verdict(0.3, [Figure(math.nan)]).status == "new"


# -- by simulation: clean nights, drawn as nights are -----------------------------------------------------------------


def clean_nights(draw: np.random.Generator, count: int, rule: Rule, spread: float, tails: bool, seeds: int = 3) -> list[Figure]:
    """Figures of nights in which nothing changed but chance. spread: true standard deviation; tails: Student's t, 4 degrees."""
    scale = spread / math.sqrt(2) if tails else spread

    def noise(*shape: int) -> np.ndarray:
        return scale * draw.standard_t(4, shape) if tails else draw.normal(0, scale, shape)

    if rule.kind == "speed":
        return [Figure(math.exp(value), 0.02, 50) for value in noise(count)]
    runs = 0.3 + noise(count, seeds)
    return [Figure(row.mean(), row.std(ddof=1), seeds) for row in runs]


def alarms(rule: Rule, spread: float, tails: bool, nights: int, times: int, seed: int) -> float:
    """Share of clean metrics that fail on the night after so many others. What seems slow is timed again, twice at most."""
    draw, failed = np.random.default_rng(seed), 0
    for _ in range(times):
        *history, tonight = clean_nights(draw, nights + 1, rule, spread, tails)
        bad = judge("m", tonight, history, rule, metrics=METRICS).status == "failed"
        if bad and rule.kind == "speed":
            for again in clean_nights(draw, 2, rule, spread, tails):
                bad = bad and judge("m", again, history, rule, metrics=METRICS).status == "failed"
        failed += bad
    return failed / times


@pytest.mark.parametrize("nights", [1, 2, 3, 8, 20])
@pytest.mark.parametrize("rule", [ACCURACY, SPEED], ids=lambda r: r.kind)
@pytest.mark.parametrize("tails", [False, True], ids=["normal", "heavy tails"])
def test_chance_fails_next_to_no_clean_night(nights, rule, tails):
    """2,000 metrics each, noise as it was known beforehand. FAMILY / METRICS allows one in 12,000 where it is normal."""
    assert alarms(rule, rule.noise, tails, nights, 2000, seed=nights) <= (2 if tails else 1) / 2000


@pytest.mark.parametrize("rule", [ACCURACY, SPEED], ids=lambda r: r.kind)
def test_noise_of_twice_what_was_known_beforehand_is_learnt_from_the_nights(rule):
    few, many = (alarms(rule, 2 * rule.noise, False, nights, 2000, seed=5) for nights in (2, 20))
    assert few <= 0.004
    assert many <= 0.001


def test_twenty_clean_nights_in_a_row_pass_with_all_their_metrics():
    """200 suites of 12 metrics, 20 nights each, every night joining the history that the next is judged by: 48,000 figures."""
    draw, alarmed = np.random.default_rng(11), 0
    for _ in range(200):
        nights = [clean_nights(draw, 20, rule, rule.noise, False) for rule in [ACCURACY, SPEED] * (METRICS // 2)]
        for metric, rule in zip(nights, [ACCURACY, SPEED] * (METRICS // 2), strict=True):
            failed = [judge("m", metric[i], metric[:i], rule, metrics=METRICS).status == "failed" for i in range(20)]
            alarmed += any(failed)
    assert alarmed / 200 <= 20 * FAMILY * 1.5  # suites with any alarm in 20 nights


@pytest.mark.parametrize(("fall", "found"), [(0.3, 1.0), (0.1, 0.999), (0.06, 0.8)])
def test_a_regression_of_accuracy_is_found_on_the_third_night(fall, found):
    draw, count = np.random.default_rng(3), 0
    for _ in range(500):
        first, second, third = clean_nights(draw, 3, ACCURACY, 0.01, False)
        worse = third._replace(value=third.value - fall)
        count += judge("m", worse, [first, second], ACCURACY, metrics=METRICS).status == "failed"
    assert count / 500 >= found


@pytest.mark.parametrize(("times", "found"), [(2.0, 0.99), (3.0, 1.0)])
def test_a_slower_loader_is_found_on_the_third_night(times, found):
    draw, count = np.random.default_rng(4), 0
    for _ in range(500):
        first, second, *timings = clean_nights(draw, 5, SPEED, 0.05, False)
        slow = min(timing.value for timing in timings) * times  # timed again twice, the best counts
        count += judge("m", Figure(slow, 0.02, 50), [first, second], SPEED, metrics=METRICS).status == "failed"
    assert count / 500 >= found
