"""A trial of a sweep that learns nothing, in its own processes: all that surrounds a training run, and no training.

Apart from the sweep that is timed, so that its processes import what those of a real trial do, and no more.
"""

import time
from pathlib import Path

from ray import tune

from pipeline.bench.launch import launch
from pipeline.config import experiment_of, to_yaml
from pipeline.site import Site
from pipeline.tracking.facts import flat_params
from pipeline.tracking.runs import Run
from pipeline.trials import Plan, Values
from tood.config import to_dict

EPOCHS = 12  # whose figures are tracked


def learn_nothing(plan: Plan, site: Site, gpus: float, trial: Values) -> None:
    """In place of `pipeline.trials.run_trial`. Notes in the experiment's output what its parts took: `seconds_of` reads it."""
    trial_id, experiment = tune.get_context().get_trial_id(), experiment_of(plan.values, trial)
    started = time.perf_counter()
    tracked = Run.open(site.tracking, site.experiment_id, identity=f"{plan.sweep}/{trial_id}", name=trial_id)
    tracked.params(flat_params(to_dict(experiment)))
    tracked.text(to_yaml(experiment), "experiment.yaml")
    for epoch in range(EPOCHS):
        tracked.metrics({f"val/{figure}": 0.5 for figure in ("AP", "AP50", "AP75")}, step=epoch, epoch=epoch)
    tracked.finish("FINISHED")
    _note(plan, trial_id, "track", started)
    started = time.perf_counter()
    launch(_nothing, site.ray_storage(experiment, plan.sweep), name=f"{plan.sweep}-{trial_id}")
    _note(plan, trial_id, "train", started)
    tune.report({experiment.sweep.metric: 0.5, "epoch": EPOCHS, "last": True})


def seconds_of(plan: Plan, part: str) -> float:
    """Of all trials of a sweep: "track" or "train"."""
    return sum(float(file.read_text()) for file in _notes(plan).glob(f"{plan.sweep}-*-{part}"))


def _nothing() -> None:
    pass


def _note(plan: Plan, trial_id: str, part: str, started: float) -> None:
    _notes(plan).mkdir(exist_ok=True)
    (_notes(plan) / f"{plan.sweep}-{trial_id}-{part}").write_text(str(time.perf_counter() - started))


def _notes(plan: Plan) -> Path:
    return Path(plan.values["output"]) / "took"
