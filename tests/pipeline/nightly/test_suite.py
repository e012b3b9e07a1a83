"""Suites: those that are shipped, what a person may get wrong in one, and what makes two nights' figures comparable."""

import math
from dataclasses import replace

import pytest
import yaml

from pipeline.cli import main
from pipeline.experiment_files import experiment_names
from pipeline.nightly.suite import (
    AccuracyEntry,
    ParityEntry,
    Suite,
    entry_hash,
    expected_range,
    experiment_for,
    metric_names,
    read_suite,
    suite_names,
    suite_values,
)
from tood.config import build
from tood.errors import ConfigError

ACCURACY = {"name": "digits", "experiment": "demo"}


def suite(**values) -> Suite:
    return build(Suite, {"name": "s", **values})


@pytest.mark.parametrize("name", suite_names())
def test_a_shipped_suite_is_whole_and_reads_back_from_its_values(name, tmp_path):
    found = read_suite(name)
    assert found.name == name
    assert found.description
    for entry in (*found.speed, *found.accuracy):
        experiment_for(found, entry, ["ray.gpus_per_worker=0"])
    file = tmp_path / f"{name}.yaml"
    file.write_text(yaml.safe_dump(suite_values(found)))
    assert read_suite(str(file)) == found


def test_suites_are_no_experiments():
    assert {"demo", "coco"} <= set(suite_names())
    assert not any("suites" in name for name in experiment_names())


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "a suite measures something"),
        ({"accurcy": [ACCURACY]}, "accurcy: unknown key; did you mean 'accuracy'?"),
        ({"accuracy": [{"experiment": "demo"}]}, "accuracy[0]: name: ''"),
        ({"accuracy": [ACCURACY | {"seed": [1]}]}, "accuracy[0].seed: unknown key; did you mean 'seeds'?"),
        ({"accuracy": [ACCURACY | {"seeds": [1, 1]}]}, "seeds: [1, 1] are not different numbers"),
        ({"accuracy": [ACCURACY | {"metrics": ["val/APP"]}]}, "metrics: 'val/APP' is not measured; did you mean"),
        ({"accuracy": [ACCURACY | {"metrics": []}]}, "metrics: the list is empty"),
        ({"accuracy": [ACCURACY | {"expected": {"val/AP": [0.4, 0.3]}}]}, "expected.val/AP: [0.4, 0.3] is no range"),
        ({"accuracy": [ACCURACY | {"expected": {"val/AP": 0.4}}]}, "expected.val/AP: 0.4 is no range"),
        ({"accuracy": [ACCURACY | {"expected": {"val/AP50": [0, 1]}}]}, "expected.val/AP50: the entry does not measure it"),
        ({"accuracy": [ACCURACY | {"model": "a/b"}]}, "model: 'a/b'"),
        ({"speed": [ACCURACY | {"measures": ["stepp"]}]}, "measures: 'stepp' is not measured; did you mean 'step'?"),
        ({"speed": [ACCURACY], "accuracy": [ACCURACY]}, "two entries are called 'digits'"),
        ({"parity": [{"name": "p", "annotations": "x"}]}, "annotations: they and detections belong together"),
    ],
)
def test_a_mistake_is_named(values, said):
    with pytest.raises(ConfigError) as error:
        suite(**values)
    assert said in str(error.value)


def test_metrics_have_the_entrys_name_and_its_expected_range():
    entry = suite(accuracy=[ACCURACY | {"metrics": ["val/AP", "val/AP50"], "expected": {"val/AP": [0.4, None]}}]).accuracy[0]
    assert metric_names(entry) == ["digits/val/AP", "digits/val/AP50"]
    assert expected_range(entry, "digits/val/AP") == (0.4, math.inf)
    assert expected_range(entry, "digits/val/AP50") == (-math.inf, math.inf)
    assert expected_range(ParityEntry("p"), "p/largest_difference") == (0.0, 1e-9)


def test_figures_are_comparable_where_nothing_differs_that_changes_results():
    made = suite(accuracy=[ACCURACY])
    entry = made.accuracy[0]

    def found(entry: AccuracyEntry, *settings: str) -> str:
        return entry_hash(entry, experiment_for(made, entry, settings))

    same = found(entry)
    assert found(entry, "data.root=/elsewhere", "tracking.uri=http://x") == same
    assert found(replace(entry, noise=0.5, expected={"val/AP": [0, 1]}, model="m", metrics=("val/AP50",))) == same
    assert found(entry, "train.epochs=3") != same
    assert found(replace(entry, seeds=(0, 1))) != same


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("nightly dmo", "suite 'dmo': neither shipped nor a .yaml file; did you mean 'demo'?"),
        ("nightly none.yaml", "none.yaml: no such file"),
        ("nightly demo --night yesterday", "'yesterday' is not a date such as 2026-11-21"),
        ("nightly demo --measure digit", "suite demo has no entry 'digit'; did you mean 'digits'?"),
        ("nightly demo --measure cost/loading", "entry cost does not measure 'cost/loading'; did you mean 'cost/loader'?"),
        ("nightly demo train.epoch=3 output={out}", "train.epoch: unknown key; did you mean 'epochs'?"),
    ],
)
def test_the_command_refuses_with_a_line(command, said, tmp_path, capsys):
    assert main(command.format(out=tmp_path / "out").split()) == 2
    assert said in capsys.readouterr().err
