"""What a sweep has brought, gathered from MLflow for a report: its trials by a few paged searches, curves of the best alone."""

import json
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from pipeline import published
from pipeline.config import Experiment, experiment_of
from pipeline.population import LINEAGE
from pipeline.space import CELL, swept_keys
from pipeline.tracking.facts import PARAMS
from pipeline.tracking.past_runs import PastRun, artifact, experiment_values, history, run_by_id, runs_tagged
from pipeline.tracking.runs import SWEEP
from tood.config import to_dict
from tood.cost import Cost, count_cost
from tood.errors import ConfigError, ToodError

CURVES = 24  # best trials whose learning curves are read
MODELS = 40  # most different models whose cost is counted
AXES = 8  # most that are shown
FIRST_AXES = (CELL, "alpha", "beta", "m", "head")
Word = float | str


class Trial(NamedTuple):
    run_id: str
    name: str
    status: str
    seed: str
    settings: dict[str, Word]  # the axes' values; one that a trial has not is left out
    value: float | None  # the metric at its best epoch
    minutes: float | None
    published: float | None  # a paper's figure, on the metric's scale
    cost: Cost | None
    lineage: str = ""  # of a population: every trial that its weights went through


class Facts(NamedTuple):
    sweep: str
    description: str
    metric: str
    axes: list[str]  # by which the settings differ, the papers' first
    trials: list[Trial]  # best first
    curves: dict[str, list[tuple[float, float]]]  # run id -> (epoch, metric) of the best trials
    summary: PastRun | None
    experiment: Experiment | None


def gather(sweep: str, tracking: str) -> Facts:
    """Everything that a report says of a sweep. Raises ConfigError where MLflow has no trial of it."""
    if re.fullmatch(r"[0-9a-f]{32}", sweep):
        sweep = run_by_id(tracking, sweep).tags.get(SWEEP, sweep)
    runs = runs_tagged(tracking, SWEEP, sweep)
    of_trials = [run for run in runs if run.tags.get("tood.kind") == "trial"]
    summary = next((run for run in runs if run.tags.get("tood.kind") == "sweep"), None)
    if not of_trials:
        raise ConfigError(f"{sweep}: MLflow has no trial of such a sweep; give a sweep's name, its folder or its summary run's id")
    experiment = _experiment(tracking, [run for run in (summary, of_trials[0]) if run])
    metric = experiment.sweep.metric if experiment and experiment.sweep else "val/AP"
    params = [run.params for run in of_trials]
    axes = axes_of(params, experiment)
    values = [_trial_values(p, experiment) for p in params]
    costs = _costs(values, experiment)
    evolved = any(LINEAGE in run.tags for run in of_trials)
    trials = [
        Trial(
            run.run_id,
            run.name,
            run.tags.get("tood.outcome", run.status.lower()),
            run.params.get("seed", ""),
            {axis: _typed(run.params[axis]) for axis in axes if axis in run.params},
            run.metrics.get(f"best_{metric.removeprefix('val/')}", run.metrics.get(metric)),
            None if run.seconds is None else run.seconds / 60,
            published.target(experiment.sweep, of_trial) if experiment and experiment.sweep else None,
            cost if run.params else None,  # one that failed at once has said nothing of itself
            run.tags.get(LINEAGE, run.tags.get("tood.trial", "")) if evolved else "",
        )
        for run, of_trial, cost in zip(of_trials, values, costs, strict=True)
    ]
    trials.sort(key=lambda t: (t.value is None, -(t.value or 0), t.name))
    curves = {t.run_id: history(tracking, t.run_id, metric) for t in trials[:CURVES] if t.value is not None}
    about = experiment.description if experiment else ""
    return Facts(sweep, about, metric, axes, trials, curves, summary, experiment)


