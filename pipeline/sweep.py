"""Ray Tune: a sweep is a folder with its plan in it; each trial is a training run of its own on Ray Train.

Tune's own checkpoints play no part: a trial's run goes on by its name, so a resumed sweep re-runs no finished trial and
unfinished ones continue, in the MLflow runs they began.
"""

import json
import random
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import ASHAScheduler

from pipeline import cluster, published, repeats, space
from pipeline.config import Experiment, experiment_of, to_yaml
from pipeline.errors import ClusterError, StorageError
from pipeline.site import Site, absolute, prepare
from pipeline.storage.checkpoints import remove_others
from pipeline.tracking.facts import environment_tags, flat_params
from pipeline.tracking.leftovers import reconcile
from pipeline.tracking.runs import CHECKPOINT, CONFIGURATION, LAST_SECONDS, SWEEP, Run
from pipeline.train import Address, fit
from pipeline.trial_table import TrialTable
from tood.config import config_hash, identity, to_dict
from tood.errors import ConfigError, ToodError

PLAN = "sweep.json"
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


def make_plan(values: Values) -> Plan:
    """List the trials and check every one of them before any starts. Raises ConfigError."""
    experiment = experiment_of(values)
    config = experiment.sweep
    if config is None:
        raise ConfigError(f"{experiment.name}: has no `sweep:` section; add axes under sweep.space, or use `tood train`")
    axes = space.check_space(config.space, config.search)
    if config.search == "grid":
        trials = space.grid(axes)
    else:
        generator = random.Random(config.seed)
        trials = [space.sample(axes, generator) for _ in range(config.samples)]
    trials = repeats.repeated(trials, config.repeats, experiment.train.seed, axes, config.search, config.scheduler)
    hashes: dict[str, Values] = {}
    for trial in trials:
        try:
            same = hashes.setdefault(experiment_of(values, trial).hash, trial)
        except ConfigError as error:
            raise ConfigError(f"trial {describe(axes, trial)}: {error}") from None
        if same is not trial and config.search == "grid":
            raise ConfigError(
                f"sweep.space: the trials {describe(axes, same)} and {describe(axes, trial)} are the same experiment; leave one out"
            )
    stamp = time.strftime("%Y%m%d-%H%M%S")
    name = f"{experiment.name}-{_sweep_hash(experiment)}-{stamp}"
    return Plan(name, values, None if config.search == "optuna" else trials)


def newest_plan(values: Values) -> Plan:
    """The plan of the newest sweep of the same experiment and space, to be resumed. Raises ConfigError."""
    experiment = absolute(experiment_of(values))
    folders = sorted(Path(experiment.output).glob(f"{experiment.name}-{_sweep_hash(experiment)}-*/{PLAN}"))
    if not folders:
        raise ConfigError(
            f"--resume: {experiment.output} holds no sweep of {experiment.name} with these settings; start it without --resume"
        )
    return Plan(**json.loads(folders[-1].read_text()))


def describe(axes: Values, trial: Values) -> str:
    """A trial's own settings in a few words."""
    return " ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in space.short_names(axes, trial).items())


def run_sweep(
    plan: Plan, say: Callable[[str], None] = print, run_trial: Callable[[Plan, Site, float, Values], None] | None = None
) -> tuple[Site, list[Trial]]:
    """Run or continue a sweep to its end. Trials come back best first; a failed trial does not end the others.

    run_trial: what a trial does in place of a training run (`tood bench sweep` has trials that learn nothing).
    """
    experiment = absolute(experiment_of(plan.values))
    config = experiment.sweep
    site = prepare(experiment)
    folder = site.output / plan.sweep
    folder.mkdir(exist_ok=True)
    (folder / PLAN).write_text(json.dumps(plan.__dict__, indent=1))
    one = cluster.demand(experiment.ray, experiment.ray.gpus_per_worker or 0, cluster.TRIAL_CPUS)
    try:
        with cluster.connected(experiment.ray, one.cpus * max(1, config.max_concurrent), say):
            gpus = cluster.gpus_per_worker(experiment.ray)
            need = cluster.demand(experiment.ray, gpus, cluster.TRIAL_CPUS)
            at_once = cluster.concurrency(need, config.max_concurrent)
            count = config.samples if plan.trials is None else len(plan.trials)
            say(f"sweep {plan.sweep}: {count} trials, {at_once} at once, {need.cpus} CPUs and {need.gpus:g} GPUs each")
            results = _tune(plan, experiment, site, gpus, at_once, say, run_trial or _run_trial)
            trials = [_outcome(plan, site, result) for result in results]
    except BaseException:  # Ctrl-C, or SIGTERM as a stopped job gets it: what still runs is ended and says so
        with suppress(ToodError):
            reconcile(site.tracking, site.experiment_id, plan.sweep, alive=[], seconds=LAST_SECONDS)
        raise
    reconcile(site.tracking, site.experiment_id, plan.sweep, alive=[])
    return site, sorted(trials, key=lambda t: (t.best is None, -(t.best or 0), t.id))


