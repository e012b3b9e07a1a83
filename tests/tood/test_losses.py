"""Losses in log space against direct formulas in float64, and their gradients at the ends of the scale."""

import math

import pytest
import torch
import torch.nn.functional as F
import torchvision.ops as ops

from tood.losses import (
    BOX_LOSSES,
    binary_cross_entropy,
    centerness,
    ciou_loss,
    diou_loss,
    distribution_focal,
    giou_loss,
    iou_loss,
    log1m_exp,
    matchability,
    negative_focal,
    positive_focal,
    quality_focal,
    smooth_l1,
    varifocal,
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
            lambda x: varifocal(x, targets),
            lambda x: matchability(x, targets, gamma),
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


def test_iou_loss_is_minus_log_iou_and_bounded_where_boxes_do_not_meet():
    boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 2], [9, 9, 10, 10]], requires_grad=True)
    loss = iou_loss(boxes, torch.tensor([0.0, 0, 4, 4]).expand(3, 4))
    assert loss.tolist() == pytest.approx([0, math.log(2), -math.log(1e-6)])
    loss.sum().backward()
    assert torch.isfinite(boxes.grad).all()


def test_distance_and_complete_iou_losses_are_torchvisions():
    generator = torch.Generator().manual_seed(0)
    corner, side = torch.rand(2, 300, 2, generator=generator) * 10, torch.rand(2, 300, 2, generator=generator) * 20 + 10
    boxes, targets = torch.cat([corner, corner + side], dim=2)
    torch.testing.assert_close(diou_loss(boxes, targets), ops.distance_box_iou_loss(boxes, targets), rtol=1e-4, atol=1e-5)
    theirs = ops.complete_box_iou_loss(boxes, targets)
    overlapping = ops.box_iou(boxes, targets).diagonal() > 0.5  # from where on the aspect ratio counts; torchvision's always does
    assert 20 < overlapping.sum() < 280
    torch.testing.assert_close(ciou_loss(boxes, targets)[overlapping], theirs[overlapping], rtol=1e-4, atol=1e-4)
    rest = ~overlapping
    torch.testing.assert_close(ciou_loss(boxes, targets)[rest].clamp(max=2), diou_loss(boxes, targets)[rest].clamp(max=2))


@pytest.mark.parametrize("name", BOX_LOSSES)
def test_a_box_loss_is_0_at_its_target_and_moves_a_box_there(name):
    loss, target = BOX_LOSSES[name], torch.tensor([10.0, 10, 20, 26])
    assert loss(target, target).item() == pytest.approx(0, abs=1e-5)
    box = torch.tensor([13.0, 9, 26, 20], requires_grad=True)
    optimiser = torch.optim.Adam([box], lr=0.2)
    for _ in range(200):
        optimiser.zero_grad()
        loss(box, target).backward()
        optimiser.step()
    assert loss(box, target) < 0.1


@pytest.mark.parametrize("name", BOX_LOSSES)
def test_box_losses_are_finite_with_their_gradients_where_boxes_touch_coincide_or_vanish(name):
    boxes = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 2], [3, 3, 3, 3], [5, 5, 5, 9]], requires_grad=True)
    targets = torch.tensor([[0.0, 0, 2, 2], [2, 2, 4, 4], [3, 3, 3, 3], [0, 0, 2, 2]])
    BOX_LOSSES[name](boxes, targets).sum().backward()
    assert torch.isfinite(boxes.grad).all()


def test_distribution_focal_is_the_cross_entropy_with_a_target_shared_by_two_bins():
    generator = torch.Generator().manual_seed(0)
    logits, target = torch.randn(40, 8, generator=generator), torch.rand(40, generator=generator) * 6.9
    target[0], target[1], target[2] = 0.0, 3.0, 6.5
    dense = (1 - (torch.arange(8) - target[:, None]).abs()).clamp(min=0)  # linear interpolation: rows sum to 1
    torch.testing.assert_close(distribution_focal(logits, target), F.cross_entropy(logits, dense, reduction="none"))


def test_distribution_focal_is_least_where_the_mean_of_the_bins_is_the_target():
    logits, target = torch.zeros(6, requires_grad=True), torch.tensor(3.3)
    optimiser = torch.optim.Adam([logits], lr=0.1)
    for _ in range(300):
        optimiser.zero_grad()
        distribution_focal(logits, target).backward()
        optimiser.step()
    assert (logits.softmax(0) * torch.arange(6)).sum().item() == pytest.approx(3.3, abs=0.02)


@pytest.mark.parametrize("gamma", GAMMAS)
def test_varifocal_and_matchability_are_cross_entropies_of_their_own_weight_and_target(gamma):
    p, t = LOG_P.double().exp(), TARGET.double()
    log_q = log_of_one_minus(LOG_P.double())
    torch.testing.assert_close(varifocal(LOG_P, TARGET).double(), t * -(t * p.log() + (1 - t) * log_q), rtol=2e-5, atol=1e-9)
    soft = t**gamma
    expected = -(soft * p.log() + (1 - soft) * log_q)
    torch.testing.assert_close(matchability(LOG_P, TARGET, gamma).double(), expected, rtol=2e-5, atol=1e-9)


def test_matchability_pulls_a_poor_match_harder_than_varifocal():
    poor, log_p = torch.tensor(0.1), torch.tensor(-6.0, requires_grad=True)
    slopes = [torch.autograd.grad(loss, log_p)[0].item() for loss in (matchability(log_p, poor, 1.0), varifocal(log_p, poor))]
    assert slopes[0] == pytest.approx(10 * slopes[1], rel=1e-4)
    assert slopes[0] < 0


@pytest.mark.parametrize("beta", [0.11, 1.0])
def test_smooth_l1_is_torchs(beta):
    values = torch.linspace(-3, 3, 61, requires_grad=True)
    targets = torch.zeros(61)
    ours, torchs = smooth_l1(values, targets, beta), F.smooth_l1_loss(values, targets, beta=beta, reduction="none")
    torch.testing.assert_close(ours, torchs)
    slopes = [torch.autograd.grad(loss.sum(), values)[0] for loss in (ours, torchs)]
    torch.testing.assert_close(*slopes)
