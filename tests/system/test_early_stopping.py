"""Early stopping on Ray: a trial that ended early is finished, and there is nothing left to resume."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.tiny import write_experiment

pytestmark = pytest.mark.system

NEVER_BETTER = ["train.early_stopping.patience=1", "train.early_stopping.min_delta=1"]  # by more than AP can: ends after 2 of 4
SWEEP = """
sweep:
  space:
    train.early_stopping.patience: [1, 2]
"""


def tood(*words: str) -> str:
    done = subprocess.run([sys.executable, "-m", "pipeline.cli", *words], capture_output=True, text=True, timeout=560)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def epochs_of(folder: Path, kind: str) -> list[list[int]]:
    """Steps at which each MLflow run of a kind logged its figure, in order."""
    client = MlflowClient(f"sqlite:///{folder / 'runs' / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("tiny").experiment_id], f"tags.`tood.kind` = '{kind}'")
    assert {r.info.status for r in runs} == {"FINISHED"}
    return sorted([m.step for m in client.get_metric_history(r.info.run_id, "val/AP")] for r in runs)


def test_trials_that_end_early_are_finished(tmp_path):
    experiment = write_experiment(tmp_path, SWEEP)
    out = tood("sweep", str(experiment), *NEVER_BETTER, "sweep.max_concurrent=1", "--json")
    outcome = json.loads(out.splitlines()[-1])
    assert [t["status"] for t in outcome["trials"]] == ["FINISHED"] * 2
    assert epochs_of(tmp_path, "trial") == [[4, 8], [4, 8, 12]]
    assert out.count("early stop: val/AP") == 2


def test_a_run_that_ended_early_is_not_gone_on_with(tmp_path):
    experiment = write_experiment(tmp_path)
    first = tood("train", str(experiment), *NEVER_BETTER)
    assert "early stop: val/AP" in first
    assert "was not exceeded by more than 1 in 1 epochs" in first
    again = tood("train", str(experiment), *NEVER_BETTER, "--resume")
    assert "loss" not in again  # not one line of progress
    assert epochs_of(tmp_path, "train") == [[4, 8]]