def _tune(plan: Plan, experiment: Experiment, site: Site, gpus: float, at_once: int, say, run_trial) -> tune.ResultGrid:
    config = experiment.sweep
    storage = site.ray_storage(experiment, plan.sweep)

    def trial(chosen: Values) -> None:
        run_trial(plan, site, gpus, chosen["trial"])

    trainable = tune.with_resources(trial, {"CPU": cluster.TRIAL_CPUS})
    table = TrialTable(
        config.metric,
        say,
        describe=lambda values: describe(config.space, values),
        epochs=lambda values: _epochs(plan, values),
        target=lambda values: published.target(config, values),
    )
    place, _, query = storage.partition("?")  # a URI may name an endpoint at its end
    saved = f"{place}/tune?{query}" if query else f"{place}/tune"
    if tune.Tuner.can_restore(saved):
        say("going on where the sweep was left")
        # Resumed as it was configured, but for what is not part of the saved state: the callbacks.
        tuner = tune.Tuner.restore(saved, trainable=trainable, resume_unfinished=True, resume_errored=True)
        tuner._local_tuner._run_config.callbacks = [table]
        return tuner.fit()
    search = None
    if config.search == "optuna":
        from ray.tune.search.optuna import OptunaSearch

        axes = config.space

        def suggest(optuna_trial: Any) -> Values:
            return {"trial": space.suggest(axes, optuna_trial)}

        search = OptunaSearch(space=suggest, metric=config.metric, mode="max", seed=config.seed)
    scheduler = None
    if config.scheduler == "asha":
        # max_t is never reached: a trial ends by itself, and Tune need not kill its workers.
        scheduler = ASHAScheduler(
            time_attr="epoch",
            max_t=max(_epochs(plan, t) for t in plan.trials or [{}]) + 1,
            grace_period=config.grace_epochs,
            reduction_factor=config.reduction,
        )
    tuner = tune.Tuner(
        trainable,
        param_space=None if plan.trials is None else {"trial": tune.grid_search(plan.trials)},
        tune_config=tune.TuneConfig(
            metric=config.metric,
            mode="max",
            search_alg=search,
            scheduler=scheduler,
            num_samples=config.samples if search else 1,
            max_concurrent_trials=at_once,
            time_budget_s=config.time_budget_minutes * 60 or None,
            trial_dirname_creator=lambda t: t.trial_id,
            trial_name_creator=lambda t: t.trial_id,
        ),
        run_config=tune.RunConfig(name="tune", storage_path=storage, verbose=0, callbacks=[table]),
    )
    return tuner.fit()


