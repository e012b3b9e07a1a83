"""Nights in a row by the command itself, on a repository with real commits: clean ones pass, planted regressions fail by name."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient

from tests.tiny import write_dataset, write_experiment

pytestmark = [pytest.mark.system, pytest.mark.timeout(3600)]

ROOT = Path(__file__).parents[2]
SIGN = ("tood/losses.py", "return 1 - aligned_giou(boxes, targets)", "return 1 + aligned_giou(boxes, targets)")
LOAD = "[load_sample(order.record, self.config, training=self.training, **order.how) for order in orders]"
TWICE = ("tood/data/loader_processes.py", f"samples = {LOAD}", f"samples = [{LOAD} for _ in range(2)][-1]")
BUDGET = ["train.optimizer=adamw", "train.lr=0.004", "train.epochs=12", "train.milestones=[10]", "train.evaluate_every=12",
          "train.clip_norm=35", "model.backbone.frozen_stages=4"]  # fmt: skip
QUICK = [*BUDGET, "train.epochs=2", "train.milestones=[1]", "train.evaluate_every=2"]


class Project:
    """A repository with the project's own code, a suite beside it, and the command run by that code."""

    def __init__(self, folder: Path):
        self.folder, self.root = folder, folder / "project"
        for part in ("tood", "pipeline", "experiments"):
            shutil.copytree(ROOT / part, self.root / part, ignore=shutil.ignore_patterns("__pycache__"))
        (self.root / ".gitignore").write_text("__pycache__/\n")
        write_dataset(folder / "data", train=32, val=16)
        write_experiment(folder)
        self.git("init", "-q", "-b", "main")
        self.commit("The beginning")

    def git(self, *words: str) -> str:
        who = ["-c", "user.name=Tester", "-c", "user.email=tester@example.org"]
        return subprocess.run(["git", *who, *words], cwd=self.root, check=True, capture_output=True, text=True).stdout.strip()

    def commit(self, subject: str, edit: tuple[str, str, str] | None = None) -> str:
        """A commit that makes an edit (file, old text, new text), or changes nothing that runs."""
        if edit:
            file = self.root / edit[0]
            text = file.read_text()
            assert text.count(edit[1]) == 1, edit
            file.write_text(text.replace(edit[1], edit[2]))
        with (self.root / "NOTES").open("a") as notes:
            notes.write(f"{subject}\n")
        self.git("add", "-A")
        self.git("commit", "-q", "-m", subject)
        return self.git("rev-parse", "HEAD")

    def suite(self, settings: list[str], seeds: list[int], seconds: float) -> Path:
        entry = {"name": "squares", "experiment": str(self.folder / "tiny.yaml"), "settings": settings}
        file = self.folder / "night.yaml"
        values = {
            "parity": [{"name": "evaluators", "images": 40}],
            "speed": [entry | {"name": "cost", "seconds": seconds}],
            "accuracy": [entry | {"seeds": seeds, "metrics": ["val/AP", "val/AP50"], "noise": 0.015, "model": "squares"}],
        }
        file.write_text(yaml.safe_dump(values))
        return file

    def start(self, *words: str) -> subprocess.Popen:
        environment = os.environ | {"PYTHONPATH": str(self.root), "MLFLOW_DISABLE_TELEMETRY": "true"}
        command = [sys.executable, "-P", "-m", "pipeline.cli", "nightly", str(self.folder / "night.yaml"), *words,
                   f"output={self.folder / 'runs'}"]  # fmt: skip
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def night(self, date: str, *words: str) -> tuple[int, str, str, dict]:
        """Exit code, what it printed, what it said, and the verdict."""
        process = self.start("--night", date, "--json", *words)
        out, said = process.communicate(timeout=1800)
        last = out.strip().splitlines()[-1] if out.strip() else ""
        verdict = json.loads(last) if last.startswith("{") else {}
        print(f"--- {date}: exit {process.returncode}\n{out.partition('{')[0][-3000:]}")
        return process.returncode, out, said, verdict

    def runs(self, kind: str) -> list:
        client = MlflowClient(f"sqlite:///{self.folder / 'runs/mlflow.db'}")
        experiment = client.get_experiment_by_name("nightly-night").experiment_id
        return client.search_runs([experiment], f"tags.`tood.kind` = '{kind}'", order_by=["attributes.start_time ASC"])


@pytest.fixture
def project(tmp_path) -> Project:
    return Project(tmp_path)


def failed(verdict: dict) -> set[str]:
    return {judged["metric"] for judged in verdict["judged"] if judged["status"] == "failed"}


