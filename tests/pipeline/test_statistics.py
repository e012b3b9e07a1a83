"""Intervals of differences: their parts against closed forms, and by simulation how often they hold the truth."""

import math

import numpy as np
import pytest
from scipy import stats

from pipeline.statistics import (
    Sample,
    between_seeds,
    difference,
    draws,
    mean_error,
    permutation_p,
    simultaneous,
    t_quantile,
    t_tail,
)
from tood.image_matches import ClassMatches, ImageMatches, weighted_figures


@pytest.mark.parametrize("freedom", [1, 2, 3.7, 12, 200, 4999])
def test_students_t_is_the_known_one(freedom):
    for t in (0, 0.3, 1, 2.5, 9):
        assert t_tail(t, freedom) == pytest.approx(stats.t.sf(t, freedom), rel=1e-9, abs=1e-300)
    for p in (0.6, 0.975, 0.9995):
        assert t_quantile(p, freedom) == pytest.approx(stats.t.ppf(p, freedom), rel=1e-9)


def test_every_drawing_has_as_many_images_as_there_are():
    counts = draws(50, 200, seed=3)
    assert (counts.sum(axis=1) == 50).all()
    assert (counts == draws(50, 200, seed=3)).all()
    assert (counts == 0).mean() == pytest.approx(math.exp(-1), abs=0.02)


def means(x: np.ndarray, weights: np.ndarray) -> Sample:
    """A figure that is a mean over images. x: [R,I]"""
    return Sample(x.mean(axis=1), x @ weights.T / x.shape[1])


def test_one_run_each_is_the_paired_t_test_over_images():
    generator = np.random.default_rng(0)
    common = generator.normal(size=200)
    a, b = common + 0.1 * generator.normal(size=200), common + 0.05 + 0.1 * generator.normal(size=200)
    weights = draws(200, 4000)
    groups = [means(x[None], weights) for x in (a, b)]
    found = difference(*groups, between_seeds(groups), 200)
    expected = stats.ttest_rel(b, a).confidence_interval()
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=0.05)
    assert not found.seeds_known


def test_where_images_do_not_matter_seeds_are_the_two_sample_t_test():
    a, b = np.array([0.40, 0.42, 0.41, 0.43]), np.array([0.44, 0.45, 0.46])
    groups = [Sample(values, np.tile(values[:, None], (1, 50))) for values in (a, b)]
    found = difference(*groups, between_seeds(groups), 100)
    expected = stats.ttest_ind(b, a)
    interval = expected.confidence_interval()
    assert found.p == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.seeds_known


def test_one_seed_borrows_the_other_groups_spread():
    groups = [Sample(np.array(v), np.tile(np.array(v)[:, None], (1, 9))) for v in ([0.40, 0.42, 0.41], [0.44])]
    between = between_seeds(groups)
    assert between.freedom == 2
    assert difference(*groups, between, 100).error == pytest.approx(0.01 * math.sqrt(1 + 1 / 3))


def test_equal_runs_do_not_differ_and_undefined_ones_do_not_say():
    same = Sample(np.array([0.4]), np.full((1, 5), 0.4))
    found = difference(same, same, between_seeds([same, same]), 10)
    assert (found.value, found.low, found.high, found.p) == (0, 0, 0, 1)
    undefined = Sample(np.array([math.nan]), np.full((1, 5), math.nan))
    assert math.isnan(difference(same, undefined, between_seeds([same, undefined]), 10).low)


def test_several_comparisons_share_their_errors():
    assert simultaneous(0.95, 1) == pytest.approx(0.95)
    assert simultaneous(0.95, 5) == pytest.approx(0.99)
    assert mean_error([1.0, 2.0, 3.0]) == pytest.approx((2, 1, 1 / math.sqrt(3)))
    assert math.isnan(mean_error([1.0])[1])
    assert permutation_p(np.zeros(99), 1.0) == pytest.approx(0.01)
    assert permutation_p(np.ones(99), -1.0) == 1


# -- coverage --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("seed_sd", "interaction", "runs"), [(0.05, 0.3, (3, 3)), (0.0, 1.0, (2, 4)), (0.3, 0.3, (5, 1))])
def test_intervals_over_seeds_and_images_hold_the_true_difference(seed_sd, interaction, runs):
    """600 pairs of groups, each with images and seeds of its own: 95 % of the intervals should hold the truth."""
    generator = np.random.default_rng(11)
    images, truth, held = 80, 0.07, 0
    weights = draws(images, 150)
    for _ in range(600):
        common, liking = generator.normal(size=images), 0.2 * generator.normal(size=images)
        groups = []
        for count, shift, own in zip(runs, (0, truth), (0, liking), strict=True):
            seeds = seed_sd * generator.normal(size=(count, 1))
            groups.append(means(common + shift + own + seeds + interaction * generator.normal(size=(count, images)), weights))
        found = difference(*groups, between_seeds(groups), images)
        held += found.low <= truth <= found.high
    assert 0.91 <= held / 600 <= 0.98


def detector(generator: np.random.Generator, images: int, quality: float, scene: np.ndarray) -> ImageMatches:
    """Matches of a detector of one class with two objects an image; boxes of hard scenes are found late and loosely."""
    per_image = 5
    image = np.repeat(np.arange(images), per_image)
    sure = quality + scene[image] + generator.normal(size=len(image))
    right = np.tile(np.arange(per_image) < 2, images)
    scores = np.where(right, 1.2, 0) + sure
    true = np.stack([right & (sure > limit) for limit in (-0.8, 0.2)])
    order = np.argsort(-scores)
    found = np.stack([[np.bincount(image, weights=t, minlength=images) for t in true]] * 3)
    one = ClassMatches(np.full(images, 2.0), image[order], scores[order], true[:, order], np.ones_like(true), found)
    return ImageMatches(("thing",), images, ((one, None, None, None),))


def test_intervals_of_average_precision_hold_the_true_difference():
    """300 pairs of detectors on 60 images each; the truth is what they have on 20,000."""
    generator = np.random.default_rng(5)
    qualities = 0.0, 0.8

    def pair(images: int) -> list[ImageMatches]:
        scene = 0.7 * generator.normal(size=images)
        return [detector(generator, images, quality, scene) for quality in qualities]

    def ap(matches: ImageMatches, weights: np.ndarray) -> np.ndarray:
        return weighted_figures(matches, weights).summary["AP"]

    a, b = (ap(m, np.ones((1, m.images)))[0] for m in pair(20_000))
    truth = b - a
    assert truth > 0.05
    held, sure, images = 0, 0, 60
    weights = draws(images, 200)
    for _ in range(300):
        groups = [Sample(ap(m, np.ones((1, images))), ap(m, weights)[None]) for m in pair(images)]
        found = difference(*groups, between_seeds(groups), images)
        held += found.low <= truth <= found.high
        sure += found.low > 0
    assert 0.91 <= held / 300 <= 0.98
    assert sure > 150  # narrow enough to be of use
