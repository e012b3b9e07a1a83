"""What a sweep costs beside its training, and Ray Train beside an epoch, is measured on real ones."""

import json
import os

import pytest

from pipeline.cli import main

pytestmark = pytest.mark.system


def test_each_part_of_a_sweep_is_timed(capfd):
    assert main(["bench", "sweep", "--quick", "--json"]) == 0
    lines = capfd.readouterr().out.splitlines()
    found = {growth["what"]: growth for growth in json.loads(lines[-1])["growth"]}
    assert list(found) == ["sweep plan", "sweep track", "sweep train", "sweep tune", "sweep, whole"]
    assert all(growth["sizes"] == [1, 2] for growth in found.values())
    parts = [growth["seconds"] for name, growth in found.items() if name != "sweep, whole"]
    assert found["sweep, whole"]["seconds"] == pytest.approx([sum(own) for own in zip(*parts, strict=True)])
    assert found["sweep train"]["seconds"][1] > found["sweep train"]["seconds"][0] > 0.1


def test_more_workers_are_simulated_from_what_each_does(capfd):
    assert main(["bench", "workers", "--quick", "--json"]) == 0
    found = {growth["what"]: growth for growth in json.loads(capfd.readouterr().out.splitlines()[-1])["growth"]}
    assert list(found) == ["run's start", "run's step", "run's report"]
    assert all(growth["sizes"] == [1, 2] for growth in found.values())
    alone, by_two = found["run's step"]["seconds"]
    assert alone == pytest.approx(0.1, abs=0.05)  # who is alone computes, and has nobody to exchange gradients with
    assert 0.1 <= alone < by_two


def test_an_epoch_under_ray_is_compared_with_a_plain_one(capfd):
    assert main(["bench", "ray", "--quick", "--json"]) == 0
    epoch, report = json.loads(capfd.readouterr().out.splitlines()[-1])["ratios"]
    assert epoch["low"] <= epoch["ratio"] <= epoch["high"]
    assert epoch["calls"] == 1
    assert report["seconds_of"] == float(os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"])
    assert 0 < report["seconds"] < 3 * report["seconds_of"]
