"""An accelerator leaves nothing out that a host would have to be asked for: the results are the same, and no step waits."""

import sys
import warnings

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.tood.assigning import ASSIGNERS, assign, random_batch
from tests.tood.dense import OBJECTS, everywhere
from tests.tood.test_objectives import CASES, losses_of, predictions_for, wild
from tood import explanation, group_norm
from tood.assign import task_aligned
from tood.bench.cases import drawn_batch
from tood.config import build
from tood.data import batches
from tood.data.batches import Batch
from tood.data.targets import Targets
from tood.detector import Detector
from tood.detectors import DETECTORS, ModelConfig, build_detector
from tood.devices import kernels, known_to_host, pick
from tood.precision import mixed_precision
from tood.predictions import Predictions
from tood.priors import forget_priors
from tood.ranks import alone, share_gradients
from tood.run_state import DEFORMABLE

SLIM = {"layers": 2, "channels": 16, "groups": 4, "neck": {"channels": 16}, "backbone": {"depth": 18}}
SIDE, CLASSES = 64, 5


@pytest.fixture
def as_on_accelerator(monkeypatch):
    """On the CPU what an accelerator would do."""

    def begin() -> None:
        users = [module for module in sys.modules.values() if getattr(module, "known_to_host", None) is known_to_host]
        assert task_aligned in users
        for module in users:
            monkeypatch.setattr(module, "known_to_host", lambda values: False)

    return begin


@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients_are_the_same(case, as_on_accelerator):
    objective, epoch, choices = CASES[case]

    def learned() -> tuple[dict, list]:
        leaves = predictions_for(choices)
        valid = everywhere(leaves.priors)
        valid[:, ::3] = False
        losses = losses_of(objective, wild(leaves, valid), OBJECTS, valid, epoch)
        sum(losses.values()).backward()
        return losses, [leaf.grad for leaf in leaves_of(leaves)]

    on_host = learned()
    as_on_accelerator()
    torch.testing.assert_close(learned(), on_host, rtol=1e-6, atol=1e-8)


def leaves_of(predictions: Predictions) -> list[torch.Tensor]:
    return [
        leaf for leaf in tree_leaves(tuple(predictions)) if isinstance(leaf, torch.Tensor) and leaf.requires_grad and leaf.is_leaf
    ]


@pytest.mark.parametrize("name", [name for name in ASSIGNERS if name.startswith("task_aligned")])
def test_the_assignment_is_the_same_to_the_bit(name, as_on_accelerator, monkeypatch):
    cases = [random_batch(b=2, g=g, seed=g) for g in (0, 1, 7, 40)]
    cases[2]["boxes"] = cases[2]["boxes"].div(64).round() * 64  # many are equal
    cases[2]["boxes"][0, ::5], cases[2]["log_scores"][1, ::7] = torch.nan, -torch.inf
    on_host = [assign(name, batch) for batch in cases]
    as_on_accelerator()
    for chunk in (task_aligned.CHUNK, 1):  # whole, and an object at a time
        monkeypatch.setattr(task_aligned, "CHUNK", chunk)
        for batch, expected in zip(cases, on_host, strict=True):
            found = assign(name, batch)
            assert all(torch.equal(*pair) for pair in zip(found[:4], expected[:4], strict=True))


