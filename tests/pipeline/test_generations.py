"""Generations of a population over a real store, with trials that train nothing: births, hand-overs, and going on after a crash."""

import json
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline import generations
from pipeline.config import experiment_of
from pipeline.errors import IntegrityError, StorageError
from pipeline.generations import LEDGER, Ledger, evolve, hand_over
from pipeline.population import CHANGED, LINEAGE, PARENT, PARENT_EPOCH, REPLACES, Birth
from pipeline.storage.checkpoints import read_manifest, remove_checkpoint, remove_others, upload_checkpoint
from pipeline.storage.opening import open_store
from pipeline.storage.pointers import latest_of
from pipeline.train import Progress
from pipeline.trials import Plan, progress_of
from tests.pipeline.checkpoints import make_checkpoint

SPACE = {"train.lr": {"uniform": [0.001, 1.0]}}
SWEEP = {"search": "random", "samples": 4, "scheduler": "pbt", "exploit_every": 2, "resample": 0, "space": SPACE}
VALUES = {"name": "population", "train": {"epochs": 6, "milestones": [5]}, "sweep": SWEEP}
RATES = (0.1, 0.2, 0.3, 0.4)


class Lab:
    """A sweep whose trials reach val/AP = learning rate * epochs, as far as `trouble` lets them."""

    def __init__(self, folder: Path):
        self.folder, self.plan = folder, Plan("sweep", VALUES, [{"train.lr": rate} for rate in RATES])
        self.site = SimpleNamespace(output=folder, store=open_store(str(folder / "store")), tracking="", experiment_id="")
        self.figure = lambda rate, epoch: rate * epoch
        self.said: list[str] = []
        self.ran: list[tuple[int, list[str]]] = []
        self.told: dict[str, dict] = {}
        self.began: dict[str, str] = {}  # trial -> digest of the checkpoint that it found
        self.trouble: dict[str, str] = {}  # "trial@epoch": what ends it there; "" for a driver that is killed
        (folder / "sweep").mkdir()

    def tune(self, plan, experiment, site, gpus, at_once, table, lives, left):
        self.ran.append((lives[0]["told"]["stop_after"], [life["id"] for life in lives]))
        return [self.train(life["id"], life["trial"]["train.lr"], life["told"]) for life in lives]

    def train(self, name: str, rate: float, told: dict) -> SimpleNamespace:
        run, error, store = f"sweep-{name}", None, self.site.store
        if newest := latest_of(store, run):
            self.began.setdefault(name, read_manifest(store, newest.prefix).digest)
        self.told[name] = told
        for epoch in range(progress_of(store, run).epoch + 1, told["stop_after"] + 1):
            if (said := self.trouble.get(f"{name}@{epoch}")) is not None:
                error = RuntimeError(said) if said else None
                break
            before = progress_of(store, run)
            folder = make_checkpoint(self.folder / "made" / f"{name}-{epoch}-{len(self.ran)}", step=10 * epoch, seed=int(name))
            metrics = {"val/AP": self.figure(rate, epoch), "perf/epoch_seconds": 1.0}
            report = SimpleNamespace(epoch=epoch - 1, step=10 * epoch, metrics=metrics, last=epoch == 6)
            prefix = generations.prefix_of(folder, run)
            upload_checkpoint(store, folder, run, asdict(before.advance(report, prefix, metrics["val/AP"])))
            if before.prefix and before.prefix != before.best_prefix:
                remove_checkpoint(store, before.prefix)
        metrics = {"time_total_s": 5.0}
        return SimpleNamespace(config={"life": {"id": name}}, metrics=metrics, error=error)

    def evolve(self) -> dict[str, tuple]:
        """Name -> (values, what was reached, error) as `outcome` is told of them."""
        told = evolve(self.plan, experiment_of(self.plan.values), self.site, 0, 1, None, self.said.append)
        return {name: (values["train.lr"], reached, error) for name, values, reached, error in told}

    def outcome(self, plan, site, name, values, reached, error, may_go_on):
        if not may_go_on:
            remove_others(self.site.store, f"sweep-{name}", {reached.get("best_prefix", "")})
        return name, values, reached, error

    @property
    def births(self) -> list[Birth]:
        file = self.folder / "sweep" / LEDGER
        return [Birth(**birth) for generation in json.loads(file.read_text()) for birth in generation["births"]]


