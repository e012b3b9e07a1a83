"""An ASHA sweep on a cluster whose driver is killed: nothing of it stays there, and every trial is what it says it is."""

import contextlib
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

from pipeline.config import experiment_of
from pipeline.experiment_files import load_values
from pipeline.registry.registration import register_run
from pipeline.storage.checkpoints import read_manifest
from pipeline.storage.opening import open_store
from tests.ray_head import Head, ray_head
from tests.tiny import write_experiment

pytestmark = [pytest.mark.system, pytest.mark.timeout(1200)]

TRIALS, EPOCHS = 6, 6
SWEEP = f"""
sweep:
  search: random
  samples: {TRIALS}
  scheduler: asha
  grace_epochs: 1
  reduction: 2
  max_concurrent: 2
  space:
    model.objective.alpha: {{uniform: [0.5, 1.5]}}
    model.objective.beta: {{uniform: [2, 8]}}
    train.lr: {{loguniform: [0.0001, 0.05]}}
"""
RAYS_OWN = tuple(f"ray::{name}" for name in ("IDLE", "DashboardAgent", "RuntimeEnvAgent", "_AutoscalingCoordinatorActor"))
PLACES = """
import json, ray, sys
ray.init(address=sys.argv[1], log_to_driver=False)
print(json.dumps(sorted({group["state"] for group in ray.util.placement_group_table().values()})))
"""


def test_nothing_stays_on_the_cluster_and_every_trial_is_the_one_that_was_drawn(tmp_path):
    file = str(write_experiment(tmp_path, SWEEP))
    with ray_head(tmp_path, cpus=4) as head:
        env = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(head.token_file)}
        settings = [f"ray.address={head.address}", f"train.epochs={EPOCHS}", "ray.workers=1"]
        command = [sys.executable, "-m", "pipeline.cli", "sweep", file, *settings]
        client = MlflowClient(f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}")
        with (tmp_path / "first.log").open("w") as log:
            driver = subprocess.Popen(command, env=env, stdout=log, stderr=log)
        try:
            _wait(lambda: _ended(client), driver, tmp_path / "first.log")
            os.kill(driver.pid, signal.SIGKILL)
        finally:
            driver.kill()
            driver.wait()
        kept = {run_id: _epochs(client, run_id) for run_id in _ended(client)}
        _cleared(head, env)

        resumed = subprocess.run([*command, "--resume", "--json"], env=env, capture_output=True, text=True, timeout=900)
        assert resumed.returncode == 0, resumed.stdout[-3000:] + resumed.stderr[-3000:]
        _cleared(head, env)

    trials = json.loads(resumed.stdout.splitlines()[-1])["trials"]
    assert len(trials) == TRIALS
    assert {trial["status"] for trial in trials} == {"FINISHED", "STOPPED"}
    assert all(trial["epochs"] < EPOCHS for trial in trials if trial["status"] == "STOPPED")
    after = {run.info.run_id: run for run in _runs(client)}
    assert after.keys() == {trial["run_id"] for trial in trials}
    assert kept
    for run_id, epochs in kept.items():
        assert _epochs(client, run_id) == epochs  # none of them was trained again

    values, tracking = load_values(file, settings), f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}"
    store = open_store((tmp_path / "runs" / "store").as_uri())
    for trial in trials:
        drawn = experiment_of(values, trial["values"])
        run = after[trial["run_id"]]
        version = register_run(tracking, trial["run_id"], f"trial-{trial['id']}")
        registered = client.get_model_version(version.name, version.version)
        assert {
            read_manifest(store, f"{trial['prefix']}/model").values["info"]["config_hash"],
            run.data.tags["config_hash"],
            registered.tags["config_hash"],
        } == {drawn.hash}
        assert float(run.data.params["alpha"]) == pytest.approx(drawn.model.objective.alpha)
        assert float(registered.tags["hp.alpha"]) == pytest.approx(drawn.model.objective.alpha)


def _wait(true, driver: subprocess.Popen, log: Path) -> None:
    end = time.monotonic() + 300
    while not true():
        under_way = driver.poll() is None and time.monotonic() < end
        assert under_way, log.read_text()[-3000:]
        time.sleep(0.3)


def _cleared(head: Head, env: dict[str, str]) -> None:
    """Of a sweep that has ended, in whatever way, nothing stays on the cluster."""
    end = time.monotonic() + 120
    while (left := (_at_work(head), _places(head, env))) != ([], ["REMOVED"]):
        assert time.monotonic() < end, left
        time.sleep(0.5)


def _runs(client: MlflowClient) -> list:
    experiment = client.get_experiment_by_name("tiny")
    return client.search_runs([experiment.experiment_id], "tags.`tood.kind` = 'trial'") if experiment else []


def _ended(client: MlflowClient) -> dict:
    with contextlib.suppress(Exception):  # the database is being made
        return {run.info.run_id: run for run in _runs(client) if run.info.status == "FINISHED"}
    return {}


def _epochs(client: MlflowClient, run_id: str) -> list[tuple[int, float]]:
    """(step, seconds) of each epoch that was trained."""
    return [(m.step, m.value) for m in client.get_metric_history(run_id, "perf/epoch_seconds")]


def _at_work(head: Head) -> list[str]:
    """Actors and tasks of jobs among the cluster's processes; some are Ray's own, one each for as long as a node lives."""
    found = []
    for process in head.processes():
        with contextlib.suppress(psutil.NoSuchProcess):
            title = " ".join(process.cmdline())
            if title.startswith("ray::") and not title.startswith(RAYS_OWN):
                found.append(title.strip())
    return found


def _places(head: Head, env: dict[str, str]) -> list[str]:
    """The states of all placement groups that there were."""
    done = subprocess.run([sys.executable, "-c", PLACES, head.address], env=env, capture_output=True, text=True, timeout=60)
    return json.loads(done.stdout) if done.returncode == 0 else [done.stderr]
