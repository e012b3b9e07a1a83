"""Ray Tune: a sweep is a folder with its plan in it; each trial is a training run of its own on Ray Train.

Tune's own checkpoints play no part: a trial's run goes on by its name, so a resumed sweep re-runs no finished trial and
unfinished ones continue, in the MLflow runs they began.
"""

import json
import random
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ray import tune

from pipeline import cluster, population, published, repeats, space, trial_turns
from pipeline.config import Experiment, experiment_of
from pipeline.failures import why
from pipeline.generations import evolve
from pipeline.site import Site, absolute, absolute_values, one_driver, prepare
from pipeline.storage.pointers import latest_of
from pipeline.tracking.leftovers import reconcile
from pipeline.tracking.runs import LAST_SECONDS
from pipeline.trial_table import TrialTable
from pipeline.trials import Plan, Trial, Values, describe, epochs_of, outcome, run_name, run_trial
from tood.config import config_hash
from tood.errors import ConfigError, ToodError

__all__ = ["PLAN", "Plan", "Trial", "Values", "describe", "make_plan", "newest_plan", "run_sweep"]

PLAN = "sweep.json"


def make_plan(values: Values) -> Plan:
    """List the trials and check every one of them before any starts. Raises ConfigError."""
    values = absolute_values(values)  # a sweep is perhaps resumed from elsewhere
    experiment = experiment_of(values)
    config = experiment.sweep
    if config is None:
        raise ConfigError(f"{experiment.name}: has no `sweep:` section; add axes under sweep.space, or use `tood train`")
    _check_turns(experiment)
    axes = space.check_space(config.space, config.search)
    if config.search == "grid":
        trials = space.grid(axes)
    else:
        generator = random.Random(config.seed)
        trials = [space.sample(axes, generator) for _ in range(config.samples)]
    trials = repeats.repeated(trials, config.repeats, experiment.train.seed, axes, config.search, config.scheduler)
    if config.scheduler == "pbt":
        population.check(values, experiment, None if config.search == "optuna" else trials)
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
    """The newest sweep of the same experiment and space, to be resumed: its name and its trials, under `values`.

    What decides results is equal; places, addresses and how much runs at once are as they are given now. Raises ConfigError.
    """
    values = absolute_values(values)
    experiment = experiment_of(values)
    _check_turns(experiment)
    folders = sorted(Path(experiment.output).glob(f"{experiment.name}-{_sweep_hash(experiment)}-*/{PLAN}"))
    if not folders:
        raise ConfigError(
            f"--resume: {experiment.output} holds no sweep of {experiment.name} with these settings; start it without --resume"
        )
    begun = Plan(**json.loads(folders[-1].read_text()))
    before = experiment_of(begun.values)
    if before.sweep.samples != experiment.sweep.samples and experiment.sweep.search != "grid":
        raise ConfigError(
            f"sweep.samples: {begun.sweep} was begun with {before.sweep.samples}, which cannot become {experiment.sweep.samples}; "
            "give that number, or start another sweep without --resume"
        )
    if before.sweep.metric != experiment.sweep.metric:
        raise ConfigError(
            f"sweep.metric: {begun.sweep} was begun with {before.sweep.metric}, by which its best checkpoints were chosen; give "
            "that, or start another sweep without --resume"
        )
    if _bucket_of_state(before) != _bucket_of_state(experiment):
        raise ConfigError(
            f"--resume: Ray's state of {begun.sweep} lies in {_bucket_of_state(before) or 'the output folder'}, and by these "
            f"ray.address and storage.url it would be looked for in {_bucket_of_state(experiment) or 'the output folder'}; give "
            "those that it was begun with, or start another sweep without --resume"
        )
    return replace(begun, values=values)


def _check_turns(experiment: Experiment) -> None:
    if experiment.ray.workers_min and experiment.sweep.max_concurrent != 1:
        raise ConfigError(
            "ray.workers_min: a run of varying size takes what it finds, and trials at the same time would take it from each "
            "other; set sweep.max_concurrent=1, or ray.workers_min=0"
        )


def run_sweep(
    plan: Plan, say: Callable[[str], None] = print, run_trial: Callable[[Plan, Site, float, Values], None] = run_trial
) -> tuple[Site, list[Trial]]:
    """Run or continue a sweep to its end. Trials come back best first; a failed trial does not end the others.

    Raises StorageError while another process runs this sweep.
    run_trial: what a trial does in place of a training run (`tood bench sweep` has trials that learn nothing).
    """
    experiment = absolute(experiment_of(plan.values))
    site = prepare(experiment)
    with one_driver(site, plan.sweep, say):
        trials = _run(plan, experiment, site, say, run_trial)
    return site, sorted(trials, key=lambda t: (t.best is None, -(t.best or 0), t.id))


