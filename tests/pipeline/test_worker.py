"""What a worker stores, reports and goes on from, with Ray played by a stand-in: real training, a real store, no cluster."""

import shutil
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from ray import train as ray_train

from pipeline import worker
from pipeline.config import experiment_of
from pipeline.experiment_files import load_values
from pipeline.generations import hand_over
from pipeline.population import Birth
from pipeline.storage.checkpoints import fetch, read_manifest
from pipeline.storage.opening import open_store
from pipeline.storage.pointers import latest_of
from pipeline.trials import progress_of
from pipeline.worker import Address, Progress
from tests.tiny import write_dataset, write_experiment
from tests.tood.test_resume import stop_after
from tests.tood.tiny_recipe import files
from tood import training
from tood.checkpoint import load_checkpoint
from tood.errors import ConfigError, StoppedError
from tood.optimisation import optimizer_tensors


class Ray:
    """Ray Train as one worker sees it: keeps the last report's checkpoint; `silent` ones are lost on their way, as in a kill."""

    Checkpoint, CheckpointUploadMode = ray_train.Checkpoint, ray_train.CheckpointUploadMode

    def __init__(self, folder: Path):
        self.folder, self.checkpoint, self.results, self.silent = folder, None, [], False

    def get_checkpoint(self):
        return self.checkpoint

    def get_context(self):
        return SimpleNamespace(get_storage=lambda: self)

    def persist_current_checkpoint(self, checkpoint, name):
        return ray_train.Checkpoint(shutil.copytree(checkpoint.path, self.folder / name, dirs_exist_ok=True))

    def report(self, metrics, checkpoint=None, checkpoint_dir_name="", checkpoint_upload_mode=None, checkpoint_upload_fn=None):
        if checkpoint is None:
            self.results.append(metrics)
            return
        assert checkpoint_upload_mode is self.CheckpointUploadMode.ASYNC
        persisted = checkpoint_upload_fn(checkpoint, checkpoint_dir_name)
        shutil.rmtree(checkpoint.path)
        if not self.silent:
            self.checkpoint = persisted
            self.results.append(metrics)


@pytest.fixture
def lab(tmp_path, monkeypatch):
    write_dataset(tmp_path / "data", train=8, val=3)
    file = write_experiment(tmp_path)
    settings = ["train.epochs=2", "train.milestones=[1]", "train.evaluate_every=2", "train.log_every=1"]
    experiment = experiment_of(load_values(str(file), settings))
    tracked = SimpleNamespace(metrics=lambda *a, **k: None, deliver=lambda: None)
    for name in ("dataset", "description", "figure", "image", "picture", "document", "file"):
        setattr(tracked, name, lambda *a, **k: None)
    monkeypatch.setattr(worker.Run, "attach", lambda *a: tracked)
    monkeypatch.setattr(worker.collective, "broadcast_from_rank_zero", lambda value: value)
    monkeypatch.setattr(worker, "get_device", lambda: torch.device("cpu"))
    for name in ("listen", "confirm"):
        monkeypatch.setattr(worker, name, lambda run: None)
    yield SimpleNamespace(experiment=experiment, folder=tmp_path, patch=monkeypatch, ray=Ray(tmp_path / "ray"))
    shutil.rmtree(tmp_path)


def work(lab, run: str, asked: int | None = None, epochs: int | None = None, handed_over: str = "") -> None:
    """One life of a worker; it is told to stop at the so manieth question."""
    lab.patch.setattr(worker, "ray_train", lab.ray)
    lab.patch.setattr(worker, "told_to_stop", stop_after(asked) if asked else lambda: False)
    address = Address(run, str(lab.folder / "store"), "", "", "")
    scratch = lab.folder / "scratch"
    scratch.mkdir()
    life = worker.Worker(lab.experiment, address, "val/AP", 0, scratch)
    try:
        life.run(epochs, handed_over)
        assert [path.name for path in scratch.iterdir() if path.name not in ("resume", "best")] == []
    finally:
        life.uploads.close()
        shutil.rmtree(scratch)


def stored(lab, run: str) -> list[str]:
    store = open_store(str(lab.folder / "store"))
    return sorted({key.split("/")[2] for key in store.list(f"checkpoints/{run}")})


