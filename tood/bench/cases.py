"""Fixed cases, the same on every machine and in every version: what `bench` measures.

A group's cases are timed in turn. Ratios are to its first case, so that two settings are compared in one process and one breath.
Predictions, objects and pictures are drawn, never learnt: times, not figures, are what counts here.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch.nn.functional import logsigmoid

from tood.bench.parts import busy, by_kernels, decode, losses, step
from tood.bench.timing import Operation
from tood.config import BackboneConfig, PredictConfig, TrainConfig
from tood.data.batches import Batch
from tood.data.targets import Targets
from tood.detector import Detector
from tood.detectors import ModelConfig, build_detector
from tood.objectives.atss import ATSS
from tood.objectives.task_aligned import TaskAligned
from tood.optimisation import make_optimizer
from tood.predictions import Predictions
from tood.priors import STRIDES, inside_image, make_priors
from tood.ranks import alone, share_gradients

COCO_CLASSES = 80
LAST = 1_000_000  # an epoch beyond every warm-up


class Sizes(NamedTuple):
    """How large the cases are. QUICK shows that they run; its times say nothing."""

    step: int = 320  # px, a side of both images of a training step
    train: tuple[int, int, int] = (16, 800, 1344)  # images, height and width of a step on a GPU
    image: tuple[int, int] = (800, 1333)  # (height, width) for assignment, losses, decoding
    images: int = 16  # of one assignment
    loss_images: int = 4
    many: int = 5000  # objects in one image
    detect: int = 640  # px, a side of the image to detect in
    photographs: int = 16
    evaluated: int = 5000  # images
    depth: int = 50


FULL = Sizes()
QUICK = Sizes(64, (2, 64, 96), (96, 128), 2, 1, 200, 64, 4, 40, 18)


class Case(NamedTuple):
    name: str
    operation: Operation
    peer: float | None = None  # seconds of the same work as published for the peer (PEER)
    units: int = 1  # of work in a call, such as photographs; times are a unit's


class Group(NamedTuple):
    name: str
    work: str  # in words
    cases: list[Case]
    warm_ups: int = 2
    rounds: int = 5  # at least
    settle: int = 0  # calls before each that counts
    on_device: bool = True  # whether a GPU, where there is one, has a part in it


PEER = "mmdetection 3.3.0, mmcv 2.1.0; 2 quiet cores, AMD EPYC, another day"


def steps(sizes: Sizes, device: torch.device) -> Iterator[Group]:
    """A training step, the optimizer's included, in both regimes and in the settings that are to pay."""
    batch = drawn_batch(2, sizes.step, sizes.step, 8, device)
    fp32, bf16 = TrainConfig(), TrainConfig(precision="bf16")
    model, wide, folded = (_detector(sizes, device) for _ in range(3))
    for own in (wide, folded):
        own.to(memory_format=torch.channels_last)
    folded.backbone.fold_norms()
    optimizer, wide_optimizer, folded_optimizer = (make_optimizer(own, fp32) for own in (model, wide, folded))
    cases = [
        Case("TAL, fp32", step(model, optimizer, batch, fp32, LAST), 1.40),
        Case("ATSS, fp32", step(model, optimizer, batch, fp32, 0), 1.40),
        Case("TAL, fp32, channels last", step(wide, wide_optimizer, batch, fp32, LAST)),
        Case("  and with norms folded", step(folded, folded_optimizer, batch, fp32, LAST)),
        Case("TAL, bf16", step(model, optimizer, batch, bf16, LAST)),
        Case("TAL, bf16, channels last", step(wide, wide_optimizer, batch, bf16, LAST)),
    ]
    yield Group(
        "step",
        f"TOOD R-{sizes.depth}, 2 images of {sizes.step}x{sizes.step}, 8 objects each",
        cases,
        warm_ups=1,
        rounds=3,
        settle=1,
    )
    if device.type == "cuda" or sizes is QUICK:
        yield _steps_of_a_gpu(sizes, device)
        with alone(device):
            yield _steps_of_a_rank(sizes, device)