class Arrivals(TorchDispatchMode):
    """The operations that bring a host's tensor to a device."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        done = function(*arguments, **(options or {}))
        places = [
            {t.device.type for t in tree_leaves(side) if isinstance(t, torch.Tensor)} for side in ((arguments, options), done)
        ]
        if "cpu" in places[0] and "cuda" in places[1]:
            self.seen.append(str(function))
        return done


@pytest.fixture
def pretended(monkeypatch):
    """Tensors that are on a GPU by their own account and hold nothing: to ask what one holds is an error."""
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)  # else autocast stays off
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    forget = batches._statistics.cache_clear, forget_priors
    for each in forget:
        each()
    yield FakeTensorMode()
    for each in forget:
        each()


def batch_of(objects: int) -> Batch:
    targets = Targets(torch.zeros(2, objects, 4), torch.zeros(2, objects, dtype=torch.int64), torch.ones(2, objects).bool())
    ids, sizes = torch.zeros(2, dtype=torch.int64), torch.zeros(2, 2, dtype=torch.int64)
    images = torch.zeros(2, 3, SIDE, SIDE, dtype=torch.uint8)
    return Batch(images, sizes, targets._replace(crowds=torch.zeros(2, 1, 4)), ids, sizes, torch.ones(2, 2))


@pytest.mark.parametrize("detector", DETECTORS)
def test_no_part_of_a_step_asks_what_a_device_holds(pretended, detector):
    with pretended, torch.device("cuda"):
        model = build_detector(build(ModelConfig, {"detector": detector, **SLIM}), CLASSES).train()
        batch = batch_of(4)
        with warnings.catch_warnings(), Arrivals() as arrivals:
            warnings.simplefilter("ignore")  # there is no GPU
            with mixed_precision("bf16", "cuda"):
                assert torch.is_autocast_enabled("cuda")
                model(batch)
                arrivals.seen.clear()  # what normalises images was sent, and is kept
                forget_priors()  # a compiled step makes them each time
                losses = model(batch, 0), model(batch, 20)
    assert {loss.device.type for phase in losses for loss in phase.values()} == {"cuda"}
    assert arrivals.seen == []


@pytest.mark.parametrize("large", [True, False], ids=["large maps", "small maps"])
@pytest.mark.parametrize("detector", DETECTORS)
def test_maps_stay_in_bfloat16_between_convolutions(pretended, detector, large, monkeypatch):
    """Where CUDA's autocast would have norms and resizing write them in float32, and all that reads these convert them."""
    monkeypatch.setattr(group_norm, "LARGE", 0 if large else 2**60)
    seen = []
    with pretended, torch.device("cuda"), mixed_precision("bf16", "cuda"):
        model = build_detector(build(ModelConfig, {"detector": detector, **SLIM}), CLASSES).train()
        for name, part in (*model.neck.named_modules(), *model.head.named_modules()):
            if isinstance(part, torch.nn.Conv2d) and not name.endswith("conv_offset"):  # places need a longer mantissa
                part.register_forward_pre_hook(lambda _part, inputs: seen.append(inputs[0].dtype))
        model.dense(torch.zeros(2, 3, SIDE, SIDE))
    assert len(seen) > 20
    assert set(seen) == {torch.bfloat16}


def gradients(model: Detector, batch: Batch, precision: str) -> torch.Tensor:
    """All of them, one after the other."""
    model.zero_grad(set_to_none=True)
    with mixed_precision(precision, "cpu"):
        losses = model(batch, 20)
    sum(losses.values()).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])


def test_in_bfloat16_an_accelerator_learns_what_a_cpu_does(as_on_accelerator, monkeypatch):
    """Its norms are other ones, which a head that keeps less for the backward pass computes twice."""
    torch.manual_seed(0)
    model = build_detector(build(ModelConfig, SLIM), CLASSES).train()
    batch = drawn_batch(2, 4 * SIDE, 4 * SIDE, 4, torch.device("cpu"), CLASSES)
    exact, on_host = gradients(model, batch, "fp32"), gradients(model, batch, "bf16")
    as_on_accelerator()
    monkeypatch.setattr(group_norm, "LARGE", 0)
    norms, apply = [], group_norm.AsItCame.apply
    monkeypatch.setattr(group_norm.AsItCame, "apply", lambda *given: norms.append(given) or apply(*given))
    on_device = gradients(model, batch, "bf16")
    assert len(norms) == 5 * 4  # levels; two layers and two views of them
    model.head.checkpointing = True
    assert torch.equal(gradients(model, batch, "bf16"), on_device)
    assert len(norms) == 3 * 5 * 4
    errors = [(found - exact).norm() / exact.norm() for found in (on_host, on_device)]
    assert errors[1] < 1.2 * errors[0] < 0.3


