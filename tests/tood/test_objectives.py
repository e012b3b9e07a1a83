"""Objectives: the losses as dense formulas, their phases, what may influence them, and that nothing becomes NaN."""

import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import generalized_box_iou

from tood.config import build
from tood.data.targets import Targets, boxes_of, labels_of, pad_targets
from tood.detectors import ModelConfig, build_detector
from tood.head import DenseHead
from tood.losses import centerness
from tood.objectives import parts
from tood.objectives.atss import ATSS
from tood.objectives.task_aligned import TaskAligned
from tood.predictions import Predictions
from tood.priors import make_priors

SIZES = ((8, 8), (4, 4), (2, 2), (1, 1), (1, 1))
PRIORS = make_priors(SIZES, torch.device("cpu"))
N, K = len(PRIORS.centres), 3
OBJECTS = pad_targets(
    [torch.tensor([[4.0, 4, 30, 36], [20, 20, 60, 50]]), torch.tensor([[10.0, 2, 50, 60]])],
    [torch.tensor([0, 2]), torch.tensor([1])],
)
NOBODY = pad_targets([torch.zeros(0, 4)] * 2, [torch.zeros(0)] * 2)
PADDING = Targets(torch.full((2, 3, 4), 7.0), torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 3, dtype=torch.bool))
EVERYWHERE = torch.ones(2, N, dtype=torch.bool)
OBJECTIVES = [(ATSS(), 0), (TaskAligned(), 0), (TaskAligned(), 4)]


def make_predictions(seed: int = 0) -> Predictions:
    generator = torch.Generator().manual_seed(seed)
    log_scores = torch.rand(2, N, K, generator=generator).clamp(min=0.01).log().requires_grad_()
    reach = (4 + 24 * torch.rand(2, N, 4, generator=generator)) * torch.tensor([-1, -1, 1, 1])
    return Predictions(log_scores, (PRIORS.centres.repeat(1, 2) + reach).requires_grad_(), PRIORS)


