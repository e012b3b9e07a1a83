"""Towers: layer attention in the paper's order of operations, what each task may see, and images that do not mix."""

import pytest
import torch
from torch import nn

from tood.deformable import DeformableConv, ModulatedDeformableConv
from tood.towers import (
    DEFORMABLE,
    TOWERS,
    ChannelAttention,
    ConvStyle,
    InteractiveTower,
    ParallelTower,
    TaskDecomposition,
    build_tower,
)


def lively(module: nn.Module) -> nn.Module:
    """Weights large enough that attention differs from image to image, and no unit of it is dead."""
    torch.manual_seed(0)
    for name, parameter in module.named_parameters():
        nn.init.normal_(parameter, mean=1.0 if name.endswith("attention.0.bias") else 0.0, std=0.3)
    return module


X = torch.randn(2, 8, 5, 7, generator=torch.Generator().manual_seed(1))
Y = torch.randn(2, 8, 5, 7, generator=torch.Generator().manual_seed(3))  # what boxes see where contexts differ
STYLE = ConvStyle(groups=4)


def make(name: str, style: ConvStyle = STYLE) -> nn.Module:
    return lively(build_tower(name, 8, 8, 2, style))


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


@pytest.mark.parametrize("cells", [(5, 7), (1, 3)], ids=["weights", "maps"])
@pytest.mark.parametrize("groups", [4, 0])
def test_attention_scales_what_is_smaller_in_any_memory_format(cells, groups):
    view = lively(TaskDecomposition(8, 3, groups))
    interactive = torch.randn(2, 24, *cells, generator=torch.Generator().manual_seed(2))
    pooled = interactive.mean((2, 3), keepdim=True)
    w = view.attention(pooled).repeat_interleave(8, dim=1)
    reduced = view.reduce(interactive * w)
    expected = torch.relu(reduced if view.norm is None else view.norm(reduced))
    torch.testing.assert_close(view(interactive, pooled), expected)
    last = view(interactive.to(memory_format=torch.channels_last), pooled)
    assert last.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last, expected)


def test_interactive_features_are_all_layers_of_one_stack_in_order():
    tower = lively(InteractiveTower(8, 8, 3, STYLE))
    x, outputs = Y, []
    for layer in tower.layers:
        x = layer(x)
        outputs.append(x)
    features = tower(X, Y)  # the shared stack reads what boxes are to see
    assert torch.equal(features.interactive, torch.cat(outputs, dim=1))
    pooled = features.interactive.mean((2, 3), keepdim=True)
    assert torch.equal(features.boxes, tower.box_view(features.interactive, pooled))
    assert not torch.equal(features.boxes, features.classes)


def test_parallel_stacks_share_nothing():
    tower = lively(ParallelTower(8, 8, 2, STYLE))
    before = tower(X, Y)
    with torch.no_grad():
        for parameter in tower.classes.parameters():
            parameter.mul_(-1.5)
    after = tower(X, Y)
    assert before.interactive is None
    assert torch.equal(after.boxes, before.boxes)
    assert not torch.equal(after.classes, before.classes)


@pytest.mark.parametrize("name", ["parallel", "et_head"])
def test_each_task_looks_at_its_own_context(name):
    """The T-head's tasks share one stack; its input is tested above."""
    tower = make(name)
    plain, other_classes, other_boxes = tower(X, Y), tower(X + 1, Y), tower(X, Y + 1)
    assert torch.equal(other_classes.boxes, plain.boxes)
    assert torch.equal(other_boxes.classes, plain.classes)
    assert not torch.equal(other_classes.classes, plain.classes)
    assert not torch.equal(other_boxes.boxes, plain.boxes)


@pytest.mark.parametrize(("layers", "class_layers"), [(4, 2), (3, 1), (1, 1)])
def test_with_semantic_context_the_class_stack_is_half_as_long_and_twice_as_wide(layers, class_layers):
    tower = lively(ParallelTower(8, 8, layers, STYLE, wide=True))
    features = tower(torch.cat([X, X], dim=1), Y)
    assert (len(tower.classes), len(tower.boxes)) == (class_layers, layers)
    assert features.classes.shape == (2, 16, 5, 7)
    assert features.boxes.shape == (2, 8, 5, 7)
    assert (tower.class_channels, tower.box_channels) == (16, 8)


