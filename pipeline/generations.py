"""Population-based training on Ray: generations of ordinary trials, and between them the hand-over of checkpoints.

Ray Tune trains each generation to a common epoch, where its trials end by themselves: nothing is killed, so every checkpoint
that a decision rests on is the committed one that its run's pointer in the store names. (Tune's own PBT knows checkpoints
that it was given, and here it is given none; it also stops workers in mid-step, which train and store on for seconds.)

What a generation came to is written down before anything follows from it. Then each child gets a verified copy of its
parent's checkpoint under its own name, the first thing that its run has to go on from; the one difference from any other resume
is that this checkpoint, by its digest, may be of another configuration. Every part may be repeated after a crash.
"""

import json
import random
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ray import tune

from pipeline import cluster, population
from pipeline.config import Experiment
from pipeline.failures import why
from pipeline.population import Birth
from pipeline.scratch import scratch_folder
from pipeline.site import Site
from pipeline.storage.checkpoints import fetch, prefix_of, read_manifest, upload_checkpoint
from pipeline.storage.pointers import latest_of
from pipeline.storage.store import Store
from pipeline.tracking.runs import Run
from pipeline.train import Progress
from pipeline.trial_table import TrialTable
from pipeline.trials import Plan, Trial, Values, identity_of, outcome, progress_of, run_name, train_trial
from tood.atomic import write_file

LEDGER = "population.json"  # in the sweep's folder


class Ledger:
    """What each generation came to: the epoch it ended at, what every trial had reached, and who was born."""

    def __init__(self, file: Path, plan: Plan):
        self.file = file
        self.settled: list[dict[str, Any]] = json.loads(file.read_text()) if file.exists() else []
        self.values: dict[str, Values] = {name_of(i): values for i, values in enumerate(plan.trials)}  # of all trials, by birth
        self.living = list(self.values)
        self.births: dict[str, Birth] = {}
        self.reached: dict[str, Values] = {}  # of all trials: `Progress.result()`, with time_total_s and error
        for generation in self.settled:
            self._take_up(generation)

    def settle(self, epoch: int, reached: dict[str, Values], births: list[Birth]) -> None:
        generation = {"epoch": epoch, "reached": reached, "births": [asdict(birth) for birth in births]}
        self.settled.append(generation)
        write_file(self.file, json.dumps(self.settled, indent=1).encode())
        self._take_up(json.loads(json.dumps(generation)))

    @property
    def newborn(self) -> list[Birth]:
        """Those who have not lived yet. All before them were given their checkpoints before the generation that is over."""
        return [Birth(**values) for values in self.settled[-1]["births"]] if self.settled else []

    def lineage(self, name: str) -> str:
        """Every trial that this one's weights went through, with the epoch at which they were handed on."""
        birth = self.births.get(name)
        return name if birth is None else f"{self.lineage(birth.parent)} @{birth.epoch} > {name}"

    def _take_up(self, generation: dict[str, Any]) -> None:
        self.reached |= generation["reached"]
        for values in generation["births"]:
            birth = Birth(**values)
            self.births[birth.id], self.values[birth.id] = birth, birth.values
            self.living[self.living.index(birth.replaces)] = birth.id


def name_of(number: int) -> str:
    """A trial's, by order of birth."""
    return f"{number:03d}"


def evolve(
    plan: Plan, experiment: Experiment, site: Site, gpus: float, at_once: int, table: TrialTable, say: Callable[[str], None]
) -> list[Trial]:
    """Run or continue a population to its end; the trials of all generations come back.

    It also ends where the time is up, the run is interrupted, or every trial of a generation has failed; --resume goes on there.
    """
    config, store = experiment.sweep, site.store
    ledger = Ledger(site.output / plan.sweep / LEDGER, plan)
    deadline = time.monotonic() + config.time_budget_minutes * 60 if config.time_budget_minutes else None
    ends = population.bounds(experiment.train.epochs, config.exploit_every)
    for end in ends[len(ledger.settled) :]:
        for birth in ledger.newborn:
            if hand_over(store, birth, run_name(plan, birth.id)):
                said = f"{birth.id} goes on from {birth.parent} in place of {birth.replaces}: {birth.words()}"
                say(f"epoch {birth.epoch}: {said}")
        reached = _train(plan, experiment, site, gpus, at_once, table, ledger, end, deadline)
        ledger.reached |= reached
        failed = [name for name in ledger.living if reached[name]["epoch"] < end]
        if not all(reached[name]["error"] for name in failed) or len(failed) == len(ledger.living):
            break
        if end < ends[-1]:
            ledger.settle(end, reached, decide(plan, experiment, store, ledger, end))
        elif not failed:  # else --resume tries those once more
            ledger.settle(end, reached, [])
    trials = []
    for name, values in ledger.values.items():
        at = ledger.reached.get(name, {})
        trials.append(outcome(plan, site, name, values, at, at.get("error", ""), may_go_on=name in ledger.living))
    return trials


