"""Search spaces: axes from YAML to trials.

    space:
      model.objective.alpha: [0.5, 1.0]            # choose one
      train.lr: {loguniform: [0.001, 0.1]}         # also uniform, and int for whole numbers, both ends included
      head:                                        # a named axis: each choice sets keys, and may open axes of its own
        choices:
          t_head: {model.tower: t_head, model.layers: [4, 6]}
          parallel: {model.tower: parallel}

An axis called `cell` holds the cells of a paper's table: its choices' names are what its trials are told by.

A trial is a mapping of dotted keys to values. Grids and random samples are listed before the sweep starts; Optuna asks
`suggest` for one trial at a time.
"""

import itertools
import math
import random
import sys
from collections.abc import Iterator
from typing import Any

from tood.errors import ConfigError

RANGES = ("uniform", "loguniform", "int")
CELL = "cell"
MOST_TRIALS = 10_000  # of a grid
Values = dict[str, Any]


def check_space(space: Values | None, search: str) -> Values:
    """The space itself when every axis is well-formed; ConfigError naming the axis otherwise."""
    if not space:
        raise ConfigError("sweep.space: no axis is given; add one such as model.objective.alpha: [0.5, 1.0]")
    _check_axes("sweep.space", space, search)
    return space


def swept_keys(space: Values) -> list[str]:
    """Dotted keys that the space may set, in order."""
    keys: dict[str, None] = {}
    for name, axis in space.items():
        if isinstance(axis, dict) and "choices" in axis:
            for chosen in axis["choices"].values():
                keys |= dict.fromkeys(swept_keys(chosen))
        else:
            keys[name] = None
    return list(keys)


def grid_size(space: Values) -> int:
    """How many combinations there are, without making them."""
    return math.prod(
        sum(map(grid_size, axis["choices"].values()))
        if isinstance(axis, dict) and "choices" in axis
        else len(axis)
        if isinstance(axis, list)
        else 1
        for axis in space.values()
    )


def grid(space: Values) -> list[Values]:
    """Every combination, the last axis fastest. Raises ConfigError for more than anybody trains."""
    if (count := grid_size(space)) > MOST_TRIALS:
        raise ConfigError(
            f"sweep.space: a grid of {count} trials, more than {MOST_TRIALS}; give fewer values, or set sweep.search=random"
        )
    return list(_combinations(list(space.items())))


def cell_of(space: Values, trial: Values) -> str | None:
    """The name of the cell that a trial is of: of the choices that it agrees with, the one that says most."""
    axis = space.get(CELL)
    fitting = {
        name: len(keys)
        for name, keys in (axis["choices"] if isinstance(axis, dict) and "choices" in axis else {}).items()
        if keys.keys() <= trial.keys() and all(trial[key] == value for key, value in _fixed(keys).items())
    }
    return max(fitting, key=fitting.get, default=None)


def short_names(space: Values, trial: Values) -> Values:
    """A trial's settings in few words: its cell, and the rest under the last words of their keys, in full where two end alike."""
    cell = cell_of(space, trial)
    said = {} if cell is None else _fixed(space[CELL]["choices"][cell])
    rest = {key: value for key, value in trial.items() if key not in said}
    words = [key.rpartition(".")[2] for key in rest]
    named = {key if words.count(word) > 1 else word: rest[key] for key, word in zip(rest, words, strict=True)}
    return named if cell is None else {CELL: cell} | named


def sample(space: Values, generator: random.Random) -> Values:
    """One random trial."""
    values: Values = {}
    for name, axis in space.items():
        if isinstance(axis, list):
            values[name] = generator.choice(axis)
        elif not isinstance(axis, dict):
            values[name] = axis
        elif "choices" in axis:
            values |= sample(axis["choices"][generator.choice(list(axis["choices"]))], generator)
        else:
            values[name] = draw(axis, generator)
    return values


