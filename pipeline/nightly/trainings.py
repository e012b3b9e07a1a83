"""The trainings of a night: Ray Train runs of their own, tied to the night by a tag, and found again when a night goes on."""

import json
import math
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any, NamedTuple

from pipeline.config import Experiment
from pipeline.errors import ClusterError, StorageError
from pipeline.nightly.history import OF_NIGHT
from pipeline.nightly.measure import in_a_line
from pipeline.publish import register_best
from pipeline.registry.access import CHAMPION, Reference, find_version, registry
from pipeline.registry.models import Version
from pipeline.registry.promotion import decide
from pipeline.runs import METRIC, train_run
from pipeline.site import Site, prepare
from pipeline.storage.checkpoints import read_manifest, remove_checkpoint
from pipeline.tracking.facts import flat_params
from pipeline.tracking.past_runs import run_by_id, runs_tagged
from pipeline.tracking.runs import CHECKPOINT, Run
from tood.config import to_dict
from tood.errors import DivergedError, ToodError

KIND = "nightly-training"  # of tood.kind
OUTCOME = "tood.reached"  # tag: JSON, what a finished training reached; the mark by which a night knows it


class Trained(NamedTuple):
    """A seed's training, finished or failed."""

    entry: str
    seed: int
    run: str  # name, also of its folder and in the store
    run_id: str  # MLflow's
    metrics: dict[str, float]  # of the last epoch
    newest: str = ""  # checkpoints in the store
    best: str = ""
    best_value: float = math.nan
    error: str = ""


def train_seed(experiment: Experiment, site: Site, entry: str, run: str, night: str, say: Callable[[str], None]) -> Trained:
    """Train, go on with, or just read back the training of this name. What the code under test does wrong is no exception."""
    seed = experiment.train.seed
    if done := _finished(site, entry, seed, run):
        say(f"{run}: was finished before the interruption")
        return done
    try:
        prepared = prepare(experiment)
        progress, tracked = train_run(experiment, prepared, run, tags={"tood.kind": KIND, OF_NIGHT: night}, say=say)
    except (DivergedError, ClusterError) as error:
        found = Run.find(site.tracking, site.experiment_id, run)
        return Trained(entry, seed, run, found.run_id if found else "", {}, error=in_a_line(error))
    outcome = {"metrics": progress.metrics, "newest": progress.prefix, "best": progress.best_prefix}
    outcome["best_value"] = progress.best_value if progress.best_prefix else None
    if progress.best_prefix:
        tracked.best(METRIC, progress.best_value)
        tracked.tags({CHECKPOINT: site.store.url_of(progress.best_prefix)})
    tracked.tags({OUTCOME: json.dumps(outcome)})
    tracked.finish("FINISHED")
    return _trained(entry, seed, run, tracked.run_id, outcome)


def register_better(experiment: Experiment, site: Site, trained: list[Trained]) -> tuple[Version, str] | None:
    """Register the best seed's best checkpoint and make it champion, if the gate says that it is better; else do nothing.

    experiment: names the model. Gives the version and the checkpoint; None: it is not better, or there is none.
    """
    best = max((t for t in trained if t.best), key=lambda t: t.best_value, default=None)
    if best is None:
        return None
    name = experiment.tracking.model
    info = read_manifest(site.store, f"{best.best}/model").values["info"]
    candidate = {"dataset": info["dataset"], "metric": METRIC, "value": repr(best.best_value)}
    with registry(site.tracking) as client:
        try:
            champion = dict(find_version(client, Reference(name, CHAMPION, None)).tags)
        except ToodError:
            champion = None
    if not decide(candidate, champion).moved:
        return None
    seeded = replace(experiment, train=replace(experiment.train, seed=best.seed))
    params = flat_params(to_dict(seeded))
    version = register_best(site, seeded, prefix=best.best, value=best.best_value, metric=METRIC, run_id=best.run_id, params=params)
    return version, best.best


def remove_what_is_not_needed(site: Site, trained: list[Trained], kept: set[str]) -> None:
    """Of a passed night: every checkpoint but the registered ones, and Ray's state. A night a day would fill any disk."""
    for one in trained:
        for prefix in {one.newest, one.best} - {"", *kept}:
            with suppress(StorageError):  # gc finds what is left
                remove_checkpoint(site.store, prefix)
        if one.run_id and one.best not in kept:
            Run.attach(site.tracking, one.run_id).tags({CHECKPOINT: ""})
        with suppress(StorageError):
            for key in site.store.list(f"ray/{one.run}"):  # where `Site.ray_storage` puts it on a cluster
                site.store.delete(key)
        shutil.rmtree(site.output / one.run, ignore_errors=True)


def end_left_open(tracking: str, night: str) -> None:
    """Set the trainings that a killed night, named by its identity, left RUNNING to KILLED."""
    for run in runs_tagged(tracking, OF_NIGHT, night):
        if run.status == "RUNNING":
            Run.attach(tracking, run.run_id).finish("KILLED")


def _finished(site: Site, entry: str, seed: int, run: str) -> Trained | None:
    found = Run.find(site.tracking, site.experiment_id, run)
    if found is None:
        return None
    past = run_by_id(site.tracking, found.run_id)
    if past.status != "FINISHED" or OUTCOME not in past.tags:
        return None
    return _trained(entry, seed, run, found.run_id, json.loads(past.tags[OUTCOME]))


def _trained(entry: str, seed: int, run: str, run_id: str, outcome: dict[str, Any]) -> Trained:
    value = math.nan if outcome["best_value"] is None else outcome["best_value"]
    return Trained(entry, seed, run, run_id, outcome["metrics"], outcome["newest"], outcome["best"], value)