def giou_sum(predictions: Predictions, targets: Targets, owner: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    pairs = zip(predictions.boxes[owner >= 0], boxes_of(targets, owner)[owner >= 0], strict=True)
    losses = [1 - generalized_box_iou(a[None], b[None])[0, 0] for a, b in pairs]
    return (torch.stack(losses) * weight[owner >= 0]).sum()


def test_task_aligned_is_quality_focal_to_t_hat_and_giou_weighted_by_it():
    predictions, objective = make_predictions(), TaskAligned(gamma=1.5, box_weight=3.0, m=6)
    found = objective.assign(predictions, OBJECTS, EVERYWHERE, 4)
    assert found.target.sum() > 1  # else the normaliser would be held at 1
    dense = F.one_hot(labels_of(OBJECTS, found.object), K) * found.target.unsqueeze(-1)
    p = predictions.log_scores.exp()
    cls = ((dense - p).abs() ** 1.5 * F.binary_cross_entropy(p, dense, reduction="none")).sum() / found.target.sum()
    box = 3 * giou_sum(predictions, OBJECTS, found.object, found.target) / found.target.sum()
    losses = objective.losses(predictions, OBJECTS, EVERYWHERE, 4)
    torch.testing.assert_close(losses, {"loss_cls": cls, "loss_box": box})


def test_atss_is_focal_loss_and_giou_weighted_by_centerness():
    predictions, objective = make_predictions(), ATSS(count_empty=False, focal_alpha=0.3, focal_gamma=1.5, box_weight=3.0)
    owner = objective.assign(predictions, OBJECTS, EVERYWHERE, 0).object
    positives = (owner >= 0).sum()
    assert positives > 3
    dense = F.one_hot(labels_of(OBJECTS, owner), K) * (owner >= 0).unsqueeze(-1)
    p = predictions.log_scores.exp()
    wrong, share = torch.where(dense > 0, 1 - p, p), torch.where(dense > 0, 0.3, 0.7)
    cls = (share * wrong**1.5 * F.binary_cross_entropy(p, dense.float(), reduction="none")).sum() / positives
    weight = centerness(PRIORS.centres, boxes_of(OBJECTS, owner))
    box = 3 * giou_sum(predictions, OBJECTS, owner, weight) / weight[owner >= 0].sum()
    losses = objective.losses(predictions, OBJECTS, EVERYWHERE, 0)
    torch.testing.assert_close(losses, {"loss_cls": cls, "loss_box": box})


def test_the_phase_changes_exactly_at_warmup_epochs():
    predictions, warmup = make_predictions(), ATSS(topk=4, count_empty=False)
    objective = TaskAligned(warmup_epochs=2, warmup=warmup)
    runs = [objective.losses(predictions, OBJECTS, EVERYWHERE, epoch) for epoch in range(4)]
    assert runs[0] == runs[1] == warmup.losses(predictions, OBJECTS, EVERYWHERE, 0)
    assert runs[2] == runs[3] == TaskAligned(warmup_epochs=0).losses(predictions, OBJECTS, EVERYWHERE, 0)
    assert runs[1]["loss_cls"] != runs[2]["loss_cls"]
    assert runs[1]["loss_box"] != runs[2]["loss_box"]


def make_head(box: str) -> DenseHead:
    torch.manual_seed(0)
    prior = "point" if box == "distance" else "anchor"
    small = {"channels": 8, "layers": 2, "groups": 2, "backbone": {"depth": 18}, "neck": {"channels": 8}}
    return build_detector(build(ModelConfig, {"box": box, "prior": prior, **small}), K).head


def train_head(head: DenseHead, objective, epoch: int, targets: Targets = OBJECTS) -> dict[str, torch.Tensor]:
    """Losses of one pass, with the gradients of their sum in the head."""
    generator = torch.Generator().manual_seed(1)
    predictions = head([torch.randn(2, 8, h, w, generator=generator) for h, w in SIZES])
    losses = objective.losses(predictions, targets, EVERYWHERE, epoch)
    sum(losses.values()).backward()
    return losses


@pytest.mark.parametrize("box", ["distance", "delta"])
@pytest.mark.parametrize(("objective", "epoch"), OBJECTIVES)
def test_every_parameter_of_the_head_learns(objective, epoch, box):
    head = make_head(box)
    for name, parameter in head.named_parameters():  # hidden biases start at 0, where a unit may be dead
        if name.endswith(("attention.0.bias", "reduce.bias")):
            torch.nn.init.ones_(parameter)
    with torch.no_grad():
        head.predictor.boxes.bias.add_(1.0 if box == "distance" else 0.0)  # boxes large enough to meet the objects
    train_head(head, objective, epoch)
    assert [n for n, p in head.named_parameters() if not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize("targets", [NOBODY, PADDING], ids=["none", "padding"])
@pytest.mark.parametrize(("objective", "epoch"), OBJECTIVES)
def test_without_objects_scores_fall_and_boxes_rest(objective, epoch, targets):
    head = make_head("distance")
    losses = train_head(head, objective, epoch, targets)
    assert losses["loss_cls"] > 0
    assert losses["loss_box"] == 0
    assert (head.predictor.classes.bias.grad > 0).all()
    assert not head.predictor.boxes.bias.grad.any()  # there, and 0: other ranks may have objects
    assert all(torch.isfinite(p.grad).all() for p in head.parameters())


@pytest.mark.parametrize(("objective", "epoch"), OBJECTIVES)
@pytest.mark.parametrize("raw", [30.0, 90.0, 1e30])
def test_overflowed_boxes_leave_losses_and_gradients_finite(objective, epoch, raw):
    head = make_head("distance")
    torch.nn.init.constant_(head.predictor.boxes.bias, raw)
    losses = train_head(head, objective, epoch)
    assert all(torch.isfinite(v) for v in losses.values())
    assert all(torch.isfinite(p.grad).all() for p in head.parameters())


@pytest.mark.parametrize(("objective", "epoch"), OBJECTIVES)
def test_points_outside_the_image_have_no_say(objective, epoch):
    valid = EVERYWHERE.clone()
    valid[1, ::3] = False
    predictions = make_predictions()
    losses = objective.losses(predictions, OBJECTS, valid, epoch)
    wild = Predictions(
        torch.where(valid.unsqueeze(-1), predictions.log_scores, -1e-3),
        torch.where(valid.unsqueeze(-1), predictions.boxes, torch.inf),
        PRIORS,
    )
    same = objective.losses(wild, OBJECTS, valid, epoch)
    assert same == losses
    sum(same.values()).backward()
    assert torch.isfinite(predictions.boxes.grad).all()
    assert objective.losses(predictions, OBJECTS, EVERYWHERE, epoch) != losses


def test_points_in_a_crowd_cost_nothing_where_crowds_are_ignored():
    predictions = make_predictions()
    crowded = OBJECTS._replace(crowds=torch.tensor([[[36.0, 36, 200, 200]], [[0, 0, 0, 0]]]))
    plain = ATSS().losses(predictions, crowded, EVERYWHERE, 0)
    assert plain == ATSS().losses(predictions, OBJECTS, EVERYWHERE, 0)
    objective = ATSS(ignore_crowd=0.5)
    found = objective.assign(predictions, crowded, EVERYWHERE, 0)
    assert found.ignored[0].any()
    assert not found.ignored[1].any()
    objective.losses(predictions, crowded, EVERYWHERE, 0)["loss_cls"].backward()
    learns = predictions.log_scores.grad.abs().sum(-1) > 0
    assert torch.equal(learns, ~found.ignored)


def test_normalisers_are_means_over_the_ranks_and_at_least_1(monkeypatch):
    other_rank = torch.tensor([5.0, 0.25])
    monkeypatch.setattr(parts.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(parts.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(parts.dist, "all_reduce", lambda packed: packed.add_(other_rank))
    mine = torch.tensor([4, 0.5], requires_grad=True)
    means = parts.mean_over_ranks(mine[0], mine[1])
    assert [m.item() for m in means] == [4.5, 1.0]
    assert not any(m.requires_grad for m in means)
    assert mine.tolist() == [4, 0.5]
