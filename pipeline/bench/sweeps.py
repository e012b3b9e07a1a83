"""What a sweep costs beside its training: real sweeps of trials that learn nothing, part by part."""

import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from pipeline import cluster
from pipeline.bench.empty_trial import EPOCHS, learn_nothing, seconds_of
from pipeline.bench.experiment import quietly, small_experiment
from pipeline.config import experiment_of
from pipeline.sweep import Values, make_plan, run_sweep
from tood.bench.cases import QUICK, Sizes
from tood.bench.growth import Growth, growth_of

TRIALS = (1, 2, 3)
PARTS = ("plan", "track", "train")  # beside which Tune's own share is what is left of a sweep
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
                run_sweep(plan, quietly, learn_nothing)
                whole = time.perf_counter() - started
                took |= {part: seconds_of(plan, part) for part in PARTS[1:]}
                took["tune"] = max(LEAST, whole - sum(took.values()))
                for part, own in took.items():
                    spent[part].append(own)
    for part, own in spent.items():
        yield growth_of(f"sweep {part}", "trials", counts, [[s] for s in own])
    yield growth_of("sweep, whole", "trials", counts, [[sum(own)] for own in zip(*spent.values(), strict=True)])


def _values(root: Path) -> Values:
    search = {"search": "random", "samples": 1, "space": {"train.lr": {"loguniform": [0.001, 0.1]}}, "max_concurrent": 1}
    return small_experiment(root, images=2, epochs=EPOCHS) | {"sweep": search}
