"""One trial of a sweep: what its process does, and what became of it."""

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback

from pipeline import repeats, space
from pipeline.config import Experiment, experiment_of, to_yaml
from pipeline.errors import StorageError
from pipeline.site import Site, absolute
from pipeline.storage.checkpoints import close_run
from pipeline.storage.pointers import latest_of
from pipeline.storage.store import Store
from pipeline.tracking.facts import environment_tags, flat_params
from pipeline.tracking.runs import CHECKPOINT, CONFIGURATION, SWEEP, Run
from pipeline.train import Address, Progress, fit
from tood.config import identity, to_dict

Values = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """What a sweep was asked to do; written to its folder before anything starts."""

    sweep: str  # unique name
    values: Values  # the experiment's values, to which each trial adds its own
    trials: list[Values] | None  # None: Optuna asks for one at a time


@dataclass(frozen=True)
class Trial:
    """What became of a trial."""

    id: str
    values: Values
    run_id: str  # MLflow's
    params: dict[str, Any]
    best: float | None
    best_epoch: int
    prefix: str  # best checkpoint in the store
    epochs: int
    seconds: float
    status: str  # FINISHED, STOPPED (by the scheduler or the budget) or FAILED
    error: str = ""


def describe(axes: Values, trial: Values) -> str:
    """A trial's own settings in a few words."""
    return " ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in space.short_names(axes, trial).items())


def run_trial(plan: Plan, site: Site, gpus: float, values: Values) -> None:
    """The driver of one trial, in a process of its own: an MLflow run around a training run."""
    train_trial(plan, site, gpus, tune.get_context().get_trial_id(), values)


def train_trial(
    plan: Plan,
    site: Site,
    gpus: float,
    trial_id: str,
    values: Values,
    *,
    stop_after: int | None = None,
    handed_over: str = "",
    tags: Values | None = None,
) -> None:
    """Train a trial, for the first time or on: to its end, or until `stop_after` epochs are done. handed_over: see `fit`."""
    experiment = absolute(experiment_of(plan.values, values))
    told = describe(experiment.sweep.space, values)
    tracked = Run.open(
        site.tracking,
        site.experiment_id,
        identity=identity_of(plan, trial_id),
        name=told[:200],
        tags={SWEEP: plan.sweep, "tood.trial": trial_id, "tood.kind": "trial", "config_hash": experiment.hash}
        | {CONFIGURATION: repeats.configuration_of(identity(experiment))}
        | environment_tags()
        | (tags or {}),
    )
    tracked.params(_params(experiment, values))
    tracked.text(to_yaml(experiment), "experiment.yaml")
    address = Address(
        run=run_name(plan, trial_id),
        store=site.store_url,
        tracking=site.tracking,
        mlflow_run=tracked.run_id,
        ray_storage=site.ray_storage(experiment, plan.sweep),
        label=f"[{told}] ",
    )
    try:
        fit(
            experiment,
            address,
            gpus=gpus,
            stop_after=stop_after,
            handed_over=handed_over,
            metric=experiment.sweep.metric,
            callbacks=[TuneReportCallback()],
        )
    except BaseException:
        tracked.finish("FAILED")
        raise
    tracked.finish("FINISHED")


def outcome(plan: Plan, site: Site, trial_id: str, values: Values, told: Values, error: str, *, may_go_on: bool = False) -> Trial:
    """What became of a trial, said in its MLflow run too. told: `Progress.result()` as Tune had it last, and time_total_s.

    What the trial's run has committed counts before what Tune was told: the state in which a killed driver leaves a sweep is
    older than that, and a stopped trial may have stored on. may_go_on: a resume may still take it up, if it was stopped.
    """
    experiment, store, run = absolute(experiment_of(plan.values, values)), site.store, run_name(plan, trial_id)
    reached = told | _result(progress_of(store, run))
    if not (error or may_go_on or _is_done(experiment, reached)):
        with suppress(StorageError):
            closed = close_run(store, run, lambda note: note.get("best_prefix", ""))
            reached |= _result(Progress(**closed.note)) if closed else {}
    epochs = reached.get("epoch", 0)
    status = "FAILED" if error else "FINISHED" if _is_done(experiment, reached) else "STOPPED"
    named = site.tracking, site.experiment_id, identity_of(plan, trial_id)
    tracked = Run.find(*named) or Run.open(*named, name=describe(experiment.sweep.space, values)[:200])  # if it failed before that
    tracked.tags({"tood.outcome": status.lower()})
    if reached.get("best_prefix"):
        tracked.tags({CHECKPOINT: site.store.url_of(reached["best_prefix"])})
        tracked.best(experiment.sweep.metric, reached["best"])
    tracked.finish({"STOPPED": "FINISHED"}.get(status, status))
    return Trial(
        id=trial_id,
        values=values,
        run_id=tracked.run_id,
        params=_params(experiment, values),
        best=reached.get("best") if reached.get("best_prefix") else None,
        best_epoch=reached.get("best_epoch", 0),
        prefix=reached.get("best_prefix", ""),
        epochs=epochs,
        seconds=reached.get("time_total_s", 0.0),
        status=status,
        error=error,
    )


def progress_of(store: Store, run: str) -> Progress:
    """What a run has committed."""
    newest = latest_of(store, run)
    return Progress(**newest.note) if newest and newest.note else Progress()


def identity_of(plan: Plan, trial_id: str) -> str:
    """What a trial's MLflow run is found by."""
    return f"{plan.sweep}/{trial_id}"


def run_name(plan: Plan, trial_id: str) -> str:
    """A trial's name in object storage and in Ray."""
    return f"{plan.sweep}-{trial_id}"


def epochs_of(plan: Plan, values: Values) -> int:
    """A trial's own: a paper's cells may differ in their schedules."""
    return experiment_of(plan.values, values).train.epochs


def _result(committed: Progress) -> Values:
    return committed.result() if committed.epoch else {}


def _is_done(experiment: Experiment, reached: Values) -> bool:
    """Early stopping ends a trial before its last epoch."""
    return reached.get("last", False) or reached.get("epoch", 0) >= experiment.train.epochs


def _params(experiment: Experiment, values: Values) -> Values:
    cell = space.cell_of(experiment.sweep.space, values)
    named = {} if cell is None else {space.CELL: cell}
    return named | flat_params(to_dict(experiment), swept=space.swept_keys(experiment.sweep.space))