def axes_of(params: Sequence[dict[str, str]], experiment: Experiment | None) -> list[str]:
    """Names of the parameters by which trials were told apart: those of the search space that differ, without echoes of others.

    Without an experiment every parameter that differs may be one; seeds are none.
    """
    names = list(dict.fromkeys(name for p in params for name in p))
    free: set[str] = set()
    if experiment and experiment.sweep:
        free = {_short(key, names) for key, axis in experiment.sweep.space.items() if not _is_choice(axis)}
        swept = {_short(key, names) for key in swept_keys(experiment.sweep.space)} | {CELL}
        names = [name for name in names if name in swept]
    differ = [name for name in names if name != "seed" and len({p.get(name) for p in params}) > 1]
    kept = [name for name in FIRST_AXES if name in differ]
    for name in differ:
        if name in free or (name not in kept and not any(_echoes(params, name, other) for other in kept)):
            kept.append(name)
    return list(dict.fromkeys(kept))[:AXES]


def per_class(tracking: str, trial: Trial, curve: Sequence[tuple[float, float]]) -> dict[str, float]:
    """AP of every class at the trial's best epoch, or at its last where that is all that was kept; empty without."""
    at_end = bool(curve) and max(curve, key=lambda point: point[1])[0] == curve[-1][0]
    with tempfile.TemporaryDirectory() as folder:
        for when in ("last", "best") if at_end else ("best", "last"):
            file = artifact(tracking, trial.run_id, f"{when}/per_class.json", Path(folder))
            if file is not None:
                return {name: figures["AP"] for name, figures in json.loads(file.read_text()).items() if figures["AP"] >= 0}
    return {}


def _experiment(tracking: str, runs: Sequence[PastRun]) -> Experiment | None:
    """The sweep's experiment as its summary keeps it, or a trial where there is no summary yet; None if it cannot be read."""
    for run in runs:
        with tempfile.TemporaryDirectory() as folder:
            values = experiment_values(tracking, run.run_id, Path(folder))
        if values:
            try:
                return experiment_of(values)
            except ConfigError:  # another version's keys: the report does without what only the experiment says
                return None
    return None


def _costs(trials: Sequence[dict[str, Any]], experiment: Experiment | None) -> list[Cost | None]:
    """Of each trial's model; None where models are too many or cannot be told. Assignment does not change a model."""
    if experiment is None:
        return [None] * len(trials)
    models = [{key: value for key, value in trial.items() if _shapes_model(key)} for trial in trials]
    keys = [json.dumps(model, sort_keys=True) for model in models]
    distinct = dict(zip(keys, models, strict=True))
    if len(distinct) > MODELS:
        return [None] * len(trials)
    plain, found = to_dict(experiment), {}
    for key, model in distinct.items():
        try:
            found[key] = count_cost(experiment_of(plain, model).model)
        except ToodError:
            found[key] = None
    return [found[key] for key in keys]


def _shapes_model(key: str) -> bool:
    return key.startswith("model.") and (not key.startswith("model.objective.") or key.endswith(".name"))


def _trial_values(params: dict[str, str], experiment: Experiment | None) -> dict[str, Any]:
    """What the trial set, by dotted keys, from the parameters that MLflow keeps as text."""
    if experiment is None or experiment.sweep is None:
        return {}
    named = {key: _short(key, params) for key in swept_keys(experiment.sweep.space)}
    return {key: yaml.safe_load(params[name]) for key, name in named.items() if name in params}


def _short(key: str, names: Sequence[str] | dict[str, str]) -> str:
    """The name under which `flat_params` logs a dotted key."""
    known = {path: name for name, path in PARAMS.items()}
    return known.get(key) or (key if key in names else key.rpartition(".")[2])


def _is_choice(axis: Any) -> bool:
    return isinstance(axis, dict) and "choices" in axis


def _echoes(params: Sequence[dict[str, str]], name: str, other: str) -> bool:
    """Whether a parameter says nothing that another does not: each is known once the other is, and all is once the cell is."""
    pairs = {(p.get(other), p.get(name)) for p in params}
    known = len(pairs) == len({first for first, _ in pairs})
    return known and (other == CELL or len(pairs) == len({second for _, second in pairs}))


def _typed(text: str) -> Word:
    try:
        return float(text)
    except ValueError:
        return text
