"""What all objectives keep: their phases, what may influence them, that every option counts, and that nothing becomes NaN."""

import dataclasses
import typing

import pytest
import torch
from torch import Tensor, nn

from tests.tood.dense import NOBODY, OBJECTS, PADDING, K, everywhere, make_head, make_predictions, make_pyramid
from tood.data.targets import Targets
from tood.detectors import Objective
from tood.head import DenseHead
from tood.objectives import parts
from tood.objectives.atss import ATSS
from tood.objectives.ddod import DDOD
from tood.objectives.fcos import FCOS
from tood.objectives.foveabox import FoveaBox
from tood.objectives.gfl import GFL
from tood.objectives.paa import PAA
from tood.objectives.retinanet import RetinaNet
from tood.objectives.soft_label import SoftLabel
from tood.objectives.task_aligned import TaskAligned
from tood.objectives.vfnet import VFNet
from tood.predictions import Predictions, Quality
from tood.priors import PRIORS, PriorGrid, Priors, make_priors

PARALLEL = {"tower": "parallel"}
CASES = {  # an objective, the epoch, and a head that it may train
    "tood": (TaskAligned(), 4, {"aligner": "both"}),
    "tood_anchor_based": (TaskAligned(), 4, {"aligner": "both", "box": "delta", "prior": "anchor"}),
    "tood_first_epochs": (TaskAligned(), 0, {"aligner": "both"}),
    "tood_distribution": (TaskAligned(), 4, {"aligner": "both", "box": "distribution"}),
    "tood_one_to_one": (TaskAligned(), 4, {"aligner": "both", "one_to_one": True}),
    "tood_vfl": (TaskAligned(class_loss="vfl", box_loss="diou"), 4, {}),
    "tood_mal": (TaskAligned(class_loss="mal", box_loss="ciou"), 4, {}),
    "atss": (ATSS(), 0, PARALLEL | {"quality": "centerness"}),
    "fcos": (
        FCOS(radius=0.0, box_loss="iou"),
        0,
        PARALLEL | {"box": "distance_px", "offset": 0.5, "quality": "centerness", "quality_from": "classes"},
    ),
    "foveabox": (FoveaBox(), 0, PARALLEL | {"box": "distance_base", "offset": 0.5}),
    "aligned_foveabox": (FoveaBox(), 0, {"box": "distance_base", "offset": 0.5, "aligner": "both"}),
    "retinanet": (RetinaNet(), 0, PARALLEL | {"box": "delta_unit", "prior": "nine_anchors"}),
    "paa": (PAA(), 0, PARALLEL | {"box": "delta", "prior": "anchor", "quality": "iou"}),
    "gfl": (GFL(), 0, PARALLEL | {"box": "distribution"}),
    "vfnet": (VFNet(), 0, PARALLEL | {"box": "distance_reach", "star": True}),
    "ddod": (DDOD(), 0, PARALLEL | {"box": "delta", "prior": "anchor", "quality": "iou"}),
    "soft_label": (SoftLabel(), 0, {"aligner": "both"}),
}
EVERY_CASE = pytest.mark.parametrize("case", CASES)


def losses_of(objective, predictions: Predictions, targets: Targets, valid: Tensor, epoch: int) -> dict[str, Tensor]:
    memory = (torch.zeros(objective.MEMORY),) if hasattr(objective, "MEMORY") else ()
    return objective.losses(predictions, targets, valid, epoch, *memory)


def train_head(head: DenseHead, objective, epoch: int, targets: Targets = OBJECTS) -> dict[str, Tensor]:
    """Losses of one pass, with the gradients of their sum in the head."""
    predictions = head(*make_pyramid(seed=1))
    losses = losses_of(objective, predictions, targets, everywhere(predictions.priors), epoch)
    sum(losses.values()).backward()
    return losses


def priors_of(choices: dict) -> Priors:
    sizes = tuple(tuple(level.shape[2:]) for level in make_pyramid()[0])
    return make_priors(sizes, torch.device("cpu"), PriorGrid(PRIORS[choices.get("prior", "point")], choices.get("offset", 0.0)))


def predictions_for(choices: dict, seed: int = 0) -> Predictions:
    """Random leaves with the parts that such a head would predict."""
    made = make_predictions(
        priors_of(choices),
        seed=seed,
        quality=choices.get("quality", "none"),
        bins=16 if choices.get("box") == "distribution" else 0,
        raw=choices.get("box") in ("distance_base", "delta_unit") and "aligner" not in choices,
        coarse=choices.get("star", False),
    )
    return made._replace(one_to_one=make_predictions(priors_of(choices), seed=seed + 1)) if choices.get("one_to_one") else made


