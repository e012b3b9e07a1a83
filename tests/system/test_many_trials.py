"""Two hundred trials cost each what the first ones cost: the driver does not grow, MLflow is not asked more and more."""

import json
import os
import subprocess
import sys

import pytest

from tests.servers import mlflow_server

pytestmark = [pytest.mark.system, pytest.mark.timeout(3600)]
TRIALS = int(os.environ.get("TOOD_TRIALS", "200"))


def test_memory_and_requests_stay_flat(tmp_path):
    with mlflow_server(f"sqlite:///{tmp_path / 'mlflow.db'}", str(tmp_path / "artifacts"), folder=tmp_path / "server") as uri:
        command = [sys.executable, "-m", "tests.system.fake_trials", str(tmp_path / "lab"), str(TRIALS), uri]
        (tmp_path / "lab").mkdir()
        done = subprocess.run([*command, str(tmp_path / "server/mlflow.log")], capture_output=True, text=True, timeout=3500)
        assert done.returncode == 0, done.stderr[-3000:]
    told = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"done"')]
    assert [row["done"] for row in told] == [*range(1, TRIALS + 1), TRIALS]
    early, middle, late, end = (told[place] for place in (TRIALS // 10, TRIALS // 2, TRIALS - 1, TRIALS))
    before, after = (
        {name: (last[name] - first[name]) / (last["done"] - first["done"]) for name in ("mb", "requests", "seconds")}
        for first, last in ((early, middle), (middle, late))
    )
    print(f"a trial of the first half {before}, of the second {after}; at the end {end}")
    assert before["requests"] > 5  # they are counted
    assert after["requests"] < 1.1 * before["requests"]
    assert after["mb"] < 0.5  # MB a trial
    assert end["requests"] - late["requests"] < 10 * TRIALS  # the ranking