def _steps_of_a_gpu(sizes: Sizes, device: torch.device) -> Group:
    """Steps as a GPU takes them; the same bits each time, as is the default, beside what that costs."""
    images, height, width = sizes.train
    batch, config = drawn_batch(images, height, width, 20, device), TrainConfig(precision="bf16")

    def stepping(compiled: bool = False) -> Operation:
        model = _detector(sizes, device).to(memory_format=torch.channels_last)
        if compiled:
            model.compile_dense()
        return step(model, make_optimizer(model, config), batch, config, LAST)

    eager = stepping()
    cases = [
        Case("bf16, channels last", by_kernels(eager, same_bits=True)),
        Case("  bits may differ", by_kernels(eager, same_bits=False)),
    ]
    if device.type == "cuda":  # on a CPU that takes minutes
        compiled = stepping(compiled=True)
        cases.append(Case("  compiled", by_kernels(compiled, same_bits=True)))
        cases.append(Case("  compiled, bits may differ", by_kernels(compiled, same_bits=False)))
    work = f"an image of {images} of {height}x{width}, 20 objects each, TOOD R-{sizes.depth}"
    return Group("step", work, [case._replace(units=images) for case in cases], warm_ups=3)


def _steps_of_a_rank(sizes: Sizes, device: torch.device) -> Group:
    """What DDP costs where there is nobody to share with: its copies and calls."""
    images, height, width = sizes.train
    batch, config = drawn_batch(images, height, width, 20, device), TrainConfig(precision="bf16")
    cases = []
    for name, wrap in (("in a world of 1", lambda model: model), ("  in DDP", share_gradients)):
        model = _detector(sizes, device).to(memory_format=torch.channels_last)
        operation = step(wrap(model), make_optimizer(model, config), batch, config, LAST)
        cases.append(Case(name, by_kernels(operation, same_bits=True), units=images))
    return Group("step", f"an image of {images} of {height}x{width}, as above, in bf16, channels last", cases, warm_ups=3)


def assignments(sizes: Sizes, device: torch.device) -> Iterator[Group]:
    """Who learns what: TAL with both kinds of candidates, and ATSS."""
    height, width = sizes.image
    for images, objects, peers in (
        (sizes.images, 20, (0.114, 0.114, None)),
        (1, 20, (0.0072, 0.0072, 0.0077)),
        (1, sizes.many, (None,) * 3),
    ):
        drawn = drawn_predictions(images, objects, height, width, device)
        work = f"{images} image{'s' * (images > 1)} of {height}x{width}, {objects} objects each"
        operations = assigners(*drawn)
        cases = [Case(name, call, peer) for (name, call), peer in zip(operations.items(), peers, strict=True)]
        yield Group("assign", work, cases)


def assigners(given: Predictions, targets: Targets, valid: torch.Tensor) -> dict[str, Operation]:
    objectives = {"TAL, all": TaskAligned(), "TAL, inside": TaskAligned(candidates="inside"), "ATSS": ATSS()}
    return {name: lambda o=objective: o.assign(given, targets, valid, LAST) for name, objective in objectives.items()}


def loss_groups(sizes: Sizes, device: torch.device) -> Iterator[Group]:
    """Losses and their gradients with respect to the predictions, the assignment included."""
    height, width = sizes.image
    given, targets, valid = drawn_predictions(sizes.loss_images, 20, height, width, device)
    objectives = {"TAL": TaskAligned(), "TAL, inside": TaskAligned(candidates="inside"), "ATSS": ATSS()}
    cases = [Case(name, losses(objective, given, targets, valid, LAST)) for name, objective in objectives.items()]
    yield Group("loss", f"{sizes.loss_images} images of {height}x{width}, 20 objects each, {COCO_CLASSES} classes", cases)


def decodings(sizes: Sizes, device: torch.device) -> Iterator[Group]:
    """From dense predictions to detections."""
    height, width = sizes.image
    given, _, _ = drawn_predictions(sizes.loss_images, 1, height, width, device)
    shape = torch.tensor([[height, width]] * sizes.loss_images, device=device)
    arguments = (busy(given), shape, torch.ones(len(shape), 2, device=device))
    cases = [
        Case("default", decode(*arguments, PredictConfig(), "none")),
        Case("score voting", decode(*arguments, PredictConfig(score_voting=True), "none")),
    ]
    yield Group("decode", f"{sizes.loss_images} images of {height}x{width}, {COCO_CLASSES} classes", cases)