def decide(plan: Plan, experiment: Experiment, store: Store, ledger: Ledger, end: int) -> list[Birth]:
    """Who is born at the end of a generation. The same scores and seed give the same births."""
    config = experiment.sweep
    generator = random.Random(f"{config.seed}/{end}")
    reached = {name: ledger.reached[name] for name in ledger.living}
    scores = {name: None if at["epoch"] < end else at.get(config.metric, float("-inf")) for name, at in reached.items()}
    births = []
    for replaced, parent in population.select(scores, config.exploit_share, generator).items():
        progress = progress_of(store, run_name(plan, parent))
        theirs = ledger.values[parent]
        values = population.explore(config.space, theirs, config.resample, generator)
        births.append(
            Birth(
                id=name_of(len(ledger.values) + len(births)),
                values=values,
                replaces=replaced,
                parent=parent,
                epoch=progress.epoch,
                step=progress.step,
                checkpoint=progress.prefix,
                digest=read_manifest(store, progress.prefix).digest,
                metrics={key: value for key, value in progress.metrics.items() if key.startswith("val/")},
                changed={key: [theirs[key], value] for key, value in values.items() if value != theirs[key]},
            )
        )
    return births


def hand_over(store: Store, birth: Birth, run: str) -> bool:
    """Give a child's run a copy of its parent's checkpoint, every byte verified; its pointer moves last. False: it had it."""
    if latest_of(store, run) is not None:
        return False
    with scratch_folder() as scratch:
        folder = fetch(store, birth.checkpoint, scratch / "handed_over", birth.digest)
        begun = Progress(epoch=birth.epoch, prefix=prefix_of(folder, run), step=birth.step, metrics=birth.metrics)
        upload_checkpoint(store, folder, run, asdict(begun))
    return True


def _train(
    plan: Plan,
    experiment: Experiment,
    site: Site,
    gpus: float,
    at_once: int,
    table: TrialTable,
    ledger: Ledger,
    end: int,
    deadline: float | None,
) -> dict[str, Values]:
    """Train all living trials to `end` epochs, and say what each has reached. Those that are there already are left alone."""
    store, ran = site.store, {}
    waiting = [name for name in ledger.living if progress_of(store, run_name(plan, name)).epoch < end]
    left = None if deadline is None else deadline - time.monotonic()
    if waiting and (left is None or left > 0):
        lives = [_life(plan, site, ledger, name, end) for name in waiting]
        ran = {r.config["life"]["id"]: r for r in _tune(plan, experiment, site, gpus, at_once, table, lives, left)}
    reached = {}
    for name in ledger.living:
        metrics, error = (ran[name].metrics or {}, ran[name].error) if name in ran else ({}, None)
        spent = ledger.reached.get(name, {}).get("time_total_s", 0.0) + metrics.get("time_total_s", 0.0)
        progress = progress_of(store, run_name(plan, name))
        reached[name] = progress.result() | {"time_total_s": spent, "error": why(error)}
    return reached


def _life(plan: Plan, site: Site, ledger: Ledger, name: str, end: int) -> Values:
    """What a trial's process is told; the table and Tune's results know it by that, too."""
    birth, tags = ledger.births.get(name), {}
    if birth:
        runs = {
            tag: Run.find(site.tracking, site.experiment_id, identity_of(plan, other))
            for tag, other in ((population.PARENT, birth.parent), (population.REPLACES, birth.replaces))
        }
        tags = {tag: run.run_id for tag, run in runs.items() if run}  # one that failed at once has none
        tags |= {population.PARENT_EPOCH: birth.epoch, population.CHANGED: birth.words()}
        tags |= {population.LINEAGE: ledger.lineage(name)}
    told = {"stop_after": end, "handed_over": birth.digest if birth else "", "tags": tags}
    return {"id": name, "trial": ledger.values[name], "told": told}


def _tune(
    plan: Plan, experiment: Experiment, site: Site, gpus: float, at_once: int, table: TrialTable, lives: list[Values], left
) -> tune.ResultGrid:
    def live(chosen: Values) -> None:
        life = chosen["life"]
        train_trial(plan, site, gpus, life["id"], life["trial"], **life["told"])

    tuner = tune.Tuner(
        tune.with_resources(live, {"CPU": cluster.TRIAL_CPUS}),
        param_space={"life": tune.grid_search(lives)},
        tune_config=tune.TuneConfig(
            max_concurrent_trials=at_once,
            time_budget_s=left,
            trial_dirname_creator=lambda t: t.trial_id,
            trial_name_creator=lambda t: t.trial_id,
        ),
        run_config=tune.RunConfig(
            name=f"to_epoch_{lives[0]['told']['stop_after']:04d}",
            storage_path=site.ray_storage(experiment, plan.sweep),
            verbose=0,
            callbacks=[table],
        ),
    )
    return tuner.fit()
