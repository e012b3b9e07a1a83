"""The dense head: where it starts, how raw numbers become boxes, what alignment touches, and precision."""

import pytest
import torch
from torch import nn

from tood.head import DenseHead

SIZES = ((6, 8), (3, 4), (2, 2), (1, 1), (1, 1))
FORMS = [("t_head", "distance", "both"), ("t_head", "delta", "both"), ("parallel", "distance", "none")]


def make_head(tower="t_head", box="distance", aligner="both", channels=8) -> DenseHead:
    torch.manual_seed(0)
    return DenseHead(in_channels=8, channels=channels, layers=2, groups=2, num_classes=3, tower=tower, box=box, aligner=aligner)


def make_pyramid(seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 8, h, w, generator=generator) for h, w in SIZES]


def stir(head: DenseHead) -> DenseHead:
    """Random weights: at the start offsets and differences between cells are too small to show."""
    torch.manual_seed(1)
    for name, parameter in head.named_parameters():
        if name != "scales":
            nn.init.normal_(parameter, std=0.2)
    return head


@pytest.mark.parametrize("form", FORMS)
def test_predictions_cover_every_point_and_start_at_probability_one_percent(form):
    log_scores, boxes, priors = make_head(*form)(make_pyramid())
    assert log_scores.shape == (2, 66, 3)
    assert boxes.shape == (2, 66, 4)
    assert priors.counts == (48, 12, 4, 1, 1)
    assert (log_scores.exp() - 0.01).abs().max() < 0.003


def without_offsets(box: str) -> DenseHead:
    head = make_head(box=box, aligner="none")
    nn.init.zeros_(head.boxes.weight)
    with torch.no_grad():
        head.scales.copy_(torch.tensor([1.0, 2, 3, 4, 5]))
    return head


def test_a_distance_is_stride_times_scale_times_exp_of_the_raw_number():
    head = without_offsets("distance")
    with torch.no_grad():
        head.boxes.bias.copy_(torch.tensor([1.0, 2, 3, 4]).log())  # left, top, right, bottom
    _, boxes, priors = head(make_pyramid())
    scale = torch.repeat_interleave(head.scales.detach(), torch.tensor(priors.counts))
    reach = (priors.strides * scale)[:, None] * torch.tensor([-1.0, -2, 3, 4])
    torch.testing.assert_close(boxes[0], priors.centres.repeat(1, 2) + reach)


def test_a_delta_moves_the_anchor_by_scale_times_the_raw_number():
    head = without_offsets("delta")
    nn.init.constant_(head.boxes.bias, 0)
    assert torch.equal(head(make_pyramid()).boxes[1], head(make_pyramid()).priors.anchors)
    with torch.no_grad():
        head.boxes.bias[0] = 1.0
    _, boxes, priors = head(make_pyramid())
    scale = torch.repeat_interleave(head.scales.detach(), torch.tensor(priors.counts))
    torch.testing.assert_close(boxes[0, :, 0] - priors.anchors[:, 0], 0.1 * scale * 8 * priors.strides)


def test_each_level_keeps_to_its_own_place():
    """Noise on one level changes the points of that level alone."""
    head, pyramid = stir(make_head()), make_pyramid()
    before = head(pyramid)
    pyramid[1] = pyramid[1] + torch.randn_like(pyramid[1])
    after = head(pyramid)
    for b, a in zip(before[:2], after[:2], strict=True):
        changed = (b != a).any(-1).any(0)
        assert changed[48:60].all()
        assert not changed[:48].any()
        assert not changed[60:].any()


@pytest.mark.parametrize(
    ("aligner", "moves_scores", "moves_boxes"),
    [("none", False, False), ("cls", True, False), ("box", False, True), ("both", True, True)],
)
def test_the_aligner_moves_the_task_that_it_names(aligner, moves_scores, moves_boxes):
    plain, aligned = stir(make_head(aligner="none")), stir(make_head(aligner=aligner))
    aligned.load_state_dict(plain.state_dict(), strict=False)
    (scores, boxes, _), (new_scores, new_boxes, _) = plain(make_pyramid()), aligned(make_pyramid())
    assert (not torch.equal(scores, new_scores)) == moves_scores
    assert (not torch.equal(boxes, new_boxes)) == moves_boxes


@pytest.mark.parametrize("form", FORMS)
def test_predictions_are_float32_under_bfloat16(form):
    head = stir(make_head(*form))
    exact = head(make_pyramid())
    with torch.autocast("cpu", torch.bfloat16):
        rough = head(make_pyramid())
    assert rough.log_scores.dtype == rough.boxes.dtype == torch.float32
    assert (rough.log_scores - exact.log_scores).abs().mean() < 0.05


@pytest.mark.parametrize("form", FORMS)
def test_channels_last_changes_nothing(form):
    head = stir(make_head(*form))
    last = [p.contiguous(memory_format=torch.channels_last) for p in make_pyramid()]
    for plain, other in zip(head(make_pyramid())[:2], head.to(memory_format=torch.channels_last)(last)[:2], strict=True):
        torch.testing.assert_close(other, plain, rtol=1e-4, atol=1e-3)


def test_wild_weights_still_give_finite_boxes_and_gradients():
    head = make_head()
    nn.init.constant_(head.boxes.bias, 500.0)  # exp(500) is infinite
    _, boxes, _ = head(make_pyramid())
    boxes.sum().backward()
    assert torch.isfinite(boxes).all()
    assert all(torch.isfinite(p.grad).all() for p in head.parameters() if p.grad is not None)
    area = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    assert torch.isfinite(area).all()
