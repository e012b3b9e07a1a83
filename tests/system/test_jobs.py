"""`tood submit` and `tood jobs` against a real Ray cluster with a token: run, join, refuse, detach, stop; and no secret travels."""

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

from pipeline.jobs.server import JobServer
from tests.ray_head import Head, ray_head, write_clusters
from tests.tiny import write_experiment

pytestmark = pytest.mark.system

CANARY = "c4n4ry-Wx81mzQpL0"
SWEEP = """
sweep:
  max_concurrent: 1
  space:
    model.objective.alpha: [0.5, 1.0]
"""
PATIENCE = 500


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    folder = tmp_path_factory.mktemp("jobs")
    with ray_head(folder) as started:
        write_clusters(started, environment={"AWS_DEFAULT_REGION": "eu-north-1"})
        write_experiment(folder, SWEEP)
        yield started


def start(head: Head, *words: str) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "AWS_SECRET_ACCESS_KEY": CANARY}
    command = [sys.executable, "-m", "pipeline.cli", *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # A shell's `&` lets its children ignore Ctrl-C, these tests' too; here somebody sits at the terminal.
    hears = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    return subprocess.Popen(command, cwd=head.folder, env=environment, start_new_session=True, **pipes, **hears)


def tood(head: Head, *words: str, code: int = 0) -> tuple[str, str]:
    process = start(head, *words)
    try:
        out, err = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert process.returncode == code, out[-3000:] + err[-3000:]
    assert "Traceback" not in err
    return out, err


def server(head: Head) -> JobServer:
    return JobServer(head.jobs, head.token_file.read_text())


def test_a_verb_runs_as_a_job_once(head):
    out, err = tood(head, "submit", "cost", "demo", "--size", "320x320")
    assert "GMAC" in out  # of the job's log
    assert "carries" in err
    assert "succeeded after" in err
    out, err = tood(head, "submit", "cost", "demo", "--size", "320x320", "--json")
    again = json.loads(out)
    assert (again["status"], again["started_now"], again["experiment"]) == ("SUCCEEDED", False, "demo")
    assert [job["id"] for job in json.loads(tood(head, "jobs", "--json")[0])] == [again["id"]]
    assert "GMAC" in tood(head, "jobs", "logs", again["id"])[0]


def test_a_failed_job_says_why_and_is_not_repeated_unasked(head):
    words = ["submit", "evaluate", "demo", "--model", "/nowhere"]
    out, _ = tood(head, *words, code=2)
    assert "error: /nowhere: no such model folder or file" in out
    assert "--again" in tood(head, *words, code=2)[1]


def test_a_sweep_is_joined_left_alone_and_stopped_with_nothing_left_behind(head):
    words = ["submit", "sweep", "tiny.yaml", "train.epochs=500", "output=runs"]
    job = json.loads(tood(head, *words, "--detach", "--json")[0])
    assert job["started_now"]
    joined = start(head, *words)
    try:
        for line in joined.stdout:  # from the log's beginning
            if "epoch 2 done" in line:
                break
        assert joined.poll() is None
        joined.send_signal(signal.SIGINT)
        _, err = joined.communicate(timeout=60)
    finally:
        joined.kill()
    assert joined.returncode == 0
    assert "runs already" in err
    assert f"tood jobs logs {job['id']} --follow" in err
    assert server(head).find(job["id"]).status == "RUNNING"
    assert "leave out --again" in tood(head, *words, "--again", code=2)[1]

    begin = time.monotonic()
    stopped = json.loads(tood(head, "jobs", "stop", job["id"], "--json")[0])
    assert (stopped["status"], stopped["left"]) == ("STOPPED", [])
    print(f"stopped and gone after {time.monotonic() - begin:.1f} s")
    names = [" ".join(process.cmdline()) for process in head.processes()]
    assert not [name for name in names if "RayTrainWorker" in name or "pipeline.cli" in name or "ImplicitFunc" in name]
    client = MlflowClient(f"sqlite:///{head.folder}/lab/runs/mlflow.db")
    experiment = client.get_experiment_by_name("tiny")
    assert [run.info.status for run in client.search_runs([experiment.experiment_id])] == ["KILLED"]
    assert tood(head, "jobs", "stop", job["id"])[0].startswith(f"{job['id']}: had ended before, stopped")


def test_no_secret_of_the_submitting_shell_reached_the_cluster(head):
    known = server(head)._client.list_jobs()
    assert known
    assert CANARY not in "".join(str(details) for details in known)
    for process in head.processes():
        try:
            assert CANARY not in str(process.environ())
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue


def test_the_doctor_looks_at_the_cluster(head):
    out, _ = tood(head, "doctor", "tiny.yaml", "--cluster", "here", "--json")
    found = {finding["check"]: finding for finding in json.loads(out)["findings"]}
    assert found["ray"]["state"] == "ok"
    assert "1 node with 4 CPUs" in found["ray"]["says"]
    out, _ = tood(head, "doctor", "tiny.yaml", "ray.workers=2", "ray.cpus_per_worker=3", "--cluster", "here", code=1)
    assert "lower ray.workers" in out
