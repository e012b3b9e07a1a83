"""A sweep of many trials that train nothing: everything around training is real - Tune, its processes, MLflow, the ranking.

    python -m tests.system.fake_trials FOLDER TRIALS TRACKING_URI SERVER_LOG

prints a JSON line a finished trial: how many are done, the driver's memory, the requests that the MLflow server has answered.
"""

import json
import os
import sys
import time
from pathlib import Path

import psutil
from ray import tune

import pipeline.sweep
import pipeline.trials
from pipeline.experiment_files import load_values
from pipeline.tracking.runs import Run
from pipeline.trial_table import TrialTable
from tests.tiny import write_experiment

EPOCHS = 4
SWEEP = """
sweep:
  search: random
  samples: {trials}
  space:
    model.objective.alpha: {{uniform: [0.5, 1.5]}}
    model.objective.beta: {{uniform: [2, 8]}}
"""
real_trial = pipeline.trials.run_trial


def fake_fit(experiment, address, **_) -> None:
    """In place of training: figures that a run would report and log."""
    tracked, best = Run.attach(address.tracking, address.mlflow_run), 0.0
    for epoch in range(1, EPOCHS + 1):
        best = experiment.model.objective.alpha * epoch / 10
        tracked.metrics({"val/AP": best, "train/loss": 1 / epoch}, step=4 * epoch, epoch=epoch)
        reached = {"epoch": epoch, "last": epoch == EPOCHS, "best": best, "best_epoch": epoch, "best_prefix": ""}
        tune.report({"val/AP": best, **reached})
    tracked.deliver()


def fake_trial(*arguments) -> None:
    """Runs in the trial's own process."""
    pipeline.trials.fit = fake_fit
    real_trial(*arguments)


def main(folder: Path, trials: int, uri: str, log: Path) -> None:
    started = time.monotonic()

    class Table(TrialTable):
        done = 0

        def on_trial_complete(self, *arguments, **more) -> None:
            super().on_trial_complete(*arguments, **more)
            self.done += 1
            tell(self.done)

    def tell(done: int) -> None:
        memory = psutil.Process().memory_info().rss / 2**20
        requests = log.read_text().count('HTTP/1.1"')
        print(json.dumps({"done": done, "mb": memory, "requests": requests, "seconds": time.monotonic() - started}), flush=True)

    pipeline.sweep.TrialTable = Table
    file = write_experiment(folder, SWEEP.format(trials=trials))
    values = load_values(str(file), [f"tracking.uri={uri}", "sweep.max_concurrent=2", "ray.cpus_per_worker=1"])
    _, found = pipeline.sweep.run_sweep(pipeline.sweep.make_plan(values), lambda line: None, fake_trial)
    tell(len(found))
    assert [(trial.epochs, trial.status) for trial in found] == [(EPOCHS, "FINISHED")] * trials


if __name__ == "__main__":
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))
