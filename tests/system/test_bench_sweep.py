"""What a sweep costs beside its training is measured on real sweeps, of trials that learn nothing."""

import json

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
