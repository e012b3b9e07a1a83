"""A sweep resumed from another folder and with less room: what is said now counts, and nothing starts that does not fit."""

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

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

TRIALS, AT_ONCE = 5, 3
SWEEP = """
sweep:
  search: {search}
  samples: 5
  scheduler: {scheduler}
  space:
    model.objective.alpha: {{uniform: [0.5, 1.5]}}
"""


@pytest.mark.parametrize(("search", "scheduler"), [("random", "none"), ("optuna", "asha")])
def test_fewer_at_once_from_another_folder(tmp_path, search, scheduler):
    file = str(write_experiment(tmp_path, SWEEP.format(search=search, scheduler=scheduler)))
    here, there, log = tmp_path / "here", tmp_path / "there", tmp_path / "first.log"
    here.mkdir(), there.mkdir()
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "TUNE_GLOBAL_CHECKPOINT_S": "0.5"}
    command = [sys.executable, "-m", "tests.system.watched_trials", file]
    settings = [f"sweep.max_concurrent={AT_ONCE}", "output=runs"]
    with log.open("w") as out:
        driver = subprocess.Popen([*command, str(tmp_path / "a"), "600", *settings], cwd=here, env=env, stdout=out, stderr=out)
    family = []
    try:
        while len(list((tmp_path / "a").glob("under_way_*"))) < AT_ONCE or len(_saved(here)) < AT_ONCE:
            assert driver.poll() is None, log.read_text()[-3000:]
            time.sleep(0.3)
        family = psutil.Process(driver.pid).children(recursive=True)
        os.kill(driver.pid, signal.SIGKILL)
    finally:
        driver.kill()
        driver.wait()
    psutil.wait_procs(family, timeout=60)

    settings = ["sweep.max_concurrent=1", f"output={here / 'runs'}"]
    again = [*command, str(tmp_path / "b"), "1", "--resume", *settings]
    resumed = subprocess.run(again, cwd=there, env=env, capture_output=True, text=True, timeout=300)
    assert resumed.returncode == 0, resumed.stdout[-3000:] + resumed.stderr[-3000:]
    assert ", 1 at once," in resumed.stdout
    told = json.loads(resumed.stdout.splitlines()[-1])
    assert told["statuses"] == ["FINISHED"] * TRIALS
    assert told["most"] == 1
    assert list(there.iterdir()) == []
    client = MlflowClient(f"sqlite:///{here / 'runs' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tiny").experiment_id
    assert len(client.search_runs([experiment], "tags.`tood.kind` = 'trial'")) == TRIALS  # none was begun a second time


def _saved(folder: Path) -> list:
    """The trials in Tune's newest saved state."""
    states = sorted((folder / "runs").glob("*/ray/tune/experiment_state-*.json"))
    try:
        return json.loads(states[-1].read_text())["trial_data"] if states else []
    except ValueError:  # being written
        return []