def test_every_objective_has_a_case():
    assert {type(objective) for objective, _, _ in CASES.values()} == set(typing.get_args(Objective))


def test_the_phase_changes_exactly_at_warmup_epochs():
    predictions, warmup = make_predictions(), ATSS(topk=4, count_empty=False)
    objective = TaskAligned(warmup_epochs=2, warmup=warmup)
    here = everywhere(predictions.priors)
    runs = [objective.losses(predictions, OBJECTS, here, epoch) for epoch in range(4)]
    assert runs[0] == runs[1] == warmup.losses(predictions, OBJECTS, here, 0)
    assert runs[2] == runs[3] == TaskAligned(warmup_epochs=0).losses(predictions, OBJECTS, here, 0)
    assert runs[1]["loss_cls"] != runs[2]["loss_cls"]
    assert runs[1]["loss_box"] != runs[2]["loss_box"]


def test_the_one_to_one_predictor_learns_from_one_point_an_object_in_every_epoch():
    objective = TaskAligned(warmup_epochs=2)
    many, one = make_predictions(seed=0), make_predictions(seed=1)
    both, here = many._replace(one_to_one=one), everywhere(many.priors)
    for epoch in (0, 2):
        losses = objective.losses(both, OBJECTS, here, epoch)
        alone = TaskAligned(m=1, warmup_epochs=0).losses(one, OBJECTS, here, 0)
        assert losses == objective.losses(many, OBJECTS, here, epoch) | {f"{name}_one": v for name, v in alone.items()}
    assert (TaskAligned(m=1).assign(one, OBJECTS, here, 9).object >= 0).sum() <= 3


@EVERY_CASE
def test_every_parameter_of_the_head_learns(case):
    objective, epoch, choices = CASES[case]
    head = make_head(**choices)
    torch.manual_seed(2)
    for name, parameter in head.named_parameters():  # at the start hidden units may be dead, and boxes meet no object
        if "predictor" not in name and "one_to_one" not in name:
            nn.init.normal_(parameter, mean=1.0 if name.endswith("attention.0.bias") else 0.0, std=0.3)
        if name.endswith("reduce.bias"):
            nn.init.ones_(parameter)
    with torch.no_grad():
        for predictor in filter(None, (head.predictor, head.one_to_one)):
            predictor.boxes.bias.add_(
                {"distance": 1.0, "distance_px": 3.0, "distance_reach": -1.0}.get(choices.get("box", "distance"), 0.0)
            )
    train_head(head, objective, epoch)
    assert [n for n, p in head.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize("targets", [NOBODY, PADDING], ids=["none", "padding"])
@EVERY_CASE
def test_without_objects_scores_fall_and_boxes_rest(case, targets):
    objective, epoch, choices = CASES[case]
    head = make_head(**choices)
    losses = train_head(head, objective, epoch, targets)
    assert losses.pop("loss_cls") > 0
    assert losses.pop("loss_cls_one", 1.0) > 0
    assert not any(losses.values())
    for predictor in filter(None, (head.predictor, head.one_to_one)):
        assert (predictor.classes.bias.grad > 0).all()
        boxes = predictor.boxes if predictor.refinement is None else predictor.refinement.boxes  # classes look by coarse boxes
        assert not boxes.bias.grad.any()  # there, and 0: other ranks may have objects
        assert predictor.quality is None or not predictor.quality.bias.grad.any()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in head.parameters())


@pytest.mark.parametrize("raw", [30.0, 90.0, 1e9])
@EVERY_CASE
def test_overflowed_boxes_leave_losses_and_gradients_finite(case, raw):
    objective, epoch, choices = CASES[case]
    head = make_head(**choices)
    for predictor in filter(None, (head.predictor, head.one_to_one)):
        nn.init.constant_(predictor.boxes.bias, raw)
    losses = train_head(head, objective, epoch)
    assert all(torch.isfinite(v) for v in losses.values())
    assert all(torch.isfinite(p.grad).all() for p in head.parameters())


def wild(predictions: Predictions, valid: Tensor) -> Predictions:
    """Something else, and infinite boxes, wherever `valid` does not hold."""
    here, aside = valid.unsqueeze(-1), valid.unsqueeze(-1).unsqueeze(-1)
    changed = {
        "log_scores": torch.where(here, predictions.log_scores, -1e-3),
        "boxes": torch.where(here, predictions.boxes, torch.inf),
    }
    if predictions.quality is not None:
        changed["quality"] = Quality(predictions.quality.kind, torch.where(valid, predictions.quality.logits, 50.0))
    if predictions.distribution is not None:
        logits = torch.where(aside, predictions.distribution.logits, 50.0)
        changed["distribution"] = predictions.distribution._replace(logits=logits)
    for name in ("raw", "coarse"):
        if getattr(predictions, name) is not None:
            changed[name] = torch.where(here, getattr(predictions, name), 1e18)
    if predictions.one_to_one is not None:
        changed["one_to_one"] = wild(predictions.one_to_one, valid)
    return predictions._replace(**changed)


