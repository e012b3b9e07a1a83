"""The table of detectors: every row works, combinations that make no sense are refused, and TOOD has the paper's size."""

import pytest
import torch

from tood.config import PredictConfig, build
from tood.data.batches import Batch, normalise
from tood.data.targets import pad_targets
from tood.detector import Detector
from tood.detectors import DETECTORS, ModelConfig, build_detector, idle_choices
from tood.errors import ConfigError
from tood.objectives.atss import ATSS
from tood.objectives.task_aligned import TaskAligned
from tood.postprocess import detections
from tood.views import View

TINY = {"channels": 8, "groups": 2, "layers": 2, "backbone": {"depth": 18}, "neck": {"channels": 8}}


def tiny(**choices) -> Detector:
    torch.manual_seed(0)
    return build_detector(build(ModelConfig, TINY | choices), num_classes=3, predict=PredictConfig(score_threshold=0.0))


def make_batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    return Batch(
        images=torch.randint(256, (2, 3, 64, 96), generator=generator, dtype=torch.uint8),
        sizes=torch.tensor([[64, 96], [50, 60]]),
        targets=pad_targets(
            [torch.tensor([[5.0, 5, 40, 60], [50, 10, 90, 40]]), torch.tensor([[2.0, 2, 30, 30]])],
            [torch.tensor([0, 2]), torch.tensor([1])],
        ),
        image_ids=torch.tensor([7, 8]),
        original_sizes=torch.tensor([[32, 48], [100, 120]]),
        scales=torch.tensor([[2.0, 2.0], [0.5, 0.5]]),
    )


@pytest.mark.parametrize("epoch", [0, 4])
@pytest.mark.parametrize("name", DETECTORS)
def test_every_row_trains_and_detects(name, epoch):
    detector = tiny(detector=name).train()
    losses = detector(make_batch(), epoch)
    assert {"loss_cls", "loss_box"} <= set(losses)
    sum(losses.values()).backward()
    for name, parameter in detector.named_parameters():
        assert (parameter.grad is None) == (not parameter.requires_grad), name
        assert parameter.grad is None or torch.isfinite(parameter.grad).all(), name
    assert all(torch.isfinite(value) and value > 0 for value in losses.values())
    for image in detector.eval()(make_batch()):
        assert len(image["boxes"]) == len(image["scores"]) == len(image["labels"]) > 0
        assert (image["scores"].diff() <= 0).all()
        assert set(image["labels"].tolist()) <= {0, 1, 2}


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("name", DETECTORS)
def test_gradients_lie_in_memory_as_their_weights(name, folded):
    """A fused optimizer on a CPU goes through both in memory's order, and says nothing where that differs."""
    detector = tiny(detector=name).to(memory_format=torch.channels_last).train()
    if folded:
        detector.backbone.fold_norms()
    sum(detector(make_batch(), 4).values()).backward()

    def order(tensor: torch.Tensor) -> list[int]:  # an axis of one element may have any stride
        return [stride for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1]

    trained = {name: parameter for name, parameter in detector.named_parameters() if parameter.requires_grad}
    assert any(not parameter.is_contiguous() for parameter in trained.values())
    assert {name for name, parameter in trained.items() if order(parameter.grad) != order(parameter)} == set()


@pytest.mark.parametrize("name", DETECTORS)
def test_a_few_steps_lower_the_loss(name):
    detector, batch = tiny(detector=name).train(), make_batch()
    optimiser = torch.optim.SGD(
        [p for p in detector.parameters() if p.requires_grad], lr=0.002 if name == "et_head_tal" else 0.02, momentum=0.9
    )
    totals = []
    for _ in range(20):
        total = sum(detector(batch, 0).values())
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
        totals.append(total.item())
    assert min(totals[-4:]) < 0.985 * totals[0]


def test_detections_are_in_pixels_of_the_original_image():
    detector, batch = tiny().eval(), make_batch()
    found = detector(batch)
    doubled = detector(batch._replace(scales=batch.scales / 2))
    for one, two in zip(found, doubled, strict=True):
        torch.testing.assert_close(two["boxes"], 2 * one["boxes"])


def test_autocast_and_channels_last_give_float32_losses_near_the_exact_ones():
    exact = tiny().train()(make_batch(), 0)
    with torch.autocast("cpu", torch.bfloat16):
        rough = tiny().to(memory_format=torch.channels_last).train()(make_batch(), 0)
    for name, value in rough.items():
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(exact[name].item(), rel=0.05)


def test_autocast_ends_where_predictions_are_there():
    """Boxes that vote are averaged by a product of matrices, which in bfloat16 would move them by whole pixels."""
    predict = PredictConfig(score_threshold=0.0, score_voting=True)
    detector = build_detector(build(ModelConfig, TINY), num_classes=3, predict=predict).eval()
    batch = make_batch()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        images = normalise(batch.images, batch.sizes)
        predictions = detector.dense(images)
        view = View(batch.images, batch.sizes, batch.scales)
        found = detector.detect(images, batch.sizes, batch.scales), detector.detect_views([view])
    expected = detections(predictions, batch.sizes, batch.scales, predict, detector.objective.FUSION)
    for way in found:
        for one, other in zip(way, expected, strict=True):
            assert all(torch.equal(one[key], other[key]) for key in ("boxes", "scores", "labels"))


