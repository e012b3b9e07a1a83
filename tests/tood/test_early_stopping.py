"""A run ends when its figure has not risen for so many epochs: at the same epoch after a resume, and on all ranks."""

import hashlib
import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tiny import write_dataset
from tests.tood.tiny_recipe import recipe
from tood import training
from tood.checkpoint import load_checkpoint
from tood.config import EarlyStoppingConfig, build, to_dict
from tood.early_stopping import Standing, after_epoch, reason
from tood.errors import ConfigError
from tood.evaluation import Figures
from tood.recipe import Recipe
from tood.training import train

FIGURES = {1: 0.30, 2: 0.40, 3: 0.40, 4: 0.395, 5: 0.9}  # by epoch; with a patience of 2 a run ends after the fourth


def last_epoch(figures: list[float | None], **options) -> int | None:
    config, standing = EarlyStoppingConfig(**options), Standing()
    for epoch, figure in enumerate(figures, start=1):
        standing = after_epoch(standing, epoch, figure, config)
        if standing.ended:
            return epoch
    return None


@pytest.mark.parametrize(
    ("figures", "options", "last"),
    [
        ([0.1, 0.2, 0.3], {"patience": 1}, None),
        ([0.1, 0.1], {"patience": 1}, 2),  # as good is not better
        ([0.1, 0.2, 0.19, 0.18, 0.17], {"patience": 2}, 4),
        ([0.1, 0.2, 0.19, 0.21, 0.2], {"patience": 2}, None),
        ([0.1, 0.14, 0.18], {"patience": 1, "min_delta": 0.05}, 2),
        ([0.1, 0.14, 0.18], {"patience": 2, "min_delta": 0.05}, None),  # small steps add up
        ([None, None, 0.1, None, 0.1], {"patience": 2}, 5),  # what is undefined says nothing
        ([0.0, 0.0, 0.0], {"patience": 2}, 3),
    ],
)
def test_the_epoch_at_which_a_run_ends(figures, options, last):
    assert last_epoch(figures, **options) == last


@given(st.lists(st.integers(0, 9).map(lambda v: v / 10), max_size=12), st.integers(1, 4), st.sampled_from([0.0, 0.15]))
def test_it_is_the_first_with_no_better_figure_in_all_of_its_patience(figures, patience, min_delta):
    expected, best, since = None, -math.inf, 0
    for epoch, figure in enumerate(figures, start=1):
        best, since = (figure, 0) if figure > best + min_delta else (best, since + 1)
        if since == patience:
            expected = epoch
            break
    assert last_epoch(figures, patience=patience, min_delta=min_delta) == expected


def test_the_reason_names_the_best_epoch_and_what_was_asked_for():
    standing = Standing(0.41234, 3, True)
    assert reason(standing, "val/AP", EarlyStoppingConfig(2)) == "early stop: val/AP 0.4123 of epoch 3 was not exceeded in 2 epochs"
    assert "not exceeded by more than 0.01 in 2" in reason(standing, "val/AP", EarlyStoppingConfig(2, 0.01))


# -- in training -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("squares") / "data", train=4, val=1)


@pytest.fixture(autouse=True)
def written_figures(monkeypatch):
    """Evaluations that say what FIGURES holds: a fresh detector's own would be 0 and 0 again."""
    original, epochs = training._train_epoch, []

    def train_epoch(run, model, loader, epoch, *rest):
        epochs.append(epoch + 1)
        original(run, model, loader, epoch, *rest)

    def figures(path, found):
        return Figures({"AP": FIGURES[epochs[-1]], "AP50": epochs[-1] / 10}, {}, np.zeros(0))

    monkeypatch.setattr(training, "_train_epoch", train_epoch)
    monkeypatch.setattr(training, "coco_figures", figures)


def stopping(data: Path, **options) -> Recipe:
    return recipe(data, epochs=5, early_stopping={"patience": 2}, **options)


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def digest(checkpoint: Path) -> str:
    return hashlib.sha256((checkpoint / "manifest.json").read_bytes()).hexdigest()


