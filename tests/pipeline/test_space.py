"""Search spaces: which trials they list, draw or ask for, and which axes are refused."""

import random

import optuna
import pytest

from pipeline.config import experiment_of
from pipeline.experiment_files import experiment_names, load_values
from pipeline.space import check_space, grid, sample, suggest, swept_keys
from pipeline.sweep import make_plan
from tood.errors import ConfigError

SPACE = {
    "train.lr": {"loguniform": [0.001, 0.1]},
    "head": {
        "choices": {
            "t_head": {"model.tower": "t_head", "model.layers": {"int": [4, 6]}},
            "parallel": {"model.tower": "parallel"},
        }
    },
    "model.objective.alpha": [0.5, 1.0],
    "data.flip": {"uniform": [0.25, 0.75]},
    "train.epochs": 3,
}


def is_active(trial: dict) -> bool:
    """A sub-axis is there exactly where its choice was taken."""
    return ("model.layers" in trial) == (trial["model.tower"] == "t_head")


def is_within(trial: dict) -> bool:
    layers = trial.get("model.layers", 4)
    return (
        0.001 <= trial["train.lr"] <= 0.1
        and 0.25 <= trial["data.flip"] <= 0.75
        and trial["model.objective.alpha"] in (0.5, 1.0)
        and trial["train.epochs"] == 3
        and type(layers) is int
        and 4 <= layers <= 6
    )


def test_a_grid_lists_every_combination_with_the_last_axis_fastest():
    assert grid({"a": [1, 2], "b": 7, "c": ["x", "y"]}) == [
        {"a": 1, "b": 7, "c": "x"},
        {"a": 1, "b": 7, "c": "y"},
        {"a": 2, "b": 7, "c": "x"},
        {"a": 2, "b": 7, "c": "y"},
    ]


def test_a_choice_opens_its_own_axes_and_no_other():
    heads = {"t_head": {"tower": "t_head", "layers": [4, 6]}, "parallel": {"tower": "parallel"}}
    assert grid({"head": {"choices": heads}, "m": [9, 13]}) == [
        {"tower": "t_head", "layers": 4, "m": 9},
        {"tower": "t_head", "layers": 4, "m": 13},
        {"tower": "t_head", "layers": 6, "m": 9},
        {"tower": "t_head", "layers": 6, "m": 13},
        {"tower": "parallel", "m": 9},
        {"tower": "parallel", "m": 13},
    ]
    nested = {"outer": {"choices": {"on": {"inner": {"choices": {"x": {"a": [1, 2]}, "y": {"b": 3}}}}, "off": {"c": 4}}}}
    assert grid(nested) == [{"a": 1}, {"a": 2}, {"b": 3}, {"c": 4}]
    assert swept_keys(nested) == ["a", "b", "c"]
    assert swept_keys(SPACE) == ["train.lr", "model.tower", "model.layers", "model.objective.alpha", "data.flip", "train.epochs"]


def test_random_trials_follow_the_seed_and_fill_their_ranges():
    def draw(seed: int) -> list[dict]:
        generator = random.Random(seed)
        return [sample(SPACE, generator) for _ in range(200)]

    trials = draw(0)
    assert trials == draw(0)
    assert trials != draw(1)
    assert all(is_active(t) and is_within(t) for t in trials)
    assert {t.get("model.layers") for t in trials} == {None, 4, 5, 6}  # both ends
    assert {t["model.objective.alpha"] for t in trials} == {0.5, 1.0}
    below = sum(t["train.lr"] < 0.01 for t in trials)  # half of a loguniform range; of a uniform one it were a tenth
    assert 70 < below < 130


def test_optuna_is_asked_only_for_the_axes_that_its_choices_opened():
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    taken = []

    def objective(trial: optuna.Trial) -> float:
        taken.append(suggest(SPACE, trial))
        return -abs(taken[-1]["train.lr"] - 0.01)

    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=0, n_startup_trials=6))
    study.optimize(objective, n_trials=16)
    assert {t["model.tower"] for t in taken} == {"t_head", "parallel"}
    for trial, values in zip(study.trials, taken, strict=True):
        assert is_active(values)
        assert is_within(values)
        asked = {"train.lr", "head", "model.objective.alpha", "data.flip"}
        assert trial.params.keys() == asked | ({"head=t_head/model.layers"} if trial.params["head"] == "t_head" else set())
        assert trial.params["train.lr"] == values["train.lr"]
        assert trial.distributions["train.lr"].log
        assert not trial.distributions["data.flip"].log


