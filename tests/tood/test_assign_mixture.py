"""Two Gaussians fitted to many samples at once against scikit-learn's GaussianMixture, sample by sample."""

import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.mixture import GaussianMixture

from tood.assign import mixture
from tood.assign.mixture import fit_two_gaussians


def sklearns(values: torch.Tensor) -> tuple[list[bool], list[float]]:
    """Is each value of the first component, and its log likelihood."""
    x = values.double().view(-1, 1).numpy()
    model = GaussianMixture(
        2,
        covariance_type="diag",
        means_init=[[x.min()], [x.max()]],
        precisions_init=[[1.0], [1.0]],
        weights_init=[0.5, 0.5],
        max_iter=100,
        tol=1e-3,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of samples that have not converged after 100 steps
        model.fit(x)
    return (model.predict(x) == 0).tolist(), model.score_samples(x).tolist()


def padded(samples: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """[S, C] with infinities at the end of shorter samples, as PAA's sorted costs have them."""
    width = max(len(s) for s in samples) + 2
    valid = torch.stack([torch.arange(width) < len(s) for s in samples])
    return torch.stack([torch.cat([s, torch.full((width - len(s),), math.inf)]) for s in samples]), valid


def assert_equal_to_sklearn(samples: list[torch.Tensor]) -> None:
    found = fit_two_gaussians(*padded(samples))
    for i, sample in enumerate(samples):
        lower, likelihood = sklearns(sample)
        assert found.lower[i, : len(sample)].tolist() == lower
        expected = torch.tensor(likelihood, dtype=torch.float64)
        torch.testing.assert_close(found.log_likelihood[i, : len(sample)], expected, rtol=1e-6, atol=1e-6)


@settings(max_examples=15, derandomize=True, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6), st.sampled_from([0.01, 0.3, 1.0, 5.0]), st.floats(0, 4))
def test_the_fit_is_sklearns(seed, samples, spread, gap):
    """Losses of two kinds, `gap` apart, sorted or not."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(2, 46, (samples,), generator=generator).tolist()
    made = []
    for i, size in enumerate(sizes):
        values = spread * torch.rand(size, generator=generator) + gap * (torch.rand(size, generator=generator) > 0.5)
        made.append(values.sort().values if i % 2 else values)
    assert_equal_to_sklearn(made)


@pytest.mark.parametrize(
    "values",
    [[1.0, 2.0], [0.5, 0.5], [0.0, 0.0, 0.0, 7.0], [3.0] * 9, [0.0, 1e-4, 2e-4], [0.1, 50.0, 90.0], [100.0, 101.0, 102.5]],
)
def test_the_fit_is_sklearns_for_few_equal_or_far_values(values):
    assert_equal_to_sklearn([torch.tensor(values)])


def test_a_sample_is_fitted_the_same_alone_and_among_others():
    generator = torch.Generator().manual_seed(0)
    samples = [torch.rand(size, generator=generator) * 3 for size in (2, 9, 30, 45)]
    values, valid = padded(samples)
    together = fit_two_gaussians(values, valid)
    for i, sample in enumerate(samples):
        alone = fit_two_gaussians(sample[None], torch.ones(1, len(sample), dtype=torch.bool))
        assert torch.equal(alone.lower[0], together.lower[i, : len(sample)])
        torch.testing.assert_close(alone.log_likelihood[0], together.log_likelihood[i, : len(sample)])


def test_steps_after_convergence_change_nothing(monkeypatch):
    values = torch.rand(20, 30, generator=torch.Generator().manual_seed(0)) * 4
    valid = torch.ones(20, 30, dtype=torch.bool)
    first = fit_two_gaussians(values, valid)
    monkeypatch.setattr(mixture, "STEPS", 300)
    for a, b in zip(fit_two_gaussians(values, valid), first, strict=True):
        assert torch.equal(a, b)


def test_samples_without_values_harm_no_other():
    values = torch.full((3, 4), math.inf)
    values[1] = torch.tensor([0.1, 0.2, 3.0, 3.1])
    valid = torch.tensor([[False] * 4, [True] * 4, [False] * 4])
    found = fit_two_gaussians(values, valid)
    assert found.lower[1].tolist() == [True, True, False, False]
    assert torch.isfinite(found.log_likelihood[1]).all()


def test_no_samples_are_no_error():
    assert fit_two_gaussians(torch.zeros(0, 9), torch.zeros(0, 9, dtype=torch.bool)).lower.shape == (0, 9)
