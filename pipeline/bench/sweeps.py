"""What a sweep costs beside its training: real sweeps of trials that learn nothing, part by part."""

import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from pipeline import cluster
from pipeline.bench.experiment import quietly, small_experiment
from pipeline.config import experiment_of, to_yaml
from pipeline.site import Site
from pipeline.sweep import Plan, Values, make_plan, run_sweep
from pipeline.tracking.facts import flat_params
from pipeline.tracking.runs import Run
from tood.bench.cases import QUICK, Sizes
from tood.bench.growth import Growth, growth_of
from tood.config import to_dict

TRIALS = (1, 2, 4)
PARTS = ("plan", "track", "train")  # beside which Tune's own share is what is left of a sweep
EPOCHS = 12
LEAST = 1e-9  # s: a share that is lost in the noise


def overheads(sizes: Sizes, device: torch.device, seconds: float) -> Iterator[Growth]:
    """Of the parts of sweeps of so many trials, one at a time, each with the figures of EPOCHS epochs, on an embedded Ray.

    plan     the trials listed and checked
    track    an MLflow run opened, described, given its figures and closed
    train    Ray Train's worker started, for nothing, and ended
    tune     the rest of the sweep: checks before the start, Ray Tune, what became of each trial
    """
    counts = TRIALS[:2] if sizes == QUICK else TRIALS
    spent: dict[str, list[float]] = {part: [] for part in (*PARTS, "tune")}
    with tempfile.TemporaryDirectory(prefix="tood-bench-") as folder:
        root = Path(folder)
        values = _values(root)
        with cluster.connected(experiment_of(values).ray, 1 + cluster.TRIAL_CPUS, say=quietly):
            for count in counts:
                started = time.perf_counter()
                plan = make_plan(values | {"sweep": values["sweep"] | {"samples": count}})
                plan = replace(plan, sweep=f"{plan.sweep}-{count}")
                took = {"plan": time.perf_counter() - started}
                run_sweep(plan, quietly, _learn_nothing)
                whole = time.perf_counter() - started
                for part in PARTS[1:]:
                    files = (root / "took").glob(f"{plan.sweep}-*-{part}")
                    took[part] = sum(float(file.read_text()) for file in files)
                took["tune"] = max(LEAST, whole - sum(took.values()))
                for part, own in took.items():
                    spent[part].append(own)
    for part, own in spent.items():
        yield growth_of(f"sweep {part}", "trials", counts, [[s] for s in own])
    yield growth_of("sweep, whole", "trials", counts, [[sum(own)] for own in zip(*spent.values(), strict=True)])


def _values(root: Path) -> Values:
    (root / "took").mkdir()
    search = {"search": "random", "samples": 1, "space": {"train.lr": {"loguniform": [0.001, 0.1]}}, "max_concurrent": 1}
    return small_experiment(root, images=2, epochs=EPOCHS) | {"sweep": search}


def _learn_nothing(plan: Plan, site: Site, gpus: float, trial: Values) -> None:
    """A trial of the sweep, in its own process: all that surrounds a training run, and no training."""
    from ray import train as ray_train
    from ray import tune
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.config import LoggingConfig

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
    storage = ray_train.RunConfig(
        name=f"{plan.sweep}-{trial_id}",
        storage_path=site.ray_storage(experiment, plan.sweep),
        logging_config=LoggingConfig(log_level="WARNING"),
    )
    TorchTrainer(_nothing, scaling_config=ray_train.ScalingConfig(num_workers=1), run_config=storage).fit()
    _note(plan, trial_id, "train", started)
    tune.report({experiment.sweep.metric: 0.5, "epoch": EPOCHS, "last": True})


def _nothing() -> None:
    pass


def _note(plan: Plan, trial_id: str, part: str, started: float) -> None:
    (Path(plan.values["output"]) / "took" / f"{plan.sweep}-{trial_id}-{part}").write_text(str(time.perf_counter() - started))