@pytest.fixture
def lab(tmp_path, monkeypatch):
    lab = Lab(tmp_path)
    monkeypatch.setattr(generations, "_tune", lab.tune)
    monkeypatch.setattr(generations, "outcome", lab.outcome)
    found = lambda tracking, experiment_id, identity: SimpleNamespace(run_id=f"run of {identity}")  # noqa: E731
    monkeypatch.setattr(generations.Run, "find", found)
    return lab


def test_children_of_the_best_take_the_place_of_the_weakest(lab):
    found = lab.evolve()
    assert lab.ran == [(2, ["000", "001", "002", "003"]), (4, ["004", "001", "002", "003"]), (6, ["004", "005", "002", "003"])]
    first, second = lab.births
    assert (first.id, first.replaces, first.parent, first.epoch, first.step) == ("004", "000", "003", 2, 20)
    assert (second.id, second.replaces, second.epoch) == ("005", "001", 4)
    for birth in (first, second):
        parent = RATES[int(birth.parent)] if birth.parent in ("002", "003") else first.values["train.lr"]
        assert birth.values["train.lr"] in (pytest.approx(0.8 * parent), pytest.approx(1.2 * parent))
        assert birth.changed == {"train.lr": [parent, birth.values["train.lr"]]}
        assert birth.metrics == {"val/AP": pytest.approx(parent * birth.epoch)}
        assert lab.began[birth.id] == birth.digest == lab.told[birth.id]["handed_over"]
    assert lab.told["003"]["handed_over"] == ""
    assert {name: at["epoch"] for name, (_, at, _) in found.items()} == {
        "000": 2, "001": 4, "002": 6, "003": 6, "004": 6, "005": 6
    }  # fmt: skip
    assert [found[name][1]["time_total_s"] for name in ("000", "003", "004", "005")] == [5, 15, 10, 5]
    assert found["004"][1]["best_epoch"] == 6  # its own, not its parent's
    assert not any(error for *_, error in found.values())


def test_a_child_says_whom_it_comes_from(lab):
    lab.evolve()
    first, second = lab.births
    tags = lab.told[first.id]["tags"]
    assert tags[PARENT] == "run of sweep/003"
    assert tags[REPLACES] == "run of sweep/000"
    assert tags[PARENT_EPOCH] == 2
    assert tags[CHANGED] == f"lr 0.4 -> {first.values['train.lr']:.4g}"
    assert tags[LINEAGE] == "003 @2 > 004"
    chain = {"004": "003 @2 > 004 @4 > 005", "003": "003 @4 > 005", "002": "002 @4 > 005"}
    assert lab.told[second.id]["tags"][LINEAGE] == chain[second.parent]
    ledger = Ledger(lab.folder / "sweep" / LEDGER, lab.plan)
    ledger.births["006"] = Birth(**{**asdict(second), "id": "006", "parent": "005", "epoch": 5})
    assert ledger.lineage("006") == f"{chain[second.parent]} @5 > 006"


@pytest.mark.parametrize("where", ["001@2", "004@3", "003@6"])
def test_a_driver_that_died_goes_on_without_running_anything_twice(lab, tmp_path, monkeypatch, where):
    (tmp_path / "through").mkdir()
    through = Lab(tmp_path / "through")
    for other in (through, lab):
        monkeypatch.setattr(generations, "_tune", other.tune)
        monkeypatch.setattr(generations, "outcome", other.outcome)
        if other is through:
            expected = through.evolve()

    lab.trouble = {where: ""}
    lab.evolve()
    epoch, interrupted = lab.ran[-1]
    lab.trouble = {}
    found = lab.evolve()
    assert lab.ran.count((epoch, interrupted)) == 1
    name, end = where.split("@")[0], epoch
    assert [(at, ran) for at, ran in lab.ran if at == end][1:] == [(end, [name])]
    assert {name: (rate, at["epoch"], at["best"]) for name, (rate, at, _) in found.items()} == {
        name: (rate, at["epoch"], at["best"]) for name, (rate, at, _) in expected.items()
    }
    assert [(b.id, b.parent, b.values) for b in lab.births] == [(b.id, b.parent, b.values) for b in through.births]
    count = len(lab.ran)
    assert lab.evolve().keys() == found.keys()  # it is over: nothing more runs
    assert len(lab.ran) == count