@EVERY_CASE
def test_points_outside_the_image_have_no_say(case):
    objective, epoch, choices = CASES[case]
    predictions = predictions_for(choices)
    valid = everywhere(predictions.priors)
    valid[1, ::3] = False
    losses = losses_of(objective, predictions, OBJECTS, valid, epoch)
    same = losses_of(objective, wild(predictions, valid), OBJECTS, valid, epoch)
    assert same == losses
    sum(same.values()).backward()
    assert torch.isfinite(predictions.log_scores.grad).all()
    assert predictions.boxes.grad is None or torch.isfinite(predictions.boxes.grad).all()
    assert losses_of(objective, predictions, OBJECTS, everywhere(predictions.priors), epoch) != losses


@EVERY_CASE
def test_padding_rows_of_the_targets_change_no_loss(case):
    objective, epoch, choices = CASES[case]
    predictions = predictions_for(choices)
    here = everywhere(predictions.priors)
    rows = torch.tensor([0, 1, 0, 1])
    padded = Targets(
        OBJECTS.boxes[:, rows], OBJECTS.labels[:, rows], OBJECTS.valid[:, rows] & torch.tensor([True, True, False, False])
    )
    assert losses_of(objective, predictions, padded, here, epoch) == losses_of(objective, predictions, OBJECTS, here, epoch)


def other_value(field: dataclasses.Field, hint, value):
    if isinstance(value, bool):
        return not value
    if typing.get_origin(hint) is typing.Literal:
        return next(v for v in typing.get_args(hint) if v != value)
    if isinstance(value, int):
        return max(1, value // 4)
    return {"sigma": 0.8, "potential_iou": 0.4, "ignore_crowd": 0.5, "negative_iou": 0.3}.get(field.name, value * 0.5 + 0.03)


WHERE_IT_COUNTS = {  # options that need another option, or other objects, to have an effect
    "vfl_alpha": {"class_loss": "vfl"},
    "mal_gamma": {"class_loss": "mal"},
    "widen_small": {"m": 2},
}


@EVERY_CASE
def test_every_option_changes_the_losses(case):
    objective, _, choices = CASES[case]
    predictions = predictions_for(choices)
    speck = torch.tensor([[[17.0, 17, 20, 20]], [[30.0, 30, 36, 36]]])  # small objects beside the others; the second image is empty
    targets = Targets(
        torch.cat([OBJECTS.boxes, speck], dim=1),
        torch.cat([OBJECTS.labels, torch.ones(2, 1, dtype=torch.int64)], dim=1),
        torch.cat([OBJECTS.valid, torch.tensor([[True], [False]])], dim=1) & torch.tensor([[True], [False]]),
        crowds=torch.tensor([[[36.0, 36, 200, 200]], [[0, 0, 0, 0]]]),
    )
    hints, here = typing.get_type_hints(type(objective)), everywhere(predictions.priors)
    for field in dataclasses.fields(objective):
        if field.name in ("name", "warmup", "warmup_epochs"):  # a test of their own above
            continue
        base = dataclasses.replace(objective, **WHERE_IT_COUNTS.get(field.name, {}))
        value = other_value(field, hints[field.name], getattr(base, field.name))
        changed = dataclasses.replace(base, **{field.name: value})
        assert losses_of(changed, predictions, targets, here, 9) != losses_of(base, predictions, targets, here, 9), field.name


def test_points_in_a_crowd_cost_nothing_where_crowds_are_ignored():
    predictions = make_predictions()
    here = everywhere(predictions.priors)
    crowded = OBJECTS._replace(crowds=torch.tensor([[[36.0, 36, 200, 200]], [[0, 0, 0, 0]]]))
    plain = ATSS().losses(predictions, crowded, here, 0)
    assert plain == ATSS().losses(predictions, OBJECTS, here, 0)
    objective = ATSS(ignore_crowd=0.5)
    found = objective.assign(predictions, crowded, here, 0)
    assert found.ignored[0].any()
    assert not found.ignored[1].any()
    objective.losses(predictions, crowded, here, 0)["loss_cls"].backward()
    learns = predictions.log_scores.grad.abs().sum(-1) > 0
    assert torch.equal(learns, ~found.ignored)
    assert learns.shape == (2, len(predictions.priors.centres))
    assert predictions.log_scores.shape[2] == K


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
    assert [m.item() for m in parts.mean_over_ranks(mine[0], mine[1], at_least=0.1)] == [4.5, 0.375]
