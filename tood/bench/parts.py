"""The parts of a training, each as an operation to time: of a recipe on its own data, or of a detector on a batch."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from tood.bench.timing import Operation
from tood.config import PredictConfig, TrainConfig
from tood.data.batches import Batch, Loaded, normalise
from tood.data.loaders import TrainLoader
from tood.data.targets import Targets
from tood.detector import Detector
from tood.devices import kernels
from tood.errors import ConfigError
from tood.optimisation import set_rate
from tood.postprocess import detections
from tood.precision import mixed_precision
from tood.predictions import Predictions, detached
from tood.priors import inside_image
from tood.recipe import Recipe
from tood.run_state import start
from tood.training import read_data

OPERATIONS = ("step", "assign", "loss", "decode", "loader")
LOADED = 8  # batches that `loader` draws from, again and again


@contextmanager
def operations(recipe: Recipe, device: torch.device, names: tuple[str, ...] = OPERATIONS) -> Iterator[dict[str, Operation]]:
    """What a training of this recipe does, by its kernels, one call each, on one batch of its data and fresh weights.

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
        batch, epoch = next(iter(loader.epoch(0))).to(device), recipe.train.epochs
        made = {"loader": loading(loader), "step": step(run.model, run.optimizer, batch, recipe.train, epoch)}
        if {"assign", "loss", "decode"} & set(names):
            with torch.no_grad():
                given = run.model.dense(normalise(batch.images, batch.sizes, run.model.backbone.pixels))
            objective, valid = run.model.objective, inside_image(given.priors, batch.sizes)
            made["assign"] = lambda: objective.assign(given, batch.targets, valid, epoch)
            made["loss"] = losses(objective, given, batch.targets, valid, epoch, run.model.objective_memory)
            made["decode"] = decode(busy(given), batch.sizes, batch.scales, recipe.predict, objective.FUSION)
        with kernels(same_bits=recipe.train.deterministic, shapes_recur=recipe.data.buckets > 0):
            yield {name: made[name] for name in names}
    finally:
        loader.close()


def step(model: Detector, optimizer: torch.optim.Optimizer, batch: Batch, config: TrainConfig, epoch: int) -> Operation:
    set_rate(optimizer, 0.0)

    def run() -> None:
        with mixed_precision(config.precision, batch.images.device.type):
            found = model(batch, epoch)
        sum(found.values()).backward()
        if config.clip_norm:
            nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return run


def by_kernels(operation: Operation, *, same_bits: bool) -> Operation:
    """The operation by kernels that give the same bits each time, as training has them, or by the quickest."""

    def run() -> None:
        with kernels(same_bits=same_bits):
            operation()

    return run


def losses(objective, given: Predictions, targets: Targets, valid: Tensor, epoch: int, memory: Tensor | None = None) -> Operation:
    own_memory = () if memory is None else (memory.clone(),)

    def run() -> None:
        sum(objective.losses(_leaves(given), targets, valid, epoch, *own_memory).values()).backward()

    return run


def decode(given: Predictions, sizes: Tensor, scales: Tensor, config: PredictConfig, fusion: str) -> Operation:
    return lambda: detections(given, sizes, scales, config, fusion)


def loading(loader: TrainLoader) -> Operation:
    """The first batches of an epoch, in a ring: every call reads files, none waits for an epoch's start."""
    batches = iter(())
    left = 0

    def load() -> Loaded:
        nonlocal batches, left
        if not left:
            batches, left = iter(loader.epoch(0)), min(LOADED, len(loader))
        left -= 1
        return next(batches)

    return load


def arrival(load: Operation, device: torch.device) -> Operation:
    """A batch loaded and, on the device, decoded and resized as far as that was left to it."""
    return lambda: load().to(device)


def busy(given: Predictions) -> Predictions:
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