def test_a_driver_killed_between_a_decision_and_its_hand_over_hands_over_what_it_decided(lab, monkeypatch):
    real = generations.hand_over
    monkeypatch.setattr(generations, "hand_over", lambda *a: (_ for _ in ()).throw(StorageError("the store is away")))
    with pytest.raises(StorageError):
        lab.evolve()
    (decided,) = lab.births
    monkeypatch.setattr(generations, "hand_over", real)
    lab.evolve()
    assert lab.births[0] == decided
    assert lab.began["004"] == decided.digest


def test_a_child_that_was_replaced_in_its_turn_is_left_alone_by_a_resume(lab):
    lab.plan = Plan("sweep", VALUES | {"sweep": SWEEP | {"exploit_every": 1}}, lab.plan.trials)
    lab.figure = lambda rate, epoch: rate * (10 - epoch)  # the best epoch is an early one
    lab.trouble = {f"{number:03d}@6": "" for number in range(20)}
    lab.evolve()
    children = {birth.id for birth in lab.births}
    assert children & {birth.replaces for birth in lab.births}
    lab.trouble = {}
    found = lab.evolve()
    assert sum(at["epoch"] == 6 for _, at, _ in found.values()) == 4
    assert len(found) == 4 + len(children)
    assert sorted(line.split()[2] for line in lab.said) == sorted(children)  # each was handed something once


def test_a_trial_that_failed_is_replaced_and_a_population_that_failed_ends(lab):
    lab.trouble = {"003@2": "diverged"}
    found = lab.evolve()
    assert (lab.births[0].replaces, lab.births[0].parent) == ("003", "002")
    assert found["003"][2] == "diverged"
    assert found["004"][1]["epoch"] == 6
    count = len(lab.ran)
    lab.evolve()
    assert len(lab.ran) == count  # what was settled stays so


def test_a_population_all_of_which_failed_ends_and_may_be_resumed(lab):
    lab.trouble = {f"{i:03d}@1": "no data" for i in range(4)}
    assert {error for *_, error in lab.evolve().values()} == {"no data"}
    assert [at for at, _ in lab.ran] == [2]
    assert not (lab.folder / "sweep" / LEDGER).exists()
    lab.trouble = {"002@6": "unlucky"}
    assert lab.evolve()["002"][2] == "unlucky"
    lab.trouble = {}
    assert lab.evolve()["002"][1:] == (pytest.approx(lab.evolve()["002"][1]), "")
    assert lab.ran[-1] == (6, ["002"])


def test_a_hand_over_is_verified_and_whole_or_not_there(lab):
    store = lab.site.store
    prefix = upload_checkpoint(store, make_checkpoint(lab.folder / "made" / "x", step=7), "parent", asdict(Progress(1, step=7)))
    birth = Birth("004", {}, "000", "003", 1, 7, prefix, read_manifest(store, prefix).digest, {"val/AP": 0.3}, {})
    with pytest.raises(IntegrityError):
        hand_over(store, Birth(**{**asdict(birth), "digest": "0" * 64}), "child")
    assert latest_of(store, "child") is None
    key = f"{prefix}/training.safetensors"
    whole = store.get_bytes(key)
    store.delete(key)
    store.put_bytes(key, whole[:-1] + b"x")
    with pytest.raises(IntegrityError):
        hand_over(store, birth, "child")
    assert list(store.list("checkpoints/child")) == []
    store.delete(key)
    store.put_bytes(key, whole)
    assert hand_over(store, birth, "child")
    begun = progress_of(store, "child")
    assert (begun.epoch, begun.step, begun.metrics, begun.best_prefix) == (1, 7, {"val/AP": 0.3}, "")
    assert read_manifest(store, begun.prefix).digest == birth.digest
    assert not hand_over(store, birth, "child")  # it has begun
