"""Population-based training: who is replaced by whose child, with which values. Decisions alone; `pipeline.generations` acts.

Between two generations the weakest trials end, and each is replaced by a child of one of the best: a new trial that begins
with its parent's weights and optimizer, and with its parent's values shifted. So a trial keeps one configuration for life,
and its parameters, hash and checkpoints say what they always say. Decisions follow from the scores and the sweep's seed.

Jaderberg et al., Population Based Training of Neural Networks, 2017 (truncation selection; explore by perturbing or resampling).
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.config import Experiment, experiment_of
from pipeline.space import Values, draw
from tood.errors import ConfigError

FACTORS = (0.8, 1.2)  # times a parent's value
CHANGEABLE = (  # what may differ between parent and child: nothing that shapes weights, counts steps or says what is averaged
    "train.lr",
    "train.momentum",
    "train.weight_decay",
    "train.bias_lr",
    "train.bias_decay",
    "train.gamma",
    "train.clip_norm",
    "data.flip",
    "data.augment.mosaic",
    "data.augment.mixup",
)
OBJECTIVE = "model.objective."  # its options but the name: alpha, beta, m, weights of losses, ...

PARENT = "tood.parent_run"  # tags of a child's MLflow run: the run whose checkpoint it began with,
PARENT_EPOCH = "tood.parent_epoch"  # of which epoch,
CHANGED = "tood.changed"  # "alpha 1 -> 1.2, ...": from the parent's values to its own,
LINEAGE = "tood.lineage"  # "000 @2 > 004 @4 > 007": every trial that its weights went through,
REPLACES = "tood.replaces"  # and the run of the trial whose place it took


@dataclass(frozen=True)
class Birth:
    """A trial that begins with another's checkpoint. Trials are named by number: the first generation's, then children in order."""

    id: str
    values: Values
    replaces: str
    parent: str
    epoch: int  # epochs done that the checkpoint holds
    step: int
    checkpoint: str  # of the parent, its prefix in the store
    digest: str  # of that checkpoint's manifest, which stands for every byte
    metrics: dict[str, float]  # figures of that epoch
    changed: dict[str, list]  # key: [the parent's value, its own]

    def words(self) -> str:
        return ", ".join(f"{key.rpartition('.')[2]} {_short(old)} -> {_short(new)}" for key, (old, new) in self.changed.items())


def check(values: Values, experiment: Experiment, trials: Sequence[Values] | None) -> None:
    """Raises ConfigError for what population-based training cannot do, before anything starts. values: the experiment's."""
    config, train = experiment.sweep, experiment.train
    fixed = {key: axis for key, axis in config.space.items() if not isinstance(axis, list | dict)}
    if trials is None:
        raise ConfigError("sweep.search: optuna chooses trials by itself, and so does scheduler=pbt; use search=random or grid")
    if len(trials) < 2:
        raise ConfigError("sweep.samples: scheduler=pbt needs a population of at least 2; raise it, or give axes more values")
    for name, axis in config.space.items():
        if name in fixed:  # the same value in every trial
            continue
        if isinstance(axis, dict) and "choices" in axis:
            raise ConfigError(
                f"sweep.space.{name}: scheduler=pbt shifts single values, not choices; give the keys that may change "
                "lists or ranges of their own"
            )
        if not may_change(name):
            raise ConfigError(
                f"sweep.space.{name}: under scheduler=pbt a trial goes on from another's weights and step, which other values "
                f"of this key may not fit; fix it, or use another scheduler. These may change: {', '.join(CHANGEABLE)}, and "
                f"options of {OBJECTIVE.rstrip('.')} but its name"
            )
        for value in axis if isinstance(axis, list) else next(iter(axis.values())):
            try:
                experiment_of(values, {**fixed, name: value})
            except ConfigError as error:
                raise ConfigError(f"sweep.space.{name}: a child may come to {value!r}, which cannot be: {error}") from None
    if config.exploit_every >= train.epochs:
        raise ConfigError(
            f"sweep.exploit_every: {config.exploit_every} epochs leave train.epochs={train.epochs} no second generation; lower it"
        )
    if config.exploit_every % train.evaluate_every:
        raise ConfigError(
            f"sweep.exploit_every: {config.exploit_every} is no multiple of train.evaluate_every={train.evaluate_every}, and "
            "trials are judged by the figure of a generation's last epoch; change one of the two"
        )
    if train.early_stopping:
        raise ConfigError("train.early_stopping: scheduler=pbt itself ends what falls behind; leave one of the two out")


def may_change(key: str) -> bool:
    return key in CHANGEABLE or (key.startswith(OBJECTIVE) and key != f"{OBJECTIVE}name")


def bounds(epochs: int, every: int) -> list[int]:
    """After how many epochs each generation ends; the last one trains to the end."""
    return [*range(every, epochs, every), epochs]


def select(scores: Mapping[str, float | None], share: float, generator: random.Random) -> dict[str, str]:
    """Trial to be replaced -> the parent of its child. scores: of the trials that compete; None: one that failed.

    Of n trials ceil(share * n), at most half, are replaced, the lowest scores first, and as many are parents; those that
    failed are replaced whatever their number, where anyone is left to be a parent.
    """
    ranked = sorted((name for name, score in scores.items() if score is not None), key=lambda name: (scores[name], name))
    failed = sorted(scores.keys() - set(ranked))
    count = min(math.ceil(share * len(scores)), len(scores) // 2)
    parents = ranked[-max(count, 1) :]
    weak = [name for name in (failed + ranked)[: max(count, len(failed))] if name not in parents]
    return {name: generator.choice(parents) for name in weak} if parents else {}


def explore(space: Values, parent: Values, resample: float, generator: random.Random) -> Values:
    """A child's values: each axis of the space shifted from the parent's value, or with chance `resample` drawn anew.

    A range multiplies by 0.8 or 1.2 and stays within its ends; a list moves to a neighbour.
    """
    return {key: _explore(space[key], value, resample, generator) for key, value in parent.items()}


def _explore(axis: Any, value: Any, resample: float, generator: random.Random) -> Any:
    anew = generator.random() < resample
    if isinstance(axis, list):
        others = [other for other in axis if other != value]
        if anew or not others:
            return generator.choice(others or axis)
        place = axis.index(value)
        return generator.choice([axis[i] for i in (place - 1, place + 1) if 0 <= i < len(axis)])
    if not isinstance(axis, dict):
        return value
    shifted = _shifted(axis, value)
    return draw(axis, generator) if anew or not shifted else generator.choice(shifted)


def _shifted(axis: Values, value: float | int) -> list[float | int]:
    """The value times each factor, within the range's ends; what that does not change is left out."""
    ((kind, (low, high)),) = axis.items()
    found = []
    for factor in FACTORS:
        shifted = value * factor
        if kind == "int":
            shifted = round(shifted)
            if shifted == value:  # a fifth of a small number is nothing
                shifted = value + (1 if factor > 1 else -1)
        found.append(min(max(shifted, low), high))
    return [shifted for shifted in found if shifted != value]


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
