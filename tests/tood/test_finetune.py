"""Weights into a model of other classes: what fits is copied, what belongs to a shared class too, the rest is refused."""

import pytest
import torch
from torch import nn

from tood.errors import CheckpointError
from tood.finetune import load_into

LAYERS = ("predictor", "tower.score")


class Net(nn.Module):
    def __init__(self, classes: int, seed: int, anchors: int = 1):
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.predictor = nn.Conv2d(4, anchors * classes, 3)
        self.predictors = nn.Linear(2, 2)  # a name that only begins like a classification layer's


def copies(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def test_the_same_classes_take_everything():
    source, target = Net(2, 0), Net(2, 1)
    report = load_into(target, copies(source), names_from=["a", "b"], names=("a", "b"), class_layers=LAYERS)
    assert set(report.loaded) == set(source.state_dict())
    assert (report.skipped, report.shared_classes) == ((), ())
    for name, tensor in target.state_dict().items():
        assert torch.equal(tensor, source.state_dict()[name])


@pytest.mark.parametrize("count", [3, 2])
def test_other_classes_leave_the_predictor_as_it_was(count):
    """Also where there are as many: class 0 there is not class 0 here."""
    source, target = Net(3, 0), Net(count, 1)
    before = copies(target)
    names = ["x", "y", "z"][:count]
    report = load_into(target, copies(source), names_from=["a", "b", "c"], names=names, class_layers=LAYERS)
    assert report.skipped == ("predictor.weight", "predictor.bias")
    assert report.shared_classes == ()
    for name, tensor in target.state_dict().items():
        expected = before[name] if name in report.skipped else source.state_dict()[name]
        assert torch.equal(tensor, expected), name


@pytest.mark.parametrize("anchors", [1, 3])
def test_rows_of_shared_classes_are_copied_by_name(anchors):
    source, target = Net(3, 0, anchors), Net(4, 1, anchors)
    before = copies(target)
    report = load_into(target, copies(source), names_from=["a", "b", "c"], names=["c", "new", "a", "other"], class_layers=LAYERS)
    assert report.skipped == ("predictor.weight", "predictor.bias")
    assert report.shared_classes == ("c", "a")
    for anchor in range(anchors):
        for row, row_from in ((0, 2), (1, None), (2, 0), (3, None)):
            for name in ("weight", "bias"):
                ours = getattr(target.predictor, name)[anchor * 4 + row]
                old = before[f"predictor.{name}"][anchor * 4 + row]
                expected = old if row_from is None else getattr(source.predictor, name)[anchor * 3 + row_from]
                assert torch.equal(ours, expected)


def test_the_same_classes_in_another_order_are_all_loaded():
    source, target = Net(2, 0), Net(2, 1)
    report = load_into(target, copies(source), names_from=["a", "b"], names=["b", "a"], class_layers=LAYERS)
    assert report.skipped == ()
    assert torch.equal(target.predictor.bias, source.predictor.bias.flip(0))


def test_a_predictor_may_be_missing_or_of_another_form_for_other_classes():
    weights = copies(Net(2, 0))
    del weights["predictor.bias"]
    weights["predictor.weight"] = torch.zeros(2, 9, 1, 1)
    weights["tower.score.weight"] = torch.zeros(2)
    target = Net(3, 1)
    before = copies(target)
    report = load_into(target, weights, names_from=["a", "b"], names=["a", "b", "c"], class_layers=LAYERS)
    assert report.skipped == ("predictor.weight", "predictor.bias")
    assert report.shared_classes == ()
    assert torch.equal(target.predictor.weight, before["predictor.weight"])


def test_everything_that_does_not_fit_is_listed_and_nothing_is_changed():
    target, weights = Net(2, 1), copies(Net(2, 0))
    before = copies(target)
    del weights["body.0.bias"]
    weights["body.0.weight"] = torch.zeros(4, 3, 3, 3)
    weights["neck.weight"] = torch.zeros(1)
    with pytest.raises(CheckpointError) as caught:
        load_into(target, weights, names_from=["a", "b"], names=["a", "c"], class_layers=LAYERS)
    for part in (
        "body.0.bias is missing",
        "neck.weight is unknown",
        "body.0.weight has the shape (4, 3, 3, 3), not (4, 3, 1, 1)",
    ):
        assert part in str(caught.value)
    for name, tensor in target.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_for_the_same_classes_the_predictor_has_to_fit():
    weights = copies(Net(2, 0))
    del weights["predictor.bias"]
    with pytest.raises(CheckpointError, match=r"predictor\.bias is missing"):
        load_into(Net(2, 1), weights, names_from=["a", "b"], names=["a", "b"], class_layers=LAYERS)


def test_precision_follows_the_module():
    weights = {name: tensor.bfloat16() if tensor.is_floating_point() else tensor for name, tensor in copies(Net(2, 0)).items()}
    target = Net(3, 1)
    load_into(target, weights, names_from=["a", "b"], names=["a", "b", "c"], class_layers=LAYERS)
    assert target.predictor.weight.dtype == torch.float32
    assert torch.equal(target.predictor.bias[:2], weights["predictor.bias"].float())