def inferences(sizes: Sizes, device: torch.device) -> Iterator[Group]:
    """Images in, detections out."""
    batch = drawn_batch(1, sizes.detect, sizes.detect, 1, device)

    def detecting(model: Detector, bf16: bool, batch: Batch = batch) -> Operation:
        @torch.no_grad()
        def run() -> None:
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                model(batch)

        return run

    model, many = _detector(sizes, device).eval(), _detector(sizes, device, PredictConfig(score_threshold=0.0)).eval()
    wide = _detector(sizes, device).eval().to(memory_format=torch.channels_last)
    cases = [
        Case("fp32, no detection", detecting(model, False), 1.03),
        Case("fp32, many candidates", detecting(many, False), 1.10),
        Case("bf16, no detection", detecting(model, True), 1.03),
        Case("bf16, many candidates", detecting(many, True), 1.10),
        Case("fp32, channels last", detecting(wide, False), 1.03),
        Case("bf16, channels last", detecting(wide, True), 1.03),
    ]
    yield Group("infer", f"TOOD R-{sizes.depth}, 1 image of {sizes.detect}x{sizes.detect}", cases, warm_ups=1, settle=1)
    if device.type == "cuda" or sizes is QUICK:
        _, height, width = sizes.train
        large = drawn_batch(1, height, width, 1, device)
        cases = [
            Case("fp32, channels last", detecting(wide, False, large)),
            Case("bf16, channels last", detecting(wide, True, large)),
        ]
        yield Group("infer", f"TOOD R-{sizes.depth}, 1 image of {height}x{width}", cases, warm_ups=3)


# -- what is drawn ---------------------------------------------------------------------------------------------------


def drawn_predictions(
    images: int, objects: int, height: int, width: int, device: torch.device
) -> tuple[Predictions, Targets, torch.Tensor]:
    """Predictions around their points, scores of a detector half trained, laid out in memory as a head leaves them."""
    generator = torch.Generator().manual_seed(0)
    padded = [-(-side // 32) * 32 for side in (height, width)]
    priors = make_priors(tuple(tuple(-(-side // stride) for side in padded) for stride in STRIDES), device)
    n = len(priors.centres)
    logits = 2 * torch.randn(images, COCO_CLASSES, n, generator=generator) - 5
    noise = priors.strides.unsqueeze(-1) * torch.randn(images, n, 4, generator=generator).to(device)
    given = Predictions(logsigmoid(logits).to(device).transpose(1, 2), priors.anchors + noise, priors)
    sizes = torch.tensor([[height, width]] * images, device=device)
    return given, _objects(images, objects, height, width, generator, device, COCO_CLASSES), inside_image(priors, sizes)


def _objects(
    images: int, objects: int, height: int, width: int, generator: torch.Generator, device: torch.device, classes: int
) -> Targets:
    """Sides from 12 px to half an image, evenly by their logarithm."""
    least, most = torch.tensor(12.0).log(), torch.tensor(min(height, width) / 2).log()
    size = (least + (most - least) * torch.rand(images, objects, 2, generator=generator)).exp()
    corner = torch.rand(images, objects, 2, generator=generator) * (torch.tensor([width, height]) - size)
    labels = torch.randint(classes, (images, objects), generator=generator)
    valid = torch.ones(images, objects, dtype=torch.bool)
    return Targets(torch.cat([corner, corner + size], dim=-1), labels, valid).to(device)


def drawn_batch(images: int, height: int, width: int, objects: int, device: torch.device, classes: int = COCO_CLASSES) -> Batch:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (images, height, width, 3), dtype=torch.uint8, generator=generator).permute(0, 3, 1, 2)
    sizes = torch.tensor([[height, width]] * images)
    targets = _objects(images, objects, height, width, generator, torch.device("cpu"), classes)
    return Batch(pixels, sizes, targets, torch.arange(images), sizes, torch.ones(images, 2)).to(device)


def _detector(sizes: Sizes, device: torch.device, predict: PredictConfig | None = None) -> Detector:
    torch.manual_seed(0)
    config = ModelConfig(backbone=BackboneConfig(depth=sizes.depth))
    return build_detector(config, COCO_CLASSES, predict or PredictConfig()).to(device).train()  # its stem is frozen only so