def _run_trial(plan: Plan, site: Site, gpus: float, trial: Values) -> None:
    """The driver of one trial, in a process of its own: an MLflow run around a training run."""
    experiment = absolute(experiment_of(plan.values, trial))
    trial_id = tune.get_context().get_trial_id()
    told = describe(experiment.sweep.space, trial)
    params = _params(experiment, trial)
    tracked = Run.open(
        site.tracking,
        site.experiment_id,
        identity=f"{plan.sweep}/{trial_id}",
        name=told[:200],
        tags={SWEEP: plan.sweep, "tood.trial": trial_id, "tood.kind": "trial", "config_hash": experiment.hash}
        | {CONFIGURATION: repeats.configuration_of(identity(experiment))}
        | environment_tags(),
    )
    tracked.params(params)
    tracked.text(to_yaml(experiment), "experiment.yaml")
    address = Address(
        run=_run_name(plan, trial_id),
        store=site.store_url,
        tracking=site.tracking,
        mlflow_run=tracked.run_id,
        ray_storage=site.ray_storage(experiment, plan.sweep),
        label=f"[{told}] ",
    )
    try:
        fit(experiment, address, gpus=gpus, metric=experiment.sweep.metric, callbacks=[TuneReportCallback()])
    except BaseException:
        tracked.finish("FAILED")
        raise
    tracked.finish("FINISHED")


def _outcome(plan: Plan, site: Site, result: tune.Result) -> Trial:
    metrics, values = result.metrics or {}, result.config["trial"]
    trial_id = metrics.get("trial_id", "")
    experiment = absolute(experiment_of(plan.values, values))
    epochs = metrics.get("epoch", 0)
    done = metrics.get("last") or epochs >= experiment.train.epochs  # early stopping ends a trial before its last epoch
    status = "FAILED" if result.error else "FINISHED" if done else "STOPPED"
    told = describe(experiment.sweep.space, values)
    run = site.tracking, site.experiment_id, f"{plan.sweep}/{trial_id}"
    tracked = Run.find(*run) or Run.open(*run, name=told[:200])  # it may have failed before it had one
    tracked.tags({"tood.outcome": status.lower()})
    if metrics.get("best_prefix"):
        tracked.tags({CHECKPOINT: site.store.url_of(metrics["best_prefix"])})
        tracked.metrics({f"best_{experiment.sweep.metric.removeprefix('val/')}": metrics["best"]}, step=0)
    if status == "STOPPED":  # it will not go on, so what it would go on from can go
        with suppress(StorageError):
            remove_others(site.store, _run_name(plan, trial_id), {metrics.get("best_prefix", "")})
    tracked.finish({"STOPPED": "FINISHED"}.get(status, status))
    best = metrics.get("best")
    return Trial(
        id=trial_id,
        values=values,
        run_id=tracked.run_id,
        params=_params(experiment, values),
        best=best if metrics.get("best_prefix") else None,
        best_epoch=metrics.get("best_epoch", 0),
        prefix=metrics.get("best_prefix", ""),
        epochs=epochs,
        seconds=metrics.get("time_total_s", 0.0),
        status=status,
        error=_why(result.error),
    )


def _run_name(plan: Plan, trial_id: str) -> str:
    return f"{plan.sweep}-{trial_id}"


def _why(error: Exception | None) -> str:
    """What a trial's own error says, without Ray's layers around it."""
    while error is not None:
        if isinstance(error, ToodError) and not isinstance(error, ClusterError):
            return str(error)
        inner = getattr(error, "cause", None) or error.__cause__
        if inner is None:
            lines = [line for line in str(error).splitlines() if line.strip()]
            return lines[-1].strip() if lines else type(error).__name__
        error = inner
    return ""


def _sweep_hash(experiment: Experiment) -> str:
    """Of the experiment and its search: what must be equal for one sweep to be the continuation of another."""
    search = {"space": experiment.sweep.space, "search": experiment.sweep.search, "seed": experiment.sweep.seed}
    if experiment.sweep.repeats > 1:
        search["repeats"] = experiment.sweep.repeats
    return config_hash({"experiment": experiment.hash, **search})


def _params(experiment: Experiment, trial: Values) -> dict[str, Any]:
    cell = space.cell_of(experiment.sweep.space, trial)
    named = {} if cell is None else {space.CELL: cell}
    return named | flat_params(to_dict(experiment), swept=space.swept_keys(experiment.sweep.space))


def _epochs(plan: Plan, trial: Values) -> int:
    """A trial's own: a paper's cells may differ in their schedules."""
    return experiment_of(plan.values, trial).train.epochs
