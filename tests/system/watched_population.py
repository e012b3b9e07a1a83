"""A real sweep by population-based training whose workers write down what they hold: at the end of each epoch, and when they go on.

    python -m tests.system.watched_population FOLDER [--resume]

prints a JSON line of its trials. FOLDER/seen/RUN has a file for each such moment, `saved-STEP` or `begun-STEP`, with a hash
of the weights and of what the optimizer remembers.
"""

import hashlib
import json
import os
import sys
from pathlib import Path

import pipeline.generations
import pipeline.train
import pipeline.trials
from pipeline.experiment_files import load_values
from pipeline.sweep import make_plan, newest_plan, run_sweep
from tests.tiny import write_experiment
from tood import training
from tood.optimisation import optimizer_tensors

SWEEP = """
sweep:
  search: random
  samples: 3
  scheduler: pbt
  max_concurrent: 2
  space:
    train.lr: {loguniform: [0.0005, 0.02]}
    model.objective.alpha: {uniform: [0.5, 1.5]}
    model.objective.m: {int: [5, 20]}
"""
EPOCHS = 3
real_train_trial, real_work = pipeline.trials.train_trial, pipeline.train.work


def watched_train_trial(*arguments, **named) -> None:
    """Runs in a trial's own process."""
    pipeline.train.work = watched_work
    real_train_trial(*arguments, **named)


def watched_work(job: dict) -> None:
    """Runs in a worker."""
    folder = Path(job["experiment"]["output"]).parent / "seen" / job["address"]["run"]
    folder.mkdir(parents=True, exist_ok=True)
    go_on, save = training.go_on, training.save

    def note(what: str, run) -> None:
        content = hashlib.sha256()
        for name, tensor in sorted((run.model.state_dict() | optimizer_tensors(run.optimizer, run.model)).items()):
            content.update(name.encode() + tensor.contiguous().numpy().tobytes())
        with (folder / f"{what}-{run.step:04d}").open("a") as file:
            file.write(f"{content.hexdigest()}\n")

    def noted_go_on(run, *rest) -> None:
        go_on(run, *rest)
        note("begun", run)

    def noted_save(run, *rest, **more) -> None:
        save(run, *rest, **more)
        note("saved", run)

    training.go_on, training.save = noted_go_on, noted_save
    real_work(job)


def main(folder: Path, resume: bool) -> None:
    pipeline.generations.train_trial = watched_train_trial
    file = write_experiment(folder, SWEEP)
    values = load_values(str(file), [f"train.epochs={EPOCHS}", "train.milestones=[2]"])
    plan = newest_plan(values) if resume else make_plan(values)
    _, trials = run_sweep(plan)
    print(json.dumps({"sweep": plan.sweep, "trials": [trial.__dict__ for trial in trials]}))


if __name__ == "__main__":
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    main(Path(sys.argv[1]), "--resume" in sys.argv)
