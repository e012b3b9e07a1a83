"""A sweep whose driver is killed or interrupted goes on by --resume: no finished trial runs again, no MLflow run is made twice."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from tests.tiny import write_experiment

pytestmark = pytest.mark.system

SWEEP = """
sweep:
  max_concurrent: 1
  space:
    model.objective.alpha: [0.5, 1.0, 1.5]
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)])
def test_resume_after_the_driver_was_killed_or_interrupted(tmp_path, number, code):
    experiment = write_experiment(tmp_path, SWEEP)
    command = [sys.executable, "-m", "pipeline.cli", "sweep", str(experiment), "train.epochs=8"]
    log = (tmp_path / "first.log").open("w")
    heeds = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}  # a shell's `&` lets its children ignore it
    driver = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, **heeds)
    client = MlflowClient(f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}")
    try:
        before = _wait_until_second_trial_runs(client, driver, tmp_path / "first.log")
        family = psutil.Process(driver.pid).children(recursive=True)
        os.kill(driver.pid, number)
        assert driver.wait(60) == code
    finally:
        driver.kill()
    psutil.wait_procs(family, timeout=60)  # Ray's processes end once their driver is gone
    for process in family:
        if process.is_running():
            process.kill()

    resumed = subprocess.run([*command, "--resume", "--json"], capture_output=True, text=True, timeout=560)
    assert resumed.returncode == 0, resumed.stdout[-3000:] + resumed.stderr[-3000:]
    outcome = json.loads(resumed.stdout.splitlines()[-1])
    assert [t["status"] for t in outcome["trials"]] == ["FINISHED"] * 3
    after = {r.info.run_id: r for r in _trials(client)}
    assert len(after) == 3
    assert set(before) <= set(after)
    finished = [run_id for run_id, run in before.items() if run.info.status == "FINISHED"]
    assert finished
    for run_id in finished:  # nothing was logged to them again
        assert _steps(client, run_id) == before[run_id].steps
        assert after[run_id].data.metrics["perf/epoch_seconds"] == before[run_id].data.metrics["perf/epoch_seconds"]
    for run in after.values():
        assert run.info.status == "FINISHED"
        steps = _steps(client, run.info.run_id)
        assert steps == sorted(set(steps))
        assert len(steps) == 8
    restarted = next(run_id for run_id in before if run_id not in finished)
    assert _first_seconds(client, restarted) == before[restarted].first_epoch_seconds  # its first epoch was not run again


def _wait_until_second_trial_runs(client: MlflowClient, driver: subprocess.Popen, log: Path) -> dict:
    """Runs as they were when one trial had finished and another had two epochs behind it."""
    end = time.monotonic() + 400
    while time.monotonic() < end:
        assert driver.poll() is None, log.read_text()[-3000:]
        time.sleep(0.3)
        runs = {r.info.run_id: r for r in _trials(client)}
        open_ones = [i for i, r in runs.items() if r.info.status == "RUNNING" and len(_steps(client, i)) >= 2]
        if open_ones and any(r.info.status == "FINISHED" for r in runs.values()):
            for run_id, run in runs.items():
                run.steps, run.first_epoch_seconds = _steps(client, run_id), _first_seconds(client, run_id)
            return runs
    raise AssertionError(f"no second trial within 400 s:\n{log.read_text()[-3000:]}")


def _trials(client: MlflowClient) -> list:
    experiment = client.get_experiment_by_name("tiny")
    return client.search_runs([experiment.experiment_id], "tags.`tood.kind` = 'trial'") if experiment else []


def _steps(client: MlflowClient, run_id: str) -> list[int]:
    return [m.step for m in client.get_metric_history(run_id, "val/AP")]


def _first_seconds(client: MlflowClient, run_id: str) -> float:
    return client.get_metric_history(run_id, "perf/epoch_seconds")[0].value