@pytest.mark.parametrize(
    ("choices", "reason"),
    [
        ({"tower": "parallel", "aligner": "both"}, "aligner: 'both' needs the interactive features of tower=t_head"),
        ({"detector": "atss", "aligner": "cls"}, "parallel has none: set aligner=none"),
        ({"box": "delta"}, "'delta' is relative to an anchor's size; set prior=anchor or box=distance"),
        ({"prior": "anchor"}, "'anchor' has no effect on box=distance; set box=delta or prior=point"),
        ({"detector": "tood_anchor_based", "box": "distance"}, "'anchor' has no effect on box=distance"),
        ({"channels": 10, "groups": 4}, "channels: 10 is not a multiple of groups=4"),
        ({"objective": {"name": "atss", "m": 13}}, "objective.m: unknown key"),
        ({"context": "dpe", "dpe_lower": False, "dpe_upper": 0}, "dpe_lower=false dpe_upper=0; set one, or context=none"),
        ({"detector": "tscode_fcos", "dpe_lower": False, "dpe_upper": 0}, "dpe_upper=0; set one, or context=sce"),
    ],
)
def test_a_combination_that_makes_no_sense_is_refused_with_the_reason(choices, reason):
    with pytest.raises(ConfigError) as error:
        build(ModelConfig, TINY | choices)
    assert reason in str(error.value)


@pytest.mark.parametrize(
    ("choices", "reason"),
    [
        ({"bins": 8}, "bins: 8 has no effect on box=distance; leave bins out"),
        ({"detector": "gfl", "box": "distance", "bin_width": 0.5}, "bin_width: 0.5 has no effect on box=distance"),
        ({"sce_down": "avg"}, "sce_down: 'avg' has no effect on context=none; leave sce_down out"),
        ({"context": "dpe", "sce_kernel": 5}, "sce_kernel: 5 has no effect on context=dpe"),
        ({"context": "dpe", "sce_upper": False}, "sce_upper: False has no effect on context=dpe"),
        ({"dpe_lower": False}, "dpe_lower: False has no effect on context=none"),
        ({"detector": "atss", "context": "sce", "dpe_upper": 2}, "dpe_upper: 2 has no effect on context=sce"),
        ({"quality_from": "classes"}, "quality_from: 'classes' has no effect on quality=none"),
        ({"groups": 0, "conv_bias": True}, "conv_bias: True has no effect on groups=0, whose convolutions always have a bias"),
    ],
)
def test_a_choice_about_a_part_that_is_not_there_is_told(choices, reason):
    (told,) = idle_choices(build(ModelConfig, TINY | choices))
    assert reason in told


@pytest.mark.parametrize(
    "choices",
    [
        {"box": "distribution", "bins": 8, "bin_width": 2.0},
        {"bins": 16, "sce_kernel": 3, "dpe_upper": 1, "quality_from": "boxes"},  # as written out in full
        {"detector": "tscode_fcos", "sce_down": "max", "sce_kernel": 5, "sce_upper": False, "dpe_upper": 2},
        {"context": "dpe", "dpe_lower": False},
        {"context": "dpe", "dpe_upper": 0},
        {"detector": "fcos", "quality": "none"},  # the row reads its quality from the classes
        {"detector": "fcos", "quality": "none", "quality_from": "boxes"},
        {"detector": "fcos_imprv", "groups": 0},  # the row has a bias beside each norm
        {"conv_bias": True},
    ],
)
def test_a_choice_that_has_its_part_or_comes_with_the_row_is_taken(choices):
    assert list(idle_choices(build(ModelConfig, TINY | choices))) == []


def test_rows_are_the_choices_that_the_paper_compares():
    def choices(name):
        model = build(ModelConfig, {"detector": name})
        return model.tower, model.aligner, model.box, model.layers, type(model.objective)

    assert choices("tood") == ("t_head", "both", "distance", 6, TaskAligned)
    assert choices("tood_anchor_based") == ("t_head", "both", "delta", 6, TaskAligned)
    assert choices("t_head_atss") == ("t_head", "both", "distance", 6, ATSS)
    assert choices("parallel_tal") == ("parallel", "none", "distance", 4, TaskAligned)
    assert choices("atss") == ("parallel", "none", "distance", 4, ATSS)


def count(module: torch.nn.Module, *, trained: bool = False) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trained)


def test_tood_r50_has_the_published_size():
    """31.98 M in TOOD's Table 1 are the trained parameters; the stem and the first stage (225,344) are frozen."""
    with torch.device("meta"):
        detector = build_detector(build(ModelConfig, {}), num_classes=80)
    assert count(detector) == 32_200_494
    assert count(detector, trained=True) == 32_200_494 - 225_344
    assert round(count(detector.head) / 1e6, 2) == 4.82
