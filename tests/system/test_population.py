"""Population-based training for real: children begin with their parents' bits, MLflow says whose they are, a kill costs little."""

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

from pipeline.reports.sweep_facts import gather
from tests.system.watched_population import EPOCHS
from tood.checkpoint import load_model

pytestmark = [pytest.mark.system, pytest.mark.timeout(1500)]

STEPS = 4  # an epoch


@pytest.fixture(scope="module")
def population(tmp_path_factory):
    """A finished sweep whose driver was killed in its second generation: folder, births, MLflow's runs by trial, what was said."""
    folder = tmp_path_factory.mktemp("population")
    command = [sys.executable, "-m", "tests.system.watched_population", str(folder)]
    with (folder / "first.log").open("w") as log:
        driver = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            _wait_for_a_child(folder, driver)
            family = psutil.Process(driver.pid).children(recursive=True)
            os.kill(driver.pid, signal.SIGKILL)
            driver.wait(30)
        finally:
            driver.kill()
    _, alive = psutil.wait_procs(family, timeout=20)  # Ray's processes end once their driver is gone
    for process in alive:
        process.kill()
    done = subprocess.run([*command, "--resume"], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    ledger = json.loads((folder / "runs" / told["sweep"] / "population.json").read_text())
    client = MlflowClient(f"sqlite:///{folder / 'runs' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tiny").experiment_id
    runs = client.search_runs([experiment], "tags.`tood.kind` = 'trial'")
    return folder, told, ledger, client, {run.data.tags["tood.trial"]: run for run in runs}, done.stdout


def test_a_childs_first_step_starts_from_its_parents_bits(population):
    folder, told, ledger, *_ = population
    births = [birth for generation in ledger for birth in generation["births"]]
    assert [birth["epoch"] for birth in births] == [1, 2]
    for birth in births:
        step = f"{STEPS * birth['epoch']:04d}"
        seen = {name: folder / "seen" / f"{told['sweep']}-{birth[name]}" for name in ("id", "parent", "replaces")}
        begun = moment(seen["id"] / f"begun-{step}")
        assert begun == moment(seen["parent"] / f"saved-{step}")
        assert begun != moment(seen["replaces"] / f"saved-{step}")
        assert begun != moment(seen["id"] / f"saved-{STEPS * (birth['epoch'] + 1):04d}")  # it has learned since


def test_mlflow_shows_whom_each_child_comes_from_and_what_was_changed(population):
    folder, told, ledger, client, runs, *_ = population
    births = [birth for generation in ledger for birth in generation["births"]]
    assert runs.keys() == {f"{i:03d}" for i in range(3 + len(births))}
    chain = {}
    for birth in births:
        run, parent = runs[birth["id"]], runs[birth["parent"]]
        chain[birth["id"]] = f"{chain.get(birth['parent'], birth['parent'])} @{birth['epoch']} > {birth['id']}"
        tags = {key.removeprefix("tood."): value for key, value in run.data.tags.items()}
        assert tags["parent_run"] == parent.info.run_id
        assert tags["parent_epoch"] == str(birth["epoch"])
        assert tags["replaces"] == runs[birth["replaces"]].info.run_id
        assert tags["lineage"] == chain[birth["id"]]
        assert birth["changed"]
        for key, (old, new) in birth["changed"].items():
            word = key.rpartition(".")[2]
            assert float(parent.data.params[word]) == pytest.approx(old)
            assert float(run.data.params[word]) == pytest.approx(new)
            assert f"{word} {old:.4g} -> {new:.4g}" in tags["changed"]
        points = {m.step: m.value for m in client.get_metric_history(run.info.run_id, "val/AP")}
        assert min(points) == STEPS * birth["epoch"]
        theirs = {m.step: m.value for m in client.get_metric_history(parent.info.run_id, "val/AP")}
        assert points[min(points)] == theirs[min(points)]
    facts = gather(told["sweep"], f"sqlite:///{folder / 'runs' / 'mlflow.db'}")
    assert {trial.lineage for trial in facts.trials} == {chain.get(name, name) for name in runs}


def test_a_resumed_population_runs_nothing_twice_and_everything_to_its_end(population):
    folder, told, ledger, client, runs, said = population
    assert said.count(" done in ") <= 3 + 3  # epochs after the kill: what was left of the second generation, and the third
    for name in ("000", "001", "002"):
        first = folder / "seen" / f"{told['sweep']}-{name}" / f"saved-{STEPS:04d}"
        assert len(first.read_text().splitlines()) == 1  # of a generation that was over
    replaced = {birth["replaces"] for generation in ledger for birth in generation["births"]}
    for trial in told["trials"]:
        run = runs[trial["id"]]
        assert trial["status"] == ("STOPPED" if trial["id"] in replaced else "FINISHED")
        assert run.info.status == "FINISHED"
        steps = [m.step for m in client.get_metric_history(run.info.run_id, "val/AP")]
        assert steps == sorted(set(steps))
        assert (steps[-1] == STEPS * EPOCHS) == (trial["id"] not in replaced)
    best = told["trials"][0]
    model = load_model(folder / "runs" / "store" / best["prefix"] / "model")
    assert model.info.config_hash == runs[best["id"]].data.tags["config_hash"]
    assert model.info.config["train"]["lr"] == best["values"]["train.lr"]


def moment(file: Path) -> str:
    """The hash at that moment, which a repeated epoch must not change."""
    (seen,) = set(file.read_text().splitlines())
    return seen


def _wait_for_a_child(folder: Path, driver: subprocess.Popen) -> None:
    """Until a trial of the second generation has done its epoch, and the generation is not over."""
    end = time.monotonic() + 300
    while time.monotonic() < end:
        assert driver.poll() is None, (folder / "first.log").read_text()[-3000:]
        if list((folder / "seen").glob(f"*/saved-{2 * STEPS:04d}")):
            return
        time.sleep(0.1)
    raise AssertionError(f"no second generation within 300 s:\n{(folder / 'first.log').read_text()[-3000:]}")
