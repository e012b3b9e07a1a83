"""How long the parts of training and detection take, beside a fixed operation timed in the same breath.

Seconds say as much about the machine and its other work as about the code. A ratio to arithmetic that never changes, both timed
call by call in turn, says mostly what the code does: whatever slows the machine for a while slows both, and what interrupts
single calls is not looked at, since of either the quick calls count (the QUICK quantile).
"""

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, logsigmoid

from tood.data.batches import Batch, TrainLoader, normalise
from tood.detector import Detector
from tood.errors import ConfigError
from tood.optimisation import set_rate
from tood.postprocess import detections
from tood.predictions import Predictions, detached
from tood.priors import inside_image
from tood.recipe import Recipe
from tood.run_state import Run, start
from tood.training import read_data

Operation = Callable[[], object]

OPERATIONS = ("step", "assign", "loss", "decode", "loader")
SECONDS = 2.0  # that an operation and its reference are timed for, at least
SURE = 0.03  # error of a ratio that is good enough; a busy machine is timed longer,
PATIENCE = 8  # up to so many times the seconds
PAIRS = 15  # of calls, at least
QUICK = 0.2  # quantile of the calls' times that counts
GROUPS = 5  # of successive pairs, whose disagreement tells the error
LOADED = 8  # batches that `loader` draws from, again and again


class Timing(NamedTuple):
    """An operation and the reference, timed in turn."""

    seconds: float  # of a call
    reference_seconds: float  # of a call of the reference
    ratio: float  # of the two
    error: float  # standard error of the ratio's logarithm
    pairs: int


def interleaved(
    operation: Operation, reference: Operation, *, seconds: float = SECONDS, pairs: int = PAIRS, device: torch.device | None = None
) -> Timing:
    """Time both in turn, a call each, for so many seconds and at least so many pairs, longer where the error is not yet SURE.

    On a GPU each call is waited for.
    """

    def timed(call: Operation) -> float:
        _wait(device)
        started = time.perf_counter()
        call()
        _wait(device)
        return time.perf_counter() - started

    for call in (operation, reference, operation, reference):  # the first calls allocate, and choose algorithms
        timed(call)
    own, others, started, until = [], [], time.perf_counter(), seconds
    while True:
        while time.perf_counter() < started + until or len(own) < pairs:
            others.append(timed(reference))
            own.append(timed(operation))
        timing = timing_of(own, others)
        if timing.error <= SURE or until >= PATIENCE * seconds:
            return timing
        until *= 2


