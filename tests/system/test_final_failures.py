"""A run that diverges is not trained again and again: it would diverge again."""

import os
import subprocess
import sys

import pytest

from tests.system.chaos.ledger import read
from tests.tiny import write_experiment

pytestmark = pytest.mark.system


def test_a_run_that_diverges_ends_at_once(tmp_path):
    ledger, file = tmp_path / "ledger.jsonl", write_experiment(tmp_path)
    settings = ["train.lr=100", "train.warmup_steps=0", "train.evaluate_every=4", "train.log_every=1", "ray.max_failures=5"]
    command = [sys.executable, "-m", "tests.system.chaos.recorded", str(ledger), "tood", "train", str(file), *settings]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=240)
    assert done.returncode == 2, done.stderr[-3000:]
    assert "training has diverged" in done.stderr
    attempts = [event for event in read(ledger) if event["what"] == "begun" and (event["epoch"], event["batch"]) == (0, 0)]
    assert len(attempts) == 1