def test_optuna_may_choose_between_values_of_any_kind():
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    axis = [{"name": "atss", "topk": 5}, {"name": "task_aligned"}, [1, 2]]
    found = [suggest({"model.objective": axis}, study.ask())["model.objective"] for _ in range(20)]
    assert all(value in axis for value in found)
    assert all(value in found for value in axis)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (None, "no axis is given"),
        ({}, "no axis is given"),
        ({"a": []}, "sweep.space.a: the list is empty"),
        ({"a": {"uniform": [1, 0]}}, r"sweep.space.a.uniform: expected \[low, high\] with low < high, got \[1, 0\]"),
        ({"a": {"uniform": [1, 1]}}, "low < high"),
        ({"a": {"uniform": [0, float("nan")]}}, "low < high"),
        ({"a": {"uniform": [0, 1, 2]}}, "low < high"),
        ({"a": {"uniform": [False, True]}}, "low < high"),
        ({"a": {"loguniform": [0, 1]}}, "sweep.space.a.loguniform: expected"),
        ({"a": {"int": [1.5, 3]}}, "sweep.space.a.int: expected whole numbers"),
        ({"a": {"normal": [0, 1]}}, "expected a list, choices, or one of uniform, loguniform, int"),
        ({"a": {"int": [1, 2], "uniform": [0, 1]}}, "expected a list, choices, or one of"),
        ({"a": {"choices": {"x": {"k": 1}}, "int": [1, 2]}}, "expected a list, choices, or one of"),
        ({"a": {"choices": {}}}, "sweep.space.a.choices: expected a mapping of name"),
        ({"a": {"choices": ["x"]}}, "sweep.space.a.choices: expected a mapping of name"),
        ({"a": {"choices": {"x": 3}}}, "sweep.space.a.choices.x: expected a mapping of keys, got 3"),
        ({"a": {"choices": {"x": {"k": []}}}}, "sweep.space.a.choices.x.k: the list is empty"),
        ({1: [1, 2]}, "sweep.space: 1 is not a key such as train.lr"),
        ({"a": {"choices": {"x": {2: 3}}}}, "sweep.space.a.choices.x: 2 is not a key"),
        ({"lr": [1], "a": {"choices": {"x": {"lr": 2}}}}, "lr is set by lr and by a"),
    ],
)
def test_a_malformed_axis_is_refused_and_named(space, message):
    with pytest.raises(ConfigError, match=message):
        check_space(space, "random")


@pytest.mark.parametrize("kind", ["uniform", "loguniform", "int"])
def test_a_range_is_for_searches_that_draw(kind):
    space = {"a": {"choices": {"x": {"b": {kind: [1, 9]}}}}}
    with pytest.raises(ConfigError, match=rf"sweep\.space\.a\.choices\.x\.b: a grid cannot enumerate {kind}"):
        check_space(space, "grid")
    assert check_space(space, "random") == check_space(space, "optuna") == space


@pytest.mark.parametrize("name", [name for name in experiment_names() if name.startswith("sweeps/")])
def test_every_published_figure_belongs_to_one_trial_of_its_sweep(name):
    values = load_values(name)
    config = experiment_of(values).sweep
    trials = make_plan(values).trials
    assert len({experiment_of(values, trial).hash for trial in trials}) == len(trials)
    for cell in config.published:
        wanted = {}
        for key, value in cell["at"].items():  # an axis of choices is named by its choice
            axis = config.space.get(key)
            wanted |= axis["choices"][value] if isinstance(axis, dict) and "choices" in axis else {key: value}
        assert sum(all(trial.get(key) == value for key, value in wanted.items()) for trial in trials) == 1