def timing_of(own: Sequence[float], others: Sequence[float]) -> Timing:
    """What times of calls, taken in turn, say together."""
    count = min(GROUPS, len(own) // 3)
    size = len(own) // max(1, count)
    logs = [math.log(quick(own[i * size :][:size]) / quick(others[i * size :][:size])) for i in range(count)]
    error = statistics.stdev(logs) / math.sqrt(count) if count > 1 else math.nan
    return Timing(quick(own), quick(others), quick(own) / quick(others), error, len(own))


def quick(seconds: Sequence[float]) -> float:
    """The QUICK quantile."""
    return sorted(seconds)[int(QUICK * (len(seconds) - 1))]


def reference_operation(device: torch.device) -> Operation:
    """Arithmetic that never changes: a convolution, a product, a copy, many small sums. Two milliseconds on a CPU core.

    Small sums are bound by the calls themselves, as assignment and losses are; a convolution by arithmetic, as a step is; a copy
    by memory. Each kind of trouble that a machine has slows some of it.
    """
    generator = torch.Generator().manual_seed(0)
    image, kernel, square, block, row = (
        torch.randn(shape, generator=generator).to(device)
        for shape in ((1, 32, 64, 64), (32, 32, 3, 3), (256, 256), (1 << 20,), (256,))
    )

    @torch.no_grad()
    def run() -> None:
        conv2d(image, kernel, padding=1)
        torch.mm(square, square)
        block.clone()
        total = row
        for _ in range(150):
            total = total * 0.5 + row

    return run


@contextmanager
def operations(recipe: Recipe, device: torch.device, names: tuple[str, ...] = OPERATIONS) -> Iterator[dict[str, Operation]]:
    """What a training of this recipe does, one call each, on one batch of its data and fresh weights.

    step     forward, losses, backward, clipping, optimizer, at a learning rate of 0: every call does the same
    assign   who learns what, as after any warm-up
    loss     losses and their gradients with respect to the predictions, the assignment included
    decode   from dense predictions to detections, scores drawn so that there is something to suppress
    loader   one batch read, decoded, augmented and put together, in this process
    Raises ConfigError for another name, DataError where the data cannot be read.
    """
    for name in names:
        if name not in OPERATIONS:
            raise ConfigError(f"{name!r} is not timed; choose from {', '.join(OPERATIONS)}")
    torch.manual_seed(recipe.train.seed)
    train_data, val_data = read_data(recipe.data)
    size = max(1, recipe.train.batch_size // recipe.train.accumulate)
    loader = TrainLoader(train_data, replace(recipe.data, workers=0), batch_size=size, seed=recipe.train.seed)
    try:
        run = start(replace(recipe, init="none"), {}, train_data, val_data, device)
        run.model.train()
        batch = next(iter(loader.epoch(0))).to(device)
        made: dict[str, Operation] = {"loader": _loading(loader), "step": _step(run, batch, recipe)}
        if {"assign", "loss", "decode"} & set(names):
            made |= _dense(run.model, batch, recipe)
        yield {name: made[name] for name in names}
    finally:
        loader.close()


def _step(run: Run, batch: Batch, recipe: Recipe) -> Operation:
    set_rate(run.optimizer, 0.0)
    epoch, model = recipe.train.epochs, run.model

    def step() -> None:
        with torch.autocast(run.device.type, torch.bfloat16, enabled=recipe.train.precision == "bf16"):
            losses = model(batch, epoch)
        sum(losses.values()).backward()
        if recipe.train.clip_norm:
            nn.utils.clip_grad_norm_(model.parameters(), recipe.train.clip_norm, foreach=True)
        run.optimizer.step()
        run.optimizer.zero_grad(set_to_none=True)

    return step


def _dense(model: Detector, batch: Batch, recipe: Recipe) -> dict[str, Operation]:
    epoch, objective = recipe.train.epochs, model.objective
    with torch.no_grad():
        given = model.dense(normalise(batch.images, batch.sizes, model.backbone.pixels))
    valid = inside_image(given.priors, batch.sizes)
    memory = () if model.objective_memory is None else (model.objective_memory.clone(),)
    busy = _busy(given)

    def assign() -> None:
        objective.assign(given, batch.targets, valid, epoch)

    def loss() -> None:
        predictions = _leaves(given)
        sum(objective.losses(predictions, batch.targets, valid, epoch, *memory).values()).backward()

    def decode() -> None:
        detections(busy, batch.sizes, batch.scales, recipe.predict, objective.FUSION)

    return {"assign": assign, "loss": loss, "decode": decode}


def _loading(loader: TrainLoader) -> Operation:
    """The first batches of an epoch, in a ring: every call reads files, none waits for an epoch's start."""
    batches = iter(())
    left = 0

    def load() -> Batch:
        nonlocal batches, left
        if not left:
            batches, left = iter(loader.epoch(0)), min(LOADED, len(loader))
        left -= 1
        return next(batches)

    return load


def _busy(given: Predictions) -> Predictions:
    """The same boxes with scores of a detector that has learnt something: a few in a thousand are well above any threshold."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(given.log_scores.shape, generator=generator).to(given.log_scores.device)
    return detached(given)._replace(log_scores=logsigmoid(2 * logits - 5))


def _leaves(value):
    """Predictions whose tensors collect gradients."""
    if isinstance(value, Tensor):
        return value.detach().requires_grad_(value.is_floating_point())
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        fields = {name: getattr(value, name) for name in value._fields}
        return value._replace(**{name: _leaves(v) for name, v in fields.items() if name != "priors"})
    return value


def _wait(device: torch.device | None) -> None:
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
