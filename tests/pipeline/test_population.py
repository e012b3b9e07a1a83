"""Who is replaced by whose child, with which values, and what a population cannot do."""

import random
from collections import Counter

import pytest

from pipeline.config import experiment_of
from pipeline.cost import cost_of
from pipeline.experiment_files import load_values
from pipeline.population import bounds, explore, may_change, select
from pipeline.sweep import make_plan
from tests.tiny import write_experiment
from tood.errors import ConfigError

SPACE = {
    "train.lr": {"loguniform": [0.001, 0.1]},
    "data.flip": {"uniform": [0.0, 0.5]},
    "model.objective.m": {"int": [1, 20]},
    "model.objective.alpha": [0.5, 1.0, 1.5],
    "train.epochs": 4,
}
PARENT = {"train.lr": 0.01, "data.flip": 0.25, "model.objective.m": 10, "model.objective.alpha": 1.0, "train.epochs": 4}


def test_generations_end_every_so_many_epochs_and_the_last_at_the_end():
    assert bounds(8, 2) == [2, 4, 6, 8]
    assert bounds(7, 3) == [3, 6, 7]


def test_the_weakest_are_replaced_by_children_of_the_best():
    scores = {f"{i:03d}": i / 10 for i in range(8)}
    drawn = [select(scores, 0.25, random.Random(seed)) for seed in range(40)]
    assert all(found.keys() == {"000", "001"} for found in drawn)
    assert {parent for found in drawn for parent in found.values()} == {"006", "007"}
    assert select(scores, 0.25, random.Random(5)) == drawn[5]


@pytest.mark.parametrize(
    ("scores", "share", "replaced", "parents"),
    [
        ({"a": 0.1, "b": 0.2}, 0.25, {"a"}, {"b"}),
        ({"a": 0.1, "b": 0.2, "c": 0.3}, 0.5, {"a"}, {"c"}),  # never a parent's own place
        ({"a": 0.1, "b": 0.1}, 0.25, {"a"}, {"b"}),  # a tie
        ({"a": None, "b": 0.2, "c": 0.3, "d": 0.4}, 0.25, {"a"}, {"d"}),  # failed: the weakest of all
        ({"a": None, "b": None, "c": None, "d": 0.4}, 0.25, {"a", "b", "c"}, {"d"}),
        ({"a": 0.4, "b": float("-inf")}, 0.25, {"b"}, {"a"}),
        ({"a": None, "b": None}, 0.25, set(), set()),
    ],
)
def test_small_and_failing_populations(scores, share, replaced, parents):
    found = select(scores, share, random.Random(0))
    assert found.keys() == replaced
    assert set(found.values()) == parents


def test_a_childs_values_are_shifted_within_the_axes():
    generator = random.Random(0)
    children = [explore(SPACE, PARENT, 0, generator) for _ in range(60)]
    assert {round(child["train.lr"], 6) for child in children} == {0.008, 0.012}
    assert {round(child["data.flip"], 6) for child in children} == {0.2, 0.3}
    assert {child["model.objective.m"] for child in children} == {8, 12}
    assert {child["model.objective.alpha"] for child in children} == {0.5, 1.5}
    assert {child["train.epochs"] for child in children} == {4}
    assert all(list(child) == list(PARENT) for child in children)


def test_at_an_end_of_its_axis_a_value_still_changes_and_stays_inside():
    generator = random.Random(0)
    edge = {"train.lr": 0.1, "data.flip": 0.0, "model.objective.m": 1, "model.objective.alpha": 1.5, "train.epochs": 4}
    for _ in range(60):
        child = explore(SPACE, edge, 0, generator)
        assert all(child[key] != edge[key] for key in edge if key != "train.epochs")
        assert 0.001 <= child["train.lr"] <= 0.1
        assert 0 <= child["data.flip"] <= 0.5
        assert 1 <= child["model.objective.m"] <= 20
        assert type(child["model.objective.m"]) is int


def test_some_values_are_drawn_anew():
    generator = random.Random(0)
    drawn = Counter(round(explore(SPACE, PARENT, 0.25, generator)["train.lr"], 6) in (0.008, 0.012) for _ in range(400))
    assert 70 < drawn[False] < 130
    assert explore(SPACE, PARENT, 1, random.Random(3)) == explore(SPACE, PARENT, 1, random.Random(3))


def test_what_may_change_shapes_no_weight_and_counts_no_step():
    assert may_change("model.objective.alpha")
    assert may_change("train.lr")
    refused = ("model.objective.name", "model.objective", "model.tower", "model.layers", "train.batch_size", "train.optimizer")
    assert not any(map(may_change, (*refused, "train.epochs", "train.seed", "train.ema", "data.short_side", "ray.workers")))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    more = "sweep: {search: random, samples: 3, scheduler: pbt, space: {train.lr: {uniform: [0.001, 0.02]}, data.flip: 0.5}}\n"
    return str(write_experiment(tmp_path_factory.mktemp("tiny"), more))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("sweep.search=optuna", "sweep.search: optuna chooses trials by itself"),
        ("sweep.samples=1", "sweep.samples: scheduler=pbt needs a population"),
        ("sweep.exploit_every=4", "sweep.exploit_every: 4 epochs leave train.epochs=4 no second generation"),
        ("train.evaluate_every=2", "sweep.exploit_every: 1 is no multiple of train.evaluate_every=2"),
        ("train.early_stopping.patience=2", "train.early_stopping: scheduler=pbt itself ends"),
        ("sweep.repeats=2", "sweep.repeats: pbt would stop unlucky seeds"),
        ("sweep.space={model.tower: [t_head, parallel]}", "sweep.space.model.tower: under scheduler=pbt a trial goes on from"),
        ("sweep.space={head: {choices: {a: {train.seed: 0}}}}", "sweep.space.head: scheduler=pbt shifts single values"),
        (
            "sweep.space={train.weight_decay: {uniform: [0, 2]}}",
            "sweep.space.train.weight_decay: a child may come to 2, which",
        ),
    ],
)
def test_what_a_population_cannot_do_is_refused_before_anything_starts(tiny, setting, message):
    with pytest.raises(ConfigError, match=message):
        make_plan(load_values(tiny, [setting]))


def test_a_populations_hash_is_that_of_its_experiment_and_its_rules_tell_sweeps_apart(tiny):
    plain = load_values(tiny)
    other = load_values(tiny, ["sweep.exploit_share=0.5"])
    assert experiment_of(plain).hash == experiment_of(other).hash
    names = [make_plan(values).sweep.rsplit("-", 3)[1] for values in (plain, plain, other)]
    assert names[0] == names[1] != names[2]


def test_a_dry_run_says_when_children_are_born(tiny):
    said = cost_of(make_plan(load_values(tiny))).splitlines()
    assert said[-1].startswith("pbt: children of the best take the place of the weakest after epochs 1, 2, 3")