def test_a_worker_goes_on_from_the_stores_newest_checkpoint_and_tells_ray_what_it_has_not_heard(lab):
    work(lab, "through")
    assert [(r["epoch"], r["last"]) for r in lab.ray.results] == [(1, False), (2, True)]
    store = open_store(str(lab.folder / "store"))
    through = fetch(store, latest_of(store, "through").prefix, lab.folder / "fetched/through")

    lab.ray = Ray(lab.folder / "ray_again")
    with pytest.raises(StoppedError):
        work(lab, "run", asked=1)
    assert [name[:8] for name in stored(lab, "run")] == ["00000001", "latest.j"]
    lab.ray.silent = True  # the kill comes after the epoch was stored and before Ray heard of it
    with pytest.raises(StoppedError):
        work(lab, "run", asked=2)
    assert lab.ray.checkpoint is None
    newest = latest_of(store, "run")
    assert (newest.step, newest.note["epoch"], newest.note["step"]) == (3, 1, 2)
    assert [name[:8] for name in stored(lab, "run")] == ["00000002", "00000003", "latest.j"]

    lab.ray.silent = False
    work(lab, "run")
    assert [(r["epoch"], r["last"]) for r in lab.ray.results] == [(1, False), (2, True)]
    newest = latest_of(store, "run")
    assert files(fetch(store, newest.prefix, lab.folder / "fetched/run")) == files(through)
    assert newest.note == asdict(worker.read_pointer(lab.ray.checkpoint))
    progress = Progress(**newest.note)
    assert (progress.epoch, progress.step, progress.last, progress.prefix) == (2, 4, True, newest.prefix)

    work(lab, "run")  # resumed by a sweep whose saved state does not know that it had ended
    assert lab.ray.results[2:] == [progress.result()]
    assert latest_of(store, "run") == newest
    assert stored(lab, "run") == [newest.prefix.rpartition("/")[2], "latest.json"]


def test_a_checkpoint_within_an_epoch_that_cannot_be_stored_ends_no_run(lab, capsys):
    upload = worker.upload_checkpoint

    def refuse(store, folder, *arguments):
        if folder.name.startswith("step_"):
            raise worker.StorageError("the store is full")
        return upload(store, folder, *arguments)

    lab.patch.setattr(worker, "upload_checkpoint", refuse)
    once = replace(lab.experiment.train, epochs=1, milestones=(), checkpoint_minutes=1e-9)
    lab.experiment = replace(lab.experiment, train=once)
    work(lab, "run")
    assert [r["epoch"] for r in lab.ray.results] == [1]
    said = capsys.readouterr().out.splitlines()
    assert "checkpoint of step 1 is not stored: the store is full" in said


def test_a_child_begins_with_its_parents_bits_and_with_no_other_checkpoint(lab, monkeypatch):
    """What a population hands over: weights, momentum, step; the learning rate is the child's own."""
    seen = []
    real = training.go_on

    def go_on(run, *arguments):
        real(run, *arguments)
        tensors = optimizer_tensors(run.optimizer, run.model)
        seen.append((run.step, {k: v.clone() for k, v in (run.model.state_dict() | tensors).items()}))

    monkeypatch.setattr(training, "go_on", go_on)
    work(lab, "parent", epochs=1)
    store = open_store(str(lab.folder / "store"))
    given = progress_of(store, "parent")
    parent = load_checkpoint(fetch(store, given.prefix, lab.folder / "fetched"))
    digest = read_manifest(store, given.prefix).digest
    birth = Birth("1", {}, "", "0", given.epoch, given.step, given.prefix, digest, {"val/AP": 0.125}, {})
    assert hand_over(store, birth, "child")

    lab.ray = Ray(lab.folder / "ray_child")
    lab.experiment = replace(lab.experiment, train=replace(lab.experiment.train, lr=0.02))
    for other in ("", "0" * 64):
        with pytest.raises(ConfigError, match="was written by another configuration"):
            work(lab, "child", handed_over=other)
    lab.ray = Ray(lab.folder / "ray_child")
    with pytest.raises(StoppedError):
        work(lab, "child", asked=1, handed_over=digest)
    assert [(r["epoch"], r["val/AP"]) for r in lab.ray.results] == [(1, 0.125)]
    ((step, tensors),) = seen
    assert step == given.step == 2
    expected = parent.weights | {k: v for k, v in parent.tensors.items() if k.startswith("optimizer.")}
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in tensors.items())

    work(lab, "child")  # what it goes on from now is its own, and needs no leave
    own = load_checkpoint(fetch(store, latest_of(store, "child").prefix, lab.folder / "fetched/child"))
    assert own.info.config_hash == lab.experiment.hash != parent.info.config_hash
    assert progress_of(store, "child").best_epoch == 2
    assert given.prefix.rpartition("/")[2] not in stored(lab, "child")  # superseded, and its parent has its own
    lab.experiment = replace(lab.experiment, train=replace(lab.experiment.train, lr=0.01))
    with pytest.raises(ConfigError, match="was written by another configuration"):
        work(lab, "child", handed_over=digest)
