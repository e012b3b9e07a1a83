"""Canaries in the shell that trains and submits: not one in Ray's sessions, job records, MLflow's databases, stores or logs."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from pipeline.jobs.server import JobServer
from tests.bad_inputs.canaries import VARIABLES, all_canaries, canary, contents, search
from tests.ray_head import Head, ray_head, write_clusters
from tests.tiny import write_experiment

pytestmark = pytest.mark.system

PATIENCE = 500


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    folder = tmp_path_factory.mktemp("secrets")
    with ray_head(folder) as started:
        write_clusters(started, secrets={"HF_TOKEN": {"file": "lab_token"}})
        (folder / "lab_token").write_text(canary("lab_token"))
        write_experiment(folder)
        yield started


def tood(head: Head, short: Path, *words: str) -> str:
    environment = os.environ | {name: canary(name) for name in VARIABLES if not name.startswith("RAY_")}
    environment |= {"PYTHONPATH": str(Path(__file__).parents[2]), "HOME": str(head.folder), "RAY_TMPDIR": str(short)}
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", *words],
        cwd=head.folder, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout + done.stderr


@pytest.fixture
def short():
    """For the embedded Ray's session: sockets' paths may have 107 characters."""
    folder = Path(tempfile.mkdtemp(prefix="ts"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def test_no_canary_is_left_by_a_training_here_and_one_on_a_cluster(head, short):
    once = ("train", "tiny.yaml", "train.epochs=1", "train.milestones=[]", "model.objective.warmup_epochs=0")
    said = tood(head, short, *once, f"output={head.folder}/here", "--json")
    said += tood(head, short, "submit", "--cluster", "here", *once, "output=runs")
    said += tood(head, short, "jobs", "--cluster", "here", "--json")
    said += tood(head, short, "doctor", "tiny.yaml", "--cluster", "here", "--json")
    jobs = JobServer(head.jobs, head.token_file.read_text())._client.list_jobs()
    assert [job.status for job in jobs if job.submission_id] == ["SUCCEEDED"]
    for output in ("here", "lab/runs"):
        client = MlflowClient(f"sqlite:///{head.folder}/{output}/mlflow.db")
        runs = client.search_runs([client.get_experiment_by_name("tiny").experiment_id])
        assert {run.info.status for run in runs} == {"FINISHED"}
    (head.folder / "lab_token").unlink()  # where it is meant to be
    (session,) = [word.partition("=")[2] for word in psutil.Process(head.pid).cmdline() if word.startswith("--temp-dir=")]
    written = contents(head.folder, Path(session), short) | {
        "printed": said.encode(),
        "job records": json.dumps(str(jobs)).encode(),
    }
    for folder in (session, short):
        logs = [name for name in written if name.startswith(f"{folder}/") and "/session_" in name and "/logs/" in name]
        assert len(logs) > 10, "Ray's session is not where it was looked for"
    assert search(written, all_canaries().values()) == []