def suggest(space: Values, trial: Any, prefix: str = "") -> Values:
    """One trial by an Optuna trial's own suggestions; a sub-axis is asked for only where its choice was taken."""
    values: Values = {}
    for name, axis in space.items():
        label = prefix + name
        if isinstance(axis, list):
            values[name] = axis[trial.suggest_categorical(label, list(range(len(axis))))]
        elif not isinstance(axis, dict):
            values[name] = axis
        elif "choices" in axis:
            chosen = trial.suggest_categorical(label, list(axis["choices"]))
            values |= suggest(axis["choices"][chosen], trial, f"{label}={chosen}/")
        else:
            ((kind, (low, high)),) = axis.items()
            if kind == "int":
                values[name] = trial.suggest_int(label, low, high)
            else:
                values[name] = trial.suggest_float(label, low, high, log=kind == "loguniform")
    return values


def _fixed(keys: Values) -> Values:
    """The keys of a choice that are no axes: values, and lists of one."""
    single = {key: value[0] if isinstance(value, list) and len(value) == 1 else value for key, value in keys.items()}
    return {key: single[key] for key, value in keys.items() if single[key] is not value or not isinstance(value, list | dict)}


def _combinations(axes: list[tuple[str, Any]]) -> Iterator[Values]:
    options = []
    for name, axis in axes:
        if isinstance(axis, dict) and "choices" in axis:
            chosen = (_combinations(list(keys.items())) for keys in axis["choices"].values())
            options.append(list(itertools.chain.from_iterable(chosen)))
        else:
            options.append([{name: value} for value in (axis if isinstance(axis, list) else [axis])])
    for parts in itertools.product(*options):
        yield {key: value for part in parts for key, value in part.items()}


def draw(axis: Values, generator: random.Random) -> float | int:
    ((kind, (low, high)),) = axis.items()
    if kind == "int":
        return generator.randint(low, high)
    if kind == "loguniform":
        return math.exp(generator.uniform(math.log(low), math.log(high)))
    return generator.uniform(low, high)


def _check_axes(where: str, axes: Values, search: str) -> None:
    """Axes of which none sets a key that another sets too: the later one would win, in silence."""
    setters: dict[str, str] = {}
    for name, axis in axes.items():
        if not isinstance(name, str):
            raise ConfigError(f"{where}: {name!r} is not a key such as train.lr, nor a name for choices; write one")
        _check_axis(f"{where}.{name}", axis, search)
        for key in swept_keys({name: axis}):
            if key in setters:
                raise ConfigError(f"{where}: {key} is set by {setters[key]} and by {name}; leave it to one of them")
            setters[key] = name


def _check_axis(where: str, axis: Any, search: str) -> None:
    if isinstance(axis, list):
        if not axis:
            raise ConfigError(f"{where}: the list is empty; give values, or leave the axis out")
        return
    if not isinstance(axis, dict):
        return  # a fixed value
    if set(axis) == {"choices"}:
        if not isinstance(axis["choices"], dict) or not axis["choices"]:
            raise ConfigError(f"{where}.choices: expected a mapping of name to the keys that it sets")
        for label, keys in axis["choices"].items():
            if not isinstance(keys, dict):
                raise ConfigError(f"{where}.choices.{label}: expected a mapping of keys, got {keys!r:.80}")
            _check_axes(f"{where}.choices.{label}", keys, search)
        return
    if len(axis) != 1 or next(iter(axis)) not in RANGES:
        raise ConfigError(f"{where}: expected a list, choices, or one of {', '.join(RANGES)} with [low, high]; got {axis!r:.80}")
    ((kind, limits),) = axis.items()
    numbers = (
        isinstance(limits, list)
        and len(limits) == 2
        and all(type(v) in (int, float) and abs(v) <= sys.float_info.max for v in limits)
    )
    if not numbers or not limits[0] < limits[1] or (kind == "loguniform" and limits[0] <= 0):
        raise ConfigError(f"{where}.{kind}: expected [low, high] with low < high, got {limits!r:.80}")
    if kind == "int" and not all(isinstance(v, int) for v in limits):
        raise ConfigError(f"{where}.int: expected whole numbers, got {limits!r:.80}")
    if search == "grid":
        raise ConfigError(f"{where}: a grid cannot enumerate {kind}; use a list, or sweep.search=random or optuna")
