"""A sweep whose trials train nothing, and write down how many of them are under way.

    python -m tests.system.watched_trials EXPERIMENT FOLDER SECONDS [--resume] [key=value...]

Each trial takes SECONDS. The last line is JSON: the sweep, its trials' outcomes, and the most that were under way at once.
"""

import json
import sys
import time
from functools import partial
from pathlib import Path

from ray import tune

import pipeline.trials
from pipeline.experiment_files import load_values
from pipeline.sweep import make_plan, newest_plan, run_sweep


def wait(folder: Path, seconds: float, experiment, address, **_) -> None:
    """In place of training."""
    mine = folder / f"under_way_{address.run}"
    mine.touch()
    (folder / f"count_{address.run}").write_text(str(len(list(folder.glob("under_way_*")))))
    time.sleep(seconds)
    mine.unlink()
    epochs, value = experiment.train.epochs, experiment.model.objective.alpha
    tune.report({"val/AP": value, "epoch": epochs, "last": True, "best": value, "best_epoch": epochs, "best_prefix": ""})


def watched(folder: Path, seconds: float, *arguments) -> None:
    """Runs in the trial's own process."""
    pipeline.trials.fit = partial(wait, folder, seconds)
    pipeline.trials.run_trial(*arguments)


def main(experiment: str, folder: Path, seconds: float, *words: str) -> None:
    folder.mkdir()
    values = load_values(experiment, [word for word in words if "=" in word])
    plan = newest_plan(values) if "--resume" in words else make_plan(values)
    _, trials = run_sweep(plan, run_trial=partial(watched, folder, seconds))
    most = max(int(file.read_text()) for file in folder.glob("count_*"))
    print(json.dumps({"sweep": plan.sweep, "statuses": [trial.status for trial in trials], "most": most}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]), *sys.argv[4:])