def _run(plan: Plan, experiment: Experiment, site: Site, say: Callable[[str], None], run_trial) -> list[Trial]:
    config = experiment.sweep
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
            table = TrialTable(
                config.metric,
                say,
                describe=lambda values: describe(config.space, values),
                epochs=lambda values: epochs_of(plan, values),
                target=lambda values: published.target(config, values),
            )
            if config.scheduler == "pbt":
                trials = evolve(plan, experiment, site, gpus, at_once, table, say)
            else:
                trials = [_outcome(plan, site, r) for r in _tune(plan, experiment, site, gpus, at_once, say, table, run_trial)]
    except BaseException:  # Ctrl-C, or SIGTERM as a stopped job gets it: what still runs is ended and says so
        with suppress(ToodError):
            reconcile(site.tracking, site.experiment_id, plan.sweep, alive=[], seconds=LAST_SECONDS)
        raise
    reconcile(site.tracking, site.experiment_id, plan.sweep, alive=[])
    return trials


def _tune(plan: Plan, experiment: Experiment, site: Site, gpus: float, at_once: int, say, table, run_trial) -> tune.ResultGrid:
    config = experiment.sweep
    storage = site.ray_storage(experiment, plan.sweep)

    def trial(chosen: Values) -> None:
        run_trial(plan, site, gpus, chosen["trial"])

    trainable = tune.with_resources(trial, {"CPU": cluster.TRIAL_CPUS})
    scheduler = trial_turns.scheduler(config, at_once)
    place, _, query = storage.partition("?")  # a URI may name an endpoint at its end
    saved = f"{place}/tune?{query}" if query else f"{place}/tune"
    if tune.Tuner.can_restore(saved):
        say("going on where the sweep was left")
        # Resumed with the trials that it had; what this driver was told stands in the trainable, the scheduler and the table.
        tuner = tune.Tuner.restore(saved, trainable=trainable, resume_unfinished=True, resume_errored=True)
        with suppress(RuntimeError):  # no result was saved yet
            _require_checkpoints(plan, site, tuner.get_results())
        tuner._local_tuner._run_config.callbacks = [table]
        tuner._local_tuner._tune_config.scheduler = scheduler
        tuner._local_tuner._tune_config.time_budget_s = config.time_budget_minutes * 60 or None
        return tuner.fit()
    search = None
    if config.search == "optuna":
        from ray.tune.search.optuna import OptunaSearch

        search = OptunaSearch(space=partial(_suggest, config.space), metric=config.metric, mode="max", seed=config.seed)
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


def _suggest(axes: Values, optuna_trial: Any) -> Values:
    """Optuna's next trial. A function of the module, as the search is saved by plain pickle."""
    return {"trial": space.suggest(axes, optuna_trial)}


def _outcome(plan: Plan, site: Site, result: tune.Result) -> Trial:
    reached = result.metrics or {}
    return outcome(plan, site, reached.get("trial_id", ""), result.config["trial"], reached, why(result.error))


def _require_checkpoints(plan: Plan, site: Site, results: tune.ResultGrid) -> None:
    """Raises ConfigError where trials had checkpoints, and this store has none of them: it is another one."""
    stored = [result.metrics["trial_id"] for result in results if (result.metrics or {}).get("best_prefix")]
    if stored and not any(latest_of(site.store, run_name(plan, trial_id)) for trial_id in stored):
        raise ConfigError(
            f"--resume: {site.store_url} has no checkpoint of {plan.sweep}, {len(stored)} of whose trials have some; give the "
            "storage.url that it was begun with, or start another sweep without --resume"
        )


def _bucket_of_state(experiment: Experiment) -> str:
    """Where `Site.ray_storage` puts Ray's own state, but for the output folder, which may move: then \"\"."""
    url = experiment.storage.url
    return url.rstrip("/") if experiment.ray.address and url.startswith("s3://") else ""


def _sweep_hash(experiment: Experiment) -> str:
    """Of the experiment and its search: what must be equal for one sweep to be the continuation of another."""
    search = {"space": experiment.sweep.space, "search": experiment.sweep.search, "seed": experiment.sweep.seed}
    if experiment.sweep.repeats > 1:
        search["repeats"] = experiment.sweep.repeats
    if experiment.sweep.scheduler == "pbt":  # what a trial learns depends on it
        search["pbt"] = [experiment.sweep.exploit_every, experiment.sweep.exploit_share, experiment.sweep.resample]
    return config_hash({"experiment": experiment.hash, **search})
