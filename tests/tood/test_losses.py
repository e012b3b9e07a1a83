"""Losses in log space against direct formulas in float64, and their gradients at the ends of the scale."""

import pytest
import torch
import torch.nn.functional as F

from tood.losses import (
    binary_cross_entropy,
    centerness,
    giou_loss,
    log1m_exp,
    negative_focal,
    positive_focal,
    quality_focal,
)

LOG_P = torch.cat([-torch.logspace(-6, 1.9, 60), torch.tensor([-0.6931471, -0.6931472, -0.6931473])])
TARGET = torch.linspace(0, 1, len(LOG_P))[torch.randperm(len(LOG_P), generator=torch.Generator().manual_seed(0))]
ENDS = torch.tensor([0.0, -1e-45, -1e-30, -1e-7, -90.0, -1e4])
GAMMAS = [0.0, 0.5, 1.0, 2.0, 2.5]


def log_of_one_minus(log_p: torch.Tensor) -> torch.Tensor:
    """In float64, by the form that is exact on each side."""
    return torch.where(log_p < -1, torch.log1p(-log_p.exp()), torch.log(-torch.expm1(log_p)))


def test_log_of_one_minus_p_is_exact_at_both_ends():
    log_p = torch.cat([LOG_P, torch.tensor([-1e-30, -1e-10])])
    direct = log_of_one_minus(log_p.double())
    torch.testing.assert_close(log1m_exp(log_p).double(), direct, rtol=3e-6, atol=0)


@pytest.mark.parametrize("gamma", GAMMAS)
def test_focal_forms_equal_their_definitions(gamma):
    p, t, log_p = LOG_P.double().exp(), TARGET.double(), LOG_P.double()
    log_q = log_of_one_minus(log_p)
    direct = {
        "quality": (t - p).abs() ** gamma * -(t * log_p + (1 - t) * log_q),
        "negative": p**gamma * -log_q,
        "positive": (1 - p) ** gamma * -log_p,
    }
    ours = {
        "quality": quality_focal(LOG_P, TARGET, gamma),
        "negative": negative_focal(LOG_P, gamma),
        "positive": positive_focal(LOG_P, gamma),
    }
    for name, values in ours.items():
        torch.testing.assert_close(values.double(), direct[name], rtol=2e-5, atol=1e-9, msg=name)


@pytest.mark.parametrize("gamma", GAMMAS)
def test_focal_forms_are_quality_focal_at_targets_0_and_1(gamma):
    torch.testing.assert_close(negative_focal(LOG_P, gamma), quality_focal(LOG_P, torch.zeros(()), gamma))
    torch.testing.assert_close(positive_focal(LOG_P, gamma), quality_focal(LOG_P, torch.ones(()), gamma), rtol=1e-4, atol=1e-6)


def test_cross_entropy_and_its_gradient_are_torchs_where_torch_is_exact():
    log_p = LOG_P[(LOG_P > -25) & (LOG_P < -1e-3)]
    target = TARGET[: len(log_p)]
    ours = log_p.clone().requires_grad_()
    theirs = log_p.double().requires_grad_()
    a = binary_cross_entropy(ours, target)
    b = F.binary_cross_entropy(theirs.exp(), target.double(), reduction="none")
    torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-8)
    a.sum().backward()
    b.sum().backward()
    torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-4, atol=1e-6)


def test_cross_entropy_is_bounded_by_100_as_torchs():
    impossible = binary_cross_entropy(torch.tensor([-1e4, 0.0]), torch.tensor([1.0, 0.0]))
    torchs = F.binary_cross_entropy(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0]), reduction="none")
    assert impossible[0] == torchs[0] == 100
    assert 80 < impossible[1] <= torchs[1]


@pytest.mark.parametrize("flush", [False, True])
@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("target", [0.0, 0.5, 1.0])
def test_values_and_gradients_are_finite_at_the_ends(target, gamma, flush):
    """Also where the processor flushes denormal numbers to 0."""
    targets = torch.full_like(ENDS, target)
    if flush and not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush denormals")
    try:
        for loss in (
            lambda x: binary_cross_entropy(x, targets),
            lambda x: quality_focal(x, targets, gamma),
            lambda x: negative_focal(x, gamma),
            lambda x: positive_focal(x, gamma),
        ):
            x = ENDS.clone().requires_grad_()
            value = loss(x)
            value.sum().backward()
            assert torch.isfinite(value).all()
            assert torch.isfinite(x.grad).all()
    finally:
        torch.set_flush_denormal(False)


def test_an_object_never_scored_still_pulls_its_score_up():
    """At p = e^-90, where float32 has no probability left, the gradient of -log p is still -1."""
    x = torch.tensor([-90.0], requires_grad=True)
    quality_focal(x, torch.ones(1), 2.0).backward()
    assert x.grad.item() == pytest.approx(-1)


def test_giou_loss_runs_from_0_to_2_and_its_gradient_moves_a_box_to_its_target():
    target = torch.tensor([10.0, 10, 20, 20])
    assert giou_loss(target, target) == 0
    assert giou_loss(torch.tensor([-1e5, -1e5, -1e5 + 1, -1e5 + 1]), target) == pytest.approx(2, abs=1e-5)
    box = torch.tensor([40.0, 10, 50, 20], requires_grad=True)  # to the right, no overlap
    optimiser = torch.optim.Adam([box], lr=0.3)
    for _ in range(300):
        optimiser.zero_grad()
        giou_loss(box, target).backward()
        optimiser.step()
    assert giou_loss(box, target) < 0.1


def test_centerness_is_1_in_the_middle_and_0_from_the_border_on():
    box = torch.tensor([0.0, 0, 8, 4])
    points = torch.tensor([[4.0, 2], [2, 2], [2, 1], [0, 2], [-1, 2], [4, 9], [-1, -1]])
    expected = [1, (1 / 3) ** 0.5, 1 / 3, 0, 0, 0, 0]
    assert centerness(points, box).tolist() == pytest.approx(expected)
    assert centerness(torch.zeros(2), torch.zeros(4)) == 0  # padding
