"""The learning rate of each step, averaged weights by their formula, and an optimizer that goes on exactly."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from tood.config import TrainConfig
from tood.deformable import ModulatedDeformableConv
from tood.optimisation import (
    AveragedWeights,
    base_rate,
    describe_rate,
    learning_rate,
    load_optimizer_tensors,
    make_optimizer,
    optimizer_tensors,
    set_rate,
)

RECORDED = {
    name: recorded
    for name, recorded in json.loads((Path(__file__).parents[1] / "golden/extras/lr.json").read_text()).items()
    if isinstance(recorded, dict)
}


@pytest.mark.parametrize("name", RECORDED)
def test_every_step_has_the_rate_that_the_peer_used(name):
    recorded = RECORDED[name]
    warmup, decay = recorded["param_scheduler"]
    config = TrainConfig(
        epochs=recorded["epochs"],
        lr=recorded["optimizer"]["lr"],
        milestones=tuple(decay["milestones"]),
        gamma=decay["gamma"],
        warmup_steps=warmup["end"],
        warmup_factor=warmup["start_factor"],
    )
    for step, epoch, rate in recorded["iter_epoch_lr"]:
        assert epoch == step // recorded["iters_per_epoch"]
        assert learning_rate(config, step, recorded["iters_per_epoch"]) == pytest.approx(rate, rel=1e-9)


def test_the_first_steps_warm_up_in_a_line_that_ends_at_the_full_rate():
    config = TrainConfig(lr=1.0, warmup_steps=11, warmup_factor=0.5)
    assert [learning_rate(config, step, 100) for step in (0, 5, 10, 11)] == pytest.approx([0.5, 0.75, 1.0, 1.0])
    assert learning_rate(replace(config, warmup_steps=1), 0, 100) == pytest.approx(0.5)
    assert learning_rate(replace(config, warmup_steps=0), 0, 100) == pytest.approx(1.0)
    constant = replace(config, warmup="constant")
    assert [learning_rate(constant, step, 100) for step in (0, 5, 10, 11)] == pytest.approx([0.5, 0.5, 0.5, 1.0])


def test_cosine_falls_by_the_step_from_the_full_rate_to_none():
    config = TrainConfig(epochs=10, lr=0.2, schedule="cosine", warmup_steps=0)
    rates = [learning_rate(config, step, 7) for step in range(71)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[35] == pytest.approx(0.1)
    assert rates[17] == pytest.approx(0.1 * (1 + math.cos(math.pi * 17 / 70)))
    assert rates[70] == pytest.approx(0, abs=1e-12)
    assert rates == sorted(rates, reverse=True)
    assert learning_rate(replace(config, warmup_steps=5, warmup_factor=0), 0, 7) == 0


def test_the_rate_scales_with_the_images_of_a_step_and_says_so():
    config = TrainConfig(lr=0.01, lr_batch_size=16, batch_size=4)
    assert base_rate(config) == pytest.approx(0.0025)
    assert learning_rate(replace(config, warmup_steps=0), 3, 10) == pytest.approx(0.0025)
    assert "0.0025" in describe_rate(config)
    assert "scaled to 4 (" in describe_rate(config)
    as_given = replace(config, scale_lr=False)
    assert base_rate(as_given) == 0.01
    assert "not scaled" in describe_rate(as_given)
    assert "scale" not in describe_rate(replace(config, batch_size=16))


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(2, 3, 3)
        self.norm = nn.BatchNorm2d(3)
        self.frozen = nn.Linear(2, 2)
        self.frozen.requires_grad_(False)

    def forward(self, x):
        return self.norm(self.convolution(x)).square().mean()


def small(seed: int = 0) -> Small:
    torch.manual_seed(seed)
    return Small()


def step(model: Small, optimizer: torch.optim.SGD, seed: int) -> None:
    optimizer.zero_grad()
    model(torch.randn(4, 2, 5, 5, generator=torch.Generator().manual_seed(seed))).backward()
    optimizer.step()


def test_averaged_weights_follow_their_formula_and_counters_are_copied():
    model = small()
    average = AveragedWeights(model, decay=0.5)
    expected = model.convolution.weight.detach().clone()
    for number in range(10):
        with torch.no_grad():
            model.convolution.weight.add_(1.0)
            model.norm.num_batches_tracked += 1
        average.update(model, number)
        decay = min(0.5, (1 + number) / (10 + number))
        expected = decay * expected + (1 - decay) * model.convolution.weight.detach()
    torch.testing.assert_close(average.tensors["convolution.weight"], expected)
    assert average.tensors["norm.num_batches_tracked"] == 10
    assert not torch.equal(average.tensors["convolution.weight"], model.convolution.weight)
    other = AveragedWeights(small(1), decay=0.5)
    other.load(average.tensors)
    assert all(torch.equal(other.tensors[name], tensor) for name, tensor in average.tensors.items())


LAYOUTS = [torch.contiguous_format, torch.channels_last]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("kind", "plain"), [("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)])
def test_a_fused_step_is_that_of_the_plain_optimizer(kind, plain, layout):
    config = TrainConfig(optimizer=kind, lr=0.1, lr_batch_size=16, weight_decay=0.05)
    model, other = small().to(memory_format=layout), small()
    optimizer = make_optimizer(model, config)
    assert optimizer.defaults["fused"]
    told = {"momentum": config.momentum} if kind == "sgd" else {}
    reference = plain(other.parameters(), lr=0.1, weight_decay=0.05, foreach=False, fused=False, **told)
    pairs = list(zip(model.parameters(), other.parameters(), strict=True))
    for _ in range(4):
        for own, its in pairs:
            if own.requires_grad:
                its.grad = torch.randn_like(its)
                own.grad = torch.empty_like(own).copy_(its.grad)  # which lies in memory as autograd lays it
        optimizer.step()
        reference.step()
    for own, expected in pairs:
        torch.testing.assert_close(own, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("kind", "remembered"), [("sgd", {"momentum_buffer"}), ("adamw", {"step", "exp_avg", "exp_avg_sq"})])
def test_an_optimizer_restored_from_its_tensors_goes_on_to_the_bit(kind, remembered, layout):
    config = TrainConfig(optimizer=kind, lr=0.1, lr_batch_size=16)
    model = small().to(memory_format=layout)
    optimizer = make_optimizer(model, config)
    assert optimizer_tensors(optimizer, model) == {}
    for number in range(3):
        step(model, optimizer, number)
    as_files_bring_them = torch.contiguous_format
    momenta = {name: t.clone(memory_format=as_files_bring_them) for name, t in optimizer_tensors(optimizer, model).items()}
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert set(momenta) == {f"optimizer.{what}.{name}" for what in remembered for name in trained}

    restored = small(1).to(memory_format=layout)
    restored.load_state_dict(model.state_dict())
    again, without = make_optimizer(restored, config), small(2).to(memory_format=layout)
    load_optimizer_tensors(again, restored, momenta)
    without.load_state_dict(model.state_dict())
    forgetful = make_optimizer(without, config)
    for each, its in ((model, optimizer), (restored, again), (without, forgetful)):
        step(each, its, 3)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), restored.parameters(), strict=True))
    assert not torch.equal(model.convolution.weight, without.convolution.weight)  # momentum matters here


def test_only_trainable_parameters_are_optimised_and_all_of_them_decay():
    model = small()
    (group,) = make_optimizer(model, TrainConfig(weight_decay=0.25, momentum=0.8)).param_groups
    assert {id(p) for p in group["params"]} == {id(p) for p in model.parameters() if p.requires_grad}
    assert (group["weight_decay"], group["momentum"]) == (0.25, 0.8)


def test_biases_of_convolutions_may_learn_faster_and_not_decay():
    """mmdetection's paramwise_cfg of FCOS and VFNet: neither norms nor the offsets of deformable convolutions are meant."""
    model = small()
    model.deformable = ModulatedDeformableConv(2, 3, bias=True)
    optimizer = make_optimizer(model, TrainConfig(weight_decay=0.25, bias_lr=2, bias_decay=0))
    others, biases = optimizer.param_groups
    assert [id(p) for p in biases["params"]] == [id(model.convolution.bias), id(model.deformable.bias)]
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    assert {id(p) for p in others["params"]} == trained - {id(p) for p in biases["params"]}
    assert (others["weight_decay"], biases["weight_decay"]) == (0.25, 0)
    set_rate(optimizer, 0.5)
    assert (others["lr"], biases["lr"]) == (0.5, 1.0)
    slower = make_optimizer(model, TrainConfig(weight_decay=0.25, bias_decay=0.5)).param_groups[1]
    assert (slower["weight_decay"], slower["factor"]) == (0.125, 1.0)