def test_a_run_ends_with_its_patience_and_at_the_same_epoch_after_a_resume(data, folder):
    reports = []
    train(stopping(data), folder / "through", on_epoch=reports.append)
    assert checkpoints(folder / "through") == [f"epoch_000{e}" for e in (1, 2, 3, 4)]
    assert [r.last for r in reports] == [False, False, False, True]
    assert [bool(r.ends_early) for r in reports] == [False, False, False, True]
    assert reports[-1].ends_early == "early stop: val/AP 0.4000 of epoch 2 was not exceeded in 2 epochs"
    assert load_checkpoint(folder / "through/epoch_0004").state["early_stopping"] == {"best": 0.4, "best_epoch": 2, "ended": True}
    for done in (1, 3):
        train(stopping(data), folder / f"from{done}", resume=folder / f"through/epoch_000{done}")
        assert checkpoints(folder / f"from{done}") == [f"epoch_000{e}" for e in range(done + 1, 5)]
        assert digest(folder / f"from{done}/epoch_0004") == digest(folder / "through/epoch_0004")
    more = []
    train(stopping(data), folder / "again", resume=folder / "through/epoch_0004", on_epoch=more.append)
    assert more == []
    assert not (folder / "again").exists()


def test_it_goes_by_the_metric_that_it_is_given_and_by_the_epochs_that_are_evaluated(data, folder):
    train(stopping(data), folder / "rising", metric="val/AP50")
    assert len(checkpoints(folder / "rising")) == 5
    train(stopping(data, evaluate_every=2), folder / "every")  # 2: 0.4, 4: 0.395 and two epochs later
    assert len(checkpoints(folder / "every")) == 4


def test_without_it_a_run_and_its_checkpoint_say_nothing_of_it(data, folder):
    config = stopping(data)
    train(replace(config, train=replace(config.train, early_stopping=None)), folder / "run")
    assert len(checkpoints(folder / "run")) == 5
    assert load_checkpoint(folder / "run/epoch_0005").state.keys() == {"epoch", "step", "sampler"}


RANK = """
import json, sys
from pathlib import Path
import numpy as np
import torch.distributed as dist
from tood import training
from tood.evaluation import Figures
from tood.recipe import read_recipe

rank, folder = int(sys.argv[1]), Path(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
figures = iter([0.3, 0.2, 0.1, 0.9])
training.coco_figures = lambda path, found: Figures({"AP": next(figures)}, {}, np.zeros(0))
reports = []
training.train(read_recipe(folder / "recipe.json"), folder / "run", on_epoch=reports.append)
(folder / f"rank{rank}.json").write_text(json.dumps([[r.epoch, r.last, r.ends_early] for r in reports]))
dist.destroy_process_group()
"""


def test_all_ranks_end_together(data, folder):
    """Only the first rank has figures; the other would wait for ever, or train on alone."""
    (folder / "recipe.json").write_text(json.dumps(to_dict(stopping(data, norm_eval=True))))
    ranks = [subprocess.Popen([sys.executable, "-c", RANK, str(rank), str(folder)]) for rank in (0, 1)]
    try:
        assert [rank.wait(200) for rank in ranks] == [0, 0]
    finally:
        for rank in ranks:
            rank.kill()
    first, second = (json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert [report[:2] for report in first] == [[0, False], [1, False], [2, True]]


@pytest.mark.parametrize(
    ("train_options", "message"),
    [
        ({"epochs": 4, "early_stopping": {"patience": 4}}, r"train\.early_stopping\.patience: 4 epochs .* end of train\.epochs=4"),
        ({"evaluate_every": 3, "early_stopping": {"patience": 2}}, r"patience: 2 is less than the train\.evaluate_every=3"),
        ({"early_stopping": {"patience": 0}}, r"train\.early_stopping\.patience: 0 is not between 1 and"),
        ({"early_stopping": {"min_delta": -0.1}}, r"train\.early_stopping\.min_delta: -0\.1 is not between 0 and 1"),
        ({"early_stopping": {"metric": "AP"}}, r"train\.early_stopping\.metric: unknown key"),
        ({"early_stopping": True}, r"train\.early_stopping: expected a mapping"),
    ],
)
def test_settings_that_make_no_sense_are_refused_with_the_reason(train_options, message):
    with pytest.raises(ConfigError, match=message):
        build(Recipe, {"train": train_options})
