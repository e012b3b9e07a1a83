"""How many images of a step fit into memory at once: real steps in processes of their own, under a limit."""

import json
import math

import pytest

from pipeline.cli import main
from tests.tiny import write_experiment
from tood.bench import fit as module
from tood.bench.fit import EXHAUSTED, fit, largest
from tood.config import DataConfig, build
from tood.errors import ToodError
from tood.recipe import Recipe

GIB = 2**30


def recipe(**train) -> Recipe:
    values = {
        "data": {"long_side": 256, "short_side": 192, "short_side_min": 192},
        "model": {"backbone": {"depth": 18}, "channels": 32, "groups": 4, "layers": 2},
        "train": train,
        "init": "none",
    }
    return build(Recipe, values)


def test_all_at_once_where_there_is_room_and_less_where_there_is_not(monkeypatch):
    said = []
    roomy = fit(recipe(batch_size=16), classes=3, say=said.append)
    assert (roomy.accumulate, list(roomy.peaks)) == (1, [16])
    assert said == [f"16 images at once: {roomy.peaks[16]:.2f} GiB"]
    one = fit(recipe(batch_size=1), classes=3).peaks[1]
    between = one + 0.6 * (roomy.peaks[16] - one)  # what a process holds differs from one to the next by a tenth of a GiB
    monkeypatch.setattr(module, "available", lambda: int(between / module.SHARE * GIB))
    found = fit(recipe(batch_size=16), classes=3, say=said.append)
    assert found.accumulate in (2, 4, 8)
    assert list(found.peaks) == [16, 8, 4, 2][: found.accumulate.bit_length()]
    *refused, fits = found.peaks.values()
    assert fits <= found.memory < min(held or math.inf for held in refused)


@pytest.mark.parametrize("share", [0.1, 0.001])
def test_where_no_image_fits_it_says_what_else_to_set(monkeypatch, capsys, tmp_path, share):
    monkeypatch.setattr(module, "available", lambda: int(share * GIB))
    file = write_experiment(tmp_path)
    assert main(["fit", str(file), "--classes", "3", "train.batch_size=2"]) == 0
    said = capsys.readouterr()
    assert said.err.splitlines() == ["2 images at once: more than there is", "1 images at once: more than there is"]
    assert "set train.checkpointing=true or train.precision=bf16 or smaller data.long_side" in said.out


def test_workers_share_a_step(capsys, tmp_path):
    file = write_experiment(tmp_path)
    assert main(["fit", str(file), "--classes", "3", "ray.workers=2", "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)["peaks"]) == ["2"]  # of 4 images a step


def test_other_failures_are_told(capsys):
    assert module.main(["gone.json"]) == 2
    with pytest.raises(ToodError, match=r"a step of 2 images failed: .*negative dimension"):
        fit(recipe(batch_size=2), classes=-1)


def test_the_largest_batch_has_images_that_lie_and_that_stand():
    assert largest(DataConfig(), 1) == (800, 1344)
    assert largest(DataConfig(), 2) == (1344, 1344)
    assert largest(DataConfig(buckets=2), 2) == (1344, 1344)
    assert EXHAUSTED not in (0, 1, 2)