def test_two_clean_nights_pass_and_planted_regressions_fail_by_name(project):
    project.suite(BUDGET, [0, 1], seconds=1.0)
    code, _, said, first = project.night("2026-11-01")
    assert (code, first["verdict"]) == (0, "passed"), said[-3000:]
    assert "models:/squares/1 registered: it is the first" in first["promoted"][0]

    project.commit("Words alone")
    second_night = project.start("--night", "2026-11-02", "--json")
    wait_for(lambda: held_until(project) > time.time(), 120)
    code, _, said, _ = project.night("2026-11-02")  # while the other one is at it
    assert code == 2
    assert "suite night runs already: held by" in said
    out, _ = second_night.communicate(timeout=1800)
    assert second_night.returncode == 0, out[-3000:]
    second = json.loads(out.strip().splitlines()[-1])
    assert (second["verdict"], second["promoted"]) == ("passed", [])
    assert [row[2] for row in second["commits"]] == ["Words alone"]

    count, started = len(project.runs("nightly-training")), time.monotonic()
    code, _, said, again = project.night("2026-11-02")  # the same night: its verdict, nothing measured
    assert (code, again["run_id"]) == (0, second["run_id"])
    assert "has its verdict already" in said
    assert time.monotonic() - started < 60
    assert len(project.runs("nightly-training")) == count == 4

    good = project.commit("More words")
    culprit = project.commit("Boxes as they should not be", SIGN)
    project.commit("Words after it")
    code, out, said, third = project.night("2026-11-03", "--since", "last-passed")
    assert code == 1
    assert third["verdict"] == "failed"
    assert "squares/val/AP" in failed(third)
    assert failed(third) <= {"squares/val/AP", "squares/val/AP50"}
    assert "FAILED squares/val/AP: " in out
    assert " below the " in out
    for subject in ("More words", "Boxes as they should not be", "Words after it"):
        assert subject in out
    assert f"first bad commit: {culprit[:10]} Boxes as they should not be" in out
    assert third["promoted"] == []
    assert project.git("status", "--porcelain") == ""
    assert len(project.git("worktree", "list").splitlines()) == 1

    project.git("reset", "-q", "--hard", good)
    slow = project.commit("A loader that does all twice", TWICE)
    code, out, said, fourth = project.night("2026-11-04", "--since", good)  # judged by the first two nights: the third had failed
    assert code == 1
    assert failed(fourth) == {"cost/loader"}
    assert "FAILED cost/loader: " in out
    assert "times as slow" in out
    assert next(j["nights"] for j in fourth["judged"] if j["metric"] == "cost/loader") == 2
    assert f"first bad commit: {slow[:10]}" in out

    verdicts = [run.data.tags["tood.verdict"] for run in project.runs("nightly")]
    assert verdicts == ["passed", "passed", "failed", "failed"]
    assert {run.info.status for run in project.runs("nightly")} == {"FINISHED"}
    versions = MlflowClient(f"sqlite:///{project.folder / 'runs/mlflow.db'}").search_model_versions("name = 'squares'")
    assert len(versions) == 1  # a failed night registers nothing


def test_a_killed_night_goes_on_where_it_was(project):
    project.suite(BUDGET, [0, 1], seconds=0.3)
    process = project.start("--night", "2026-11-01")
    wait_for(lambda: len(finished(project)) == 1, 300)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert project.runs("nightly")[0].info.status == "RUNNING"
    code, _, said, _ = project.night("2026-11-01")
    assert code == 2
    assert "runs already" in said
    wait_for(lambda: held_until(project) < time.time(), 90)
    code, _, said, verdict = project.night("2026-11-01")
    assert (code, verdict["verdict"]) == (0, "passed"), said[-3000:]
    assert "night 2026-11-01 goes on where it was left" in said
    assert "seed0: was finished before the interruption" in said
    assert {run.info.status for run in project.runs("nightly") + project.runs("nightly-training")} == {"FINISHED"}
    assert (len(project.runs("nightly")), len(project.runs("nightly-training"))) == (1, 2)

    process = project.start("--night", "2026-11-02")
    wait_for(lambda: len(project.runs("nightly")) == 2, 120)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    assert process.returncode == 130
    last = project.runs("nightly")[-1]
    assert (last.info.status, last.data.tags["tood.verdict"]) == ("KILLED", "interrupted")
    assert held_until(project) == 0


def test_twenty_clean_reruns_raise_no_false_alarm(project):
    project.suite(QUICK, [0], seconds=1.0)
    verdicts = []
    for day in range(1, 21):
        code, _, said, verdict = project.night(f"2026-11-{day:02}")
        verdicts.append((code, failed(verdict) if verdict else said[-500:]))
    assert verdicts == [(0, set())] * 20


def finished(project: Project) -> list:
    try:
        return [run for run in project.runs("nightly-training") if run.info.status == "FINISHED"]
    except Exception:  # the database is being made
        return []


def held_until(project: Project) -> float:
    file = project.folder / "runs/store/nightly/night.lock"
    return json.loads(file.read_text())["until"] if file.exists() else 0.0


def wait_for(condition, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.5)
