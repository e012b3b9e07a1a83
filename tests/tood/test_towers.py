"""Towers: layer attention in the paper's order of operations, what each task may see, and images that do not mix."""

import pytest
import torch
from torch import nn

from tood.towers import TOWERS, InteractiveTower, ParallelTower, TaskDecomposition


def lively(module: nn.Module) -> nn.Module:
    """Weights large enough that attention differs from image to image, and no unit of it is dead."""
    torch.manual_seed(0)
    for name, parameter in module.named_parameters():
        nn.init.normal_(parameter, mean=1.0 if name.endswith("attention.0.bias") else 0.0, std=0.3)
    return module


X = torch.randn(2, 8, 5, 7, generator=torch.Generator().manual_seed(1))


def test_attention_weighs_whole_layers_before_they_are_reduced():
    """Eq. 2-4 as written: X_k * w_k, concatenated, 1x1 convolution; then the norm and ReLU of the official code."""
    view = lively(TaskDecomposition(8, 3, 4))
    layers = torch.randn(2, 3, 8, 5, 7, generator=torch.Generator().manual_seed(2))
    interactive = layers.flatten(1, 2)
    pooled = interactive.mean((2, 3), keepdim=True)
    w = torch.sigmoid(view.attention[2](torch.relu(view.attention[0](pooled))))  # [2, 3, 1, 1]
    assert (w[0] - w[1]).abs().min() > 1e-3
    weighted = torch.cat([layers[:, k] * w[:, k : k + 1] for k in range(3)], dim=1)
    torch.testing.assert_close(view(interactive, pooled), torch.relu(view.norm(view.reduce(weighted))))


def test_interactive_features_are_all_layers_of_one_stack_in_order():
    tower = lively(InteractiveTower(8, 8, 3, 4))
    x, outputs = X, []
    for layer in tower.layers:
        x = layer(x)
        outputs.append(x)
    features = tower(X)
    assert torch.equal(features.interactive, torch.cat(outputs, dim=1))
    pooled = features.interactive.mean((2, 3), keepdim=True)
    assert torch.equal(features.boxes, tower.box_view(features.interactive, pooled))
    assert not torch.equal(features.boxes, features.classes)


def test_parallel_stacks_share_nothing():
    tower = lively(ParallelTower(8, 8, 2, 4))
    before = tower(X)
    with torch.no_grad():
        for parameter in tower.classes.parameters():
            parameter.mul_(-1.5)
    after = tower(X)
    assert before.interactive is None
    assert torch.equal(after.boxes, before.boxes)
    assert not torch.equal(after.classes, before.classes)


@pytest.mark.parametrize("name", TOWERS)
def test_an_image_does_not_see_the_others_of_its_batch(name):
    tower = lively(TOWERS[name](8, 8, 2, 4))
    for both, alone in zip(tower(X)[:2], tower(X[1:])[:2], strict=True):
        torch.testing.assert_close(both[1:], alone)


@pytest.mark.parametrize("name", TOWERS)
def test_every_parameter_learns(name):
    tower = lively(TOWERS[name](8, 8, 2, 4))
    classes, boxes, _ = tower(X)
    (classes.square().sum() + boxes.square().sum()).backward()
    assert all(p.grad.abs().sum() > 0 for p in tower.parameters())


@pytest.mark.parametrize("name", TOWERS)
def test_channels_last_changes_no_values_or_gradients(name):
    results = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        tower = lively(TOWERS[name](8, 8, 2, 4)).to(memory_format=memory_format)
        classes, boxes, _ = tower(X.contiguous(memory_format=memory_format))
        (classes.square().sum() + boxes.sum()).backward()
        results.append([classes, boxes, *(p.grad for p in tower.parameters())])
    for plain, last in zip(*results, strict=True):
        torch.testing.assert_close(last, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", TOWERS)
def test_bfloat16_stays_near_float32(name):
    tower = lively(TOWERS[name](8, 8, 2, 4))
    exact = tower(X)
    with torch.autocast("cpu", torch.bfloat16):
        rough = tower(X)
    for e, r in zip(exact[:2], rough[:2], strict=True):
        assert (r.float() - e).abs().max() < 0.05 * e.abs().max()
