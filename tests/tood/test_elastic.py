"""Another number of ranks goes on where the last one stopped, within an epoch: the same global batches, each image once."""

import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.tood.tiny_recipe import recipe, weights
from tood import training
from tood.config import to_dict
from tood.data.coco import read_split
from tood.data.loaders import TrainLoader
from tood.errors import ConfigError, StoppedError
from tood.recipe import read_recipe
from tood.run_state import newest_checkpoint
from tood.training import train

RANK = """
import sys, time
from pathlib import Path
import torch.distributed as dist
from tests.tood.test_elastic import life

rank, folder = int(sys.argv[1]), Path(sys.argv[2])
for asked in (1, 0):
    while not (folder / f"begin_{asked}").exists():
        time.sleep(0.05)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting_{asked}", rank=rank, world_size=2)
    life(folder, rank, asked)
    dist.destroy_process_group()
    (folder / f"done_{asked}_{rank}").touch()
"""


def life(folder: Path, rank: int, asked: int) -> None:
    """Train on from the newest checkpoint, until told to stop at the so manieth question; 0: to the end. Notes the images."""
    real = TrainLoader.epoch

    def noted(self, epoch, start_batch=0):
        for i, batch in enumerate(real(self, epoch, start_batch), start=start_batch):
            with (folder / f"images_{asked}_{rank}").open("a") as file:
                file.write(json.dumps([epoch, i, batch.image_ids.tolist()]) + "\n")
            yield batch

    TrainLoader.epoch = noted
    questions = itertools.count(1)
    try:
        train(
            read_recipe(folder / "recipe.json"),
            folder / "run",
            resume=newest_checkpoint(folder / "run"),
            told_to_stop=lambda: rank == 0 and asked > 0 and next(questions) >= asked,
        )
    except StoppedError:
        assert asked
    finally:
        TrainLoader.epoch = real


def test_two_ranks_then_one_then_two_see_every_image_of_an_epoch_once(data, folder):
    """8 images, 2 a step over all ranks: an epoch's 4 steps are shared by two ranks, then done by one, then shared again."""
    config = recipe(data, norm_eval=True, epochs=2, milestones=[1], batch_size=2, evaluate_every=2)
    (folder / "recipe.json").write_text(json.dumps(to_dict(config)))
    (folder / "run").mkdir()
    ranks = [subprocess.Popen([sys.executable, "-c", RANK, str(rank), str(folder)]) for rank in (0, 1)]
    try:
        (folder / "begin_1").touch()
        _wait(ranks, lambda: all((folder / f"done_1_{rank}").exists() for rank in (0, 1)))
        assert newest_checkpoint(folder / "run").name == "step_00000002"  # the first question was heard a step later, by both
        life(folder, 0, asked=3)
        assert newest_checkpoint(folder / "run").name == "step_00000005"
        (folder / "begin_0").touch()
        assert [rank.wait(300) for rank in ranks] == [0, 0]
    finally:
        for rank in ranks:
            rank.kill()
    loader = TrainLoader(read_split(config.data, "train"), config.data, batch_size=2, seed=0)
    for epoch in (0, 1):
        whole = [batch.image_ids.tolist() for batch in loader.epoch(epoch)]
        assert sorted(itertools.chain(*whole)) == list(range(1, 9))
        assert [images for at, _, images in _seen(folder) if at == epoch] == whole

    train(config, folder / "alone")
    alone, changing = weights(folder / "alone", epoch=2), weights(folder / "run", epoch=2)
    for name, tensor in alone.items():  # a sum over ranks rounds otherwise
        torch.testing.assert_close(changing[name], tensor, rtol=1e-3, atol=1e-4, msg=lambda m, name=name: f"{name}: {m}")


def _wait(ranks: list[subprocess.Popen], until: Callable[[], bool]) -> None:
    end = time.monotonic() + 300
    while not until():
        assert all(rank.poll() is None for rank in ranks)
        assert time.monotonic() < end
        time.sleep(0.05)


def _seen(folder: Path) -> list[tuple[int, int, list[int]]]:
    """(epoch, batch, images of all ranks side by side) as they were trained on, which are those drawn before a stop was heard."""
    steps: dict[tuple[int, int], list[int]] = {}
    for asked, world in ((1, 2), (3, 1), (0, 2)):
        rows = [
            [json.loads(line) for line in (folder / f"images_{asked}_{rank}").read_text().splitlines()] for rank in range(world)
        ]
        for parts in zip(*rows, strict=True):
            place = tuple(parts[0][:2])
            assert place not in steps
            steps[place] = list(itertools.chain(*(images for *_, images in parts)))
    return [(*place, images) for place, images in sorted(steps.items())]


def test_an_epochs_global_batches_are_the_same_for_any_number_of_ranks(data):
    config = recipe(data).data
    split = read_split(config, "train")

    def side_by_side(world: int, start: int) -> list[list[int]]:
        loaders = [TrainLoader(split, config, batch_size=4 // world, seed=3, rank=rank, world=world) for rank in range(world)]
        parts = [[batch.image_ids.tolist() for batch in loader.epoch(1, start)] for loader in loaders]
        return [list(itertools.chain(*rows)) for rows in zip(*parts, strict=True)]

    whole = side_by_side(1, 0)
    for world in (2, 4):
        assert side_by_side(world, 0) == whole
        assert side_by_side(world, 1) == whole[1:]


def test_a_global_batch_that_cannot_be_shared_evenly_is_refused(data, folder, monkeypatch):
    monkeypatch.setattr(training, "place", lambda: (0, 3))
    with pytest.raises(ConfigError, match=r"train\.batch_size: 4 images a step \(accumulate=1\) cannot be shared evenly by 3"):
        train(recipe(data), folder / "run")