class Calls(TorchDispatchMode):
    """(name, whether the deterministic mode was on) of all operations, those of the backward pass too."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        self.seen.add((function._overloadpacket._qualified_op_name, torch.are_deterministic_algorithms_enabled()))
        return function(*arguments, **(options or {}))


# Of what torch's deterministic mode refuses on CUDA, by torch.use_deterministic_algorithms' own list, that which a detector might
# come to use; and what it does there by a table of all coordinates, for which it waited for the host up to torch 2.13: any kind
# of scatter, of which one is the gradient of gather.
REFUSED = {
    *("aten::avg_pool3d_backward", "aten::max_pool3d_with_indices_backward", "aten::adaptive_max_pool2d_backward"),
    *("aten::_adaptive_avg_pool2d_backward", "aten::_adaptive_avg_pool3d_backward"),
    *(f"aten::upsample_{kind}_backward" for kind in ("linear1d", "bilinear2d", "bicubic2d", "trilinear3d")),
    *(f"aten::{kind}_pad{n}d_backward" for kind in ("reflection", "replication") for n in (1, 2, 3)),
    *("aten::nll_loss2d_forward", "aten::nll_loss_forward", "aten::put_", "aten::put", "aten::histc", "aten::bincount"),
    *("aten::median", "aten::grid_sampler_2d_backward", "torchvision::_deform_conv2d_backward"),
    *(f"aten::scatter{kind}" for kind in ("", "_", "_add", "_add_", "_reduce", "_reduce_")),
}


@pytest.mark.parametrize("detector", DETECTORS)
def test_no_part_of_losses_gradients_and_detections_is_refused_where_bits_are_to_be_the_same(detector, as_on_accelerator):
    as_on_accelerator()
    torch.manual_seed(0)
    model = build_detector(build(ModelConfig, {"detector": detector, **SLIM}), CLASSES).train()
    batch = batch_of(4)
    batch = batch._replace(sizes=torch.full((2, 2), SIDE), images=torch.randint(256, batch.images.shape, dtype=torch.uint8))
    boxes = torch.tensor([[4.0, 4, 30, 40], [8, 8, 60, 60], [8, 8, 60, 60], [20, 30, 28, 36]]).expand(2, -1, -1)
    batch = batch._replace(targets=batch.targets._replace(boxes=boxes))
    torch.use_deterministic_algorithms(True)
    try:
        with Calls() as calls:
            for epoch in (0, 20):
                sum(model(batch, epoch).values()).backward()
        with Calls() as evaluation:
            model.eval()(batch)
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    assert {("aten::convolution_backward", True), ("aten::index", True)} <= calls.seen
    assert not {name for name, strict in calls.seen | evaluation.seen if strict} & REFUSED
    if any(isinstance(part, DEFORMABLE) for part in model.modules()):
        assert ("torchvision::_deform_conv2d_backward", False) in calls.seen


@pytest.mark.parametrize("shape", [(7,), (3, 7), (2, 3, 7)])
def test_picking_is_gathering(shape, as_on_accelerator):
    as_on_accelerator()
    torch.manual_seed(0)
    values = torch.randn(shape, dtype=torch.float64)
    index = torch.randint(7, (*shape[:-1], 11))  # some twice
    slope = torch.randn(index.shape, dtype=torch.float64)
    found = []
    torch.use_deterministic_algorithms(True)
    try:
        for way in (lambda v: pick(v, index), lambda v: v.gather(-1, index)):
            leaf = values.clone().requires_grad_()
            with Calls() as calls:
                picked = way(leaf)
                picked.backward(slope)
            found.append((picked, leaf.grad, ("aten::gather", True) in calls.seen))
    finally:
        torch.use_deterministic_algorithms(False)
    assert [gathers for *_, gathers in found] == [False, True]
    torch.testing.assert_close(found[0][:2], found[1][:2])


@pytest.mark.parametrize("detector", DETECTORS)
def test_what_explains_a_detector_is_where_the_detector_is(pretended, monkeypatch, detector):
    stacked = torch.zeros(1, 3, SIDE, SIDE, dtype=torch.uint8), torch.tensor([[SIDE, SIDE]])
    monkeypatch.setattr(explanation, "stack_images", lambda images: stacked)  # which reads sizes, that are no more here
    pretended.allow_non_fake_inputs = True
    with pretended:
        with torch.device("cuda"):
            model = build_detector(build(ModelConfig, {"detector": detector, **SLIM}), CLASSES).eval()
        found = explanation.explain(model, stacked[0][0], torch.zeros(3, 4), torch.zeros(3, dtype=torch.long))
    assert found.owner.device.type == "cpu"  # to be drawn


@pytest.mark.parametrize(("name", "sent"), [("tood", False), ("ddod", True)])
def test_ranks_send_buffers_around_only_where_a_step_reads_them(name, sent):
    model = build_detector(build(ModelConfig, SLIM | {"detector": name}), CLASSES)
    with alone(torch.device("cpu")):
        assert share_gradients(model).will_sync_module_buffers() == sent


def test_kernels_are_chosen_for_a_while():
    assert not torch.are_deterministic_algorithms_enabled()
    with kernels(same_bits=True):
        assert torch.are_deterministic_algorithms_enabled()
        with kernels(same_bits=False):
            assert not torch.are_deterministic_algorithms_enabled()
            assert torch.backends.cudnn.benchmark
        assert torch.are_deterministic_algorithms_enabled()
    assert not torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.benchmark