def test_channel_attention_gates_channels_by_their_mean_before_a_1x1():
    """PP-YOLOE's ESE: conv(x * sigmoid(fc(mean x))), a norm and an activation; here SiLU, as there."""
    attention = lively(ChannelAttention(8, 4))
    gate = torch.sigmoid(torch.einsum("oc,bc->bo", attention.gate.weight[:, :, 0, 0], X.mean((2, 3))) + attention.gate.bias)
    mixed = torch.einsum("oc,bchw->bohw", attention.mix.weight[:, :, 0, 0], X * gate[:, :, None, None])
    normed = attention.norm(mixed)
    expected = normed * torch.sigmoid(normed)
    torch.testing.assert_close(attention(X, X.mean((2, 3), keepdim=True)), expected)


def test_only_the_classes_of_the_efficient_head_keep_a_shortcut():
    tower = make("et_head")
    features = tower(X, Y)
    torch.testing.assert_close(features.classes, tower.class_view(X, X.mean((2, 3), keepdim=True)) + X)
    assert torch.equal(features.boxes, tower.box_view(Y, Y.mean((2, 3), keepdim=True)))
    assert features.interactive is None


@pytest.mark.parametrize(("groups", "bias"), [(4, False), (4, True), (0, False), (0, True)])
@pytest.mark.parametrize("name", TOWERS)
def test_a_convolution_without_a_norm_has_a_bias_in_any_case(name, groups, bias):
    tower = make(name, ConvStyle(groups, bias))
    norms = [m for m in tower.modules() if isinstance(m, nn.GroupNorm)]
    assert bool(norms) == (groups > 0)
    stacked = [m.conv for m in tower.modules() if hasattr(m, "conv")]
    assert all((conv.bias is not None) == (bias or not groups) for conv in stacked)
    views = [m for m in tower.modules() if isinstance(m, (TaskDecomposition, ChannelAttention))]
    mixing = [m.reduce if isinstance(m, TaskDecomposition) else m.mix for m in views]
    assert all((conv.bias is not None) == (not groups) for conv in mixing)
    assert all(torch.isfinite(f).all() for f in tower(X, Y)[:2])


@pytest.mark.parametrize(
    ("deformable", "which", "kind", "offset_channels"),
    [
        ("none", [], nn.Conv2d, None),
        ("first", [0], DeformableConv, 18),
        ("first_two", [0, 1], ModulatedDeformableConv, 4 * 27),
        ("last", [2], ModulatedDeformableConv, 27),
    ],
)
@pytest.mark.parametrize("name", ["parallel", "t_head"])
def test_the_named_convolutions_of_a_stack_are_deformable(name, deformable, which, kind, offset_channels):
    assert deformable in DEFORMABLE
    tower = build_tower(name, 8, 8, 3, ConvStyle(4, deformable=deformable))
    for stack in [tower.layers] if name == "t_head" else [tower.classes, tower.boxes]:
        assert [i for i, layer in enumerate(stack) if not isinstance(layer.conv, nn.Conv2d)] == which
        for i in which:
            assert isinstance(stack[i].conv, kind)
            assert stack[i].conv.conv_offset.out_channels == offset_channels


@pytest.mark.parametrize("name", TOWERS)
def test_an_image_does_not_see_the_others_of_its_batch(name):
    tower = make(name)
    for both, alone in zip(tower(X, Y)[:2], tower(X[1:], Y[1:])[:2], strict=True):
        torch.testing.assert_close(both[1:], alone)


@pytest.mark.parametrize("name", TOWERS)
def test_every_parameter_learns(name):
    tower = make(name)
    classes, boxes, _ = tower(X, Y)
    (classes.square().sum() + boxes.square().sum()).backward()
    assert all(p.grad.abs().sum() > 0 for p in tower.parameters())


@pytest.mark.parametrize("name", TOWERS)
def test_channels_last_changes_no_values_or_gradients(name):
    results = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        tower = make(name).to(memory_format=memory_format)
        classes, boxes, _ = tower(*(x.contiguous(memory_format=memory_format) for x in (X, Y)))
        (classes.square().sum() + boxes.sum()).backward()
        results.append([classes, boxes, *(p.grad for p in tower.parameters())])
    for plain, last in zip(*results, strict=True):
        torch.testing.assert_close(last, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", TOWERS)
def test_bfloat16_stays_near_float32(name):
    tower = make(name)
    exact = tower(X, Y)
    with torch.autocast("cpu", torch.bfloat16):
        rough = tower(X, Y)
    for e, r in zip(exact[:2], rough[:2], strict=True):
        assert (r.float() - e).abs().max() < 0.05 * e.abs().max()
