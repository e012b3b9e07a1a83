"""On from any step: a checkpoint within an epoch leads to the same weights and the same reports as a run that nobody stopped."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from tests.tiny import write_dataset
from tests.tood.tiny_recipe import files, recipe
from tood import training
from tood.checkpoint import load_checkpoint
from tood.config import to_dict
from tood.data.coco import read_split
from tood.data.loaders import TrainLoader
from tood.errors import DataError, StoppedError
from tood.run_state import newest_checkpoint, tidy
from tood.training import train

OPTIONS = {"epochs": 2, "milestones": [1], "batch_size": 2, "log_every": 3, "evaluate_every": 2}  # 4 steps an epoch


def rows(reports: list) -> list[tuple]:
    return [(r.epoch, r.step, {k: v for k, v in r.metrics.items() if k.startswith("train/")}) for r in reports]


def stop_after(asked: int) -> Callable[[], bool]:
    """True at the so manieth question: one comes after each step, and one after each batch of evaluation."""
    countdown = iter([False] * (asked - 1) + [True])
    return lambda: next(countdown)


def test_stopped_at_any_step_and_in_evaluation_it_goes_on_to_the_same_bits_and_the_same_reports(data, folder):
    config, run = recipe(data, ema=0.9, **OPTIONS), folder / "run"
    through, reports = [], []
    train(config, folder / "through", on_step=through.append)
    for asked, name in ((2, "step_00000002"), (2, "step_00000004"), (4, "step_00000008"), (1, "step_00000008")):
        with pytest.raises(StoppedError, match="stopped as told"):
            train(config, run, resume=newest_checkpoint(run), told_to_stop=stop_after(asked), on_step=reports.append)
        assert newest_checkpoint(run).name == name
    train(config, run, resume=newest_checkpoint(run), on_step=reports.append)
    assert newest_checkpoint(run).name == "epoch_0002"  # of the same step as the last, but evaluated
    assert files(run / "epoch_0002") == files(folder / "through/epoch_0002")
    assert rows(reports) == rows(through)
    assert [r.step for r in reports] == [3, 4, 7, 8]

    (run / ".step_00000009.abcd").mkdir()
    tidy(run, newest_checkpoint(run))
    assert sorted(path.name for path in run.iterdir()) == ["epoch_0001", "epoch_0002"]


def test_checkpoints_come_by_time_too_and_each_leads_to_the_same_bits(data, folder):
    options = OPTIONS | {"epochs": 1, "milestones": [], "batch_size": 4, "channels_last": True}
    config = recipe(data, accumulate=2, **options, checkpoint_minutes=1e-9)
    within = []
    train(config, folder / "through", on_checkpoint=within.append)
    assert [(r.epoch, r.step, r.stops) for r in within] == [(0, 1, False), (0, 2, False)]
    seldom = replace(config, train=replace(config.train, checkpoint_minutes=60))
    train(seldom, folder / "on", resume=within[0].checkpoint, on_checkpoint=within.append)
    assert len(within) == 2
    assert files(folder / "on/epoch_0001") == files(folder / "through/epoch_0001")


def test_a_checkpoint_names_its_place_in_the_order_and_other_images_are_refused(data, folder):
    config = recipe(data, **OPTIONS)
    with pytest.raises(StoppedError):
        train(config, folder / "run", told_to_stop=stop_after(2))
    kept = load_checkpoint(folder / "run/step_00000002").state
    split = read_split(config.data, "train")
    loaders = [TrainLoader(split, config.data, batch_size=2 // world, seed=0, world=world) for world in (1, 2)]
    assert {loader.order(0) for loader in loaders} == {kept["sampler"].pop("order")} != {loaders[0].order(1)}
    assert kept == {"epoch": 0, "step": 2, "sampler": {"epoch": 0, "batch": 2}, "summed": 2}
    other = write_dataset(folder / "other", train=9, val=3)
    with pytest.raises(DataError, match="step_00000002: was written 2 batches into epoch 1, whose images came in another order"):
        train(recipe(other, **OPTIONS), folder / "on", resume=folder / "run/step_00000002")


def test_an_epoch_begun_at_a_batch_reads_no_image_of_those_before(data, monkeypatch):
    config = recipe(data).data
    loader = TrainLoader(read_split(config, "train"), config, batch_size=2, seed=0)
    read = []
    real = sys.modules["tood.data.loader_processes"].load_sample
    monkeypatch.setattr("tood.data.loader_processes.load_sample", lambda r, *a, **k: read.append(r.image_id) or real(r, *a, **k))
    whole = [batch.image_ids.tolist() for batch in loader.epoch(5)]
    read.clear()
    assert [batch.image_ids.tolist() for batch in loader.epoch(5, start_batch=3)] == whole[3:]
    assert read == whole[3]
    assert np.unique(whole).size == 8


def test_the_command_killed_and_told_to_stop_goes_on_to_the_same_bits(data, folder, capsys):
    config = recipe(data, **(OPTIONS | {"epochs": 1, "milestones": [], "log_every": 1}))
    train(config, folder / "through")
    (folder / "recipe.json").write_text(json.dumps(to_dict(config)))
    often = replace(config, train=replace(config.train, checkpoint_minutes=1e-9))
    (folder / "often.json").write_text(json.dumps(to_dict(often)))
    run = folder / "run"
    for file, number, code in (("often.json", signal.SIGKILL, -9), ("recipe.json", signal.SIGTERM, 143)):
        command = [sys.executable, "-m", "tood.training", str(folder / file), "--output", str(run), "--resume"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout.readline().startswith("epoch 1/1 step ")
            end = time.monotonic() + 60
            while number == signal.SIGKILL and newest_checkpoint(run) is None and time.monotonic() < end:
                time.sleep(0.01)
            os.kill(process.pid, number)
            said = process.stdout.read().splitlines()
            assert process.wait(60) == code
        finally:
            process.kill()
    assert said[-1].startswith("stopped as told, ")
    assert newest_checkpoint(run).name.startswith("step_")
    assert training.main([str(folder / "recipe.json"), "--output", str(run), "--resume"]) == 0
    assert [path.name for path in run.iterdir()] == ["epoch_0001"]
    assert files(run / "epoch_0001") == files(folder / "through/epoch_0001")
