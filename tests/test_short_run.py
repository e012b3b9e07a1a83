"""The whole road once, for real: a sweep by Ray Tune over Ray Train, on an MLflow server and an S3 server, with a worker
killed on its way; then what was registered is pulled, and refused once a byte of it is altered."""

import os
import re
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest
import ray
from mlflow import MlflowClient

from pipeline.errors import IntegrityError
from pipeline.experiment_files import load_values
from pipeline.publish import conclude
from pipeline.registry.models import pull
from pipeline.storage.opening import open_store
from pipeline.sweep import make_plan, run_sweep
from tests.servers import mlflow_server, s3_server
from tests.tiny import write_experiment
from tood.checkpoint import load_model

pytestmark = pytest.mark.short_run

SWEEP = """
sweep:
  space:
    head:
      choices:
        t_head: {model.tower: t_head}
        parallel: {model.tower: parallel}
"""


@pytest.fixture(scope="module")
def road(tmp_path_factory):
    """A finished sweep: its site, trials, version and folder; one of its workers was killed after an epoch."""
    folder = tmp_path_factory.mktemp("road")
    with s3_server(folder / "s3") as s3, pytest.MonkeyPatch.context() as patch:
        for name, value in s3.env().items():
            patch.setenv(name, value)
        s3.make_bucket("models")
        backend = f"sqlite:///{folder / 'mlflow.db'}"
        with mlflow_server(backend, "s3://models/mlflow", s3.env(), folder=folder / "mlflow") as mlflow:
            ray.init(address="local", num_cpus=4, include_dashboard=True, logging_level="ERROR", log_to_driver=False)
            stop = threading.Event()
            try:
                file = write_experiment(folder, SWEEP)
                settings = [f"tracking.uri={mlflow}", "storage.url=s3://models/tood", "tracking.model=squares"]
                killed: list[int] = []
                killer = threading.Thread(target=_kill_a_worker, args=("s3://models/tood", killed, stop), daemon=True)
                killer.start()
                plan = make_plan(load_values(str(file), settings))
                site, trials = run_sweep(plan)
                stop.set()
                killer.join(10)
                version = conclude(plan, site, trials)
                yield site, trials, version, folder, killed
            finally:
                stop.set()
                ray.shutdown()


def _kill_a_worker(url: str, killed: list[int], stop: threading.Event) -> None:
    """SIGKILL one training worker of this process's Ray, once a checkpoint of some run has been stored."""
    store = open_store(url)
    while not stop.wait(0.1):
        if not any(key.endswith("/manifest.json") and "/model/" not in key for key in store.list("checkpoints")):
            continue
        for process in psutil.Process().children(recursive=True):
            try:
                if "RayTrainWorker" in " ".join(process.cmdline()):
                    os.kill(process.pid, signal.SIGKILL)
                    killed.append(process.pid)
                    return
            except psutil.NoSuchProcess:
                continue
        time.sleep(0.05)


def test_the_sweep_finishes_although_a_worker_was_killed(road):
    _, trials, version, _, killed = road
    assert len(killed) == 1
    assert [t.status for t in trials] == ["FINISHED", "FINISHED"]
    assert all(t.epochs == 4 and t.best is not None for t in trials)
    assert version.is_champion


def test_every_trial_is_one_mlflow_run_with_each_epoch_once(road):
    site, trials, *_ = road
    client = MlflowClient(site.tracking)
    runs = client.search_runs([site.experiment_id], "tags.`tood.kind` = 'trial'")
    assert {r.info.run_id for r in runs} == {t.run_id for t in trials}
    assert {r.data.params["head"] for r in runs} == {"t_head", "parallel"}
    for run in runs:
        assert run.info.status == "FINISHED"
        steps = [m.step for m in client.get_metric_history(run.info.run_id, "val/AP")]
        assert sorted(steps) == sorted(set(steps))
        assert len(steps) == 4
        names = [file.path for file in client.list_artifacts(run.info.run_id, "images") if file.path.endswith(".png")]
        pictured = {int(re.search(r"detections\+step\+(\d+)\+", name)[1]) for name in names}
        assert 0 in pictured  # the truth alone, where MLflow's slider begins
        assert pictured > {0}
    summary = client.search_runs([site.experiment_id], "tags.`tood.kind` = 'sweep'")
    assert [s.info.status for s in summary] == ["FINISHED"]


def test_what_was_sampled_is_what_checkpoint_tracking_and_registry_say(road):
    site, trials, version, folder, _ = road
    model = load_model(pull("models:/squares@champion", site.tracking, folder / "pulled"))
    client = MlflowClient(site.tracking)
    registered = client.get_model_version("squares", str(version.version))
    best = client.get_run(trials[0].run_id)
    assert model.info.config["model"]["tower"] == trials[0].values["model.tower"] == best.data.params["head"]
    assert registered.tags["hp.head"] == best.data.params["head"]
    assert model.info.config_hash == registered.tags["config_hash"] == best.data.tags["config_hash"]


def test_an_altered_byte_in_the_bucket_is_refused(road):
    site, trials, _, folder, _ = road
    key = f"{trials[0].prefix}/model/model.safetensors"
    data = bytearray(site.store.get_bytes(key, limit=1 << 30))
    original = bytes(data)
    data[len(data) // 2] ^= 1
    site.store.delete(key)
    site.store.put_bytes(key, bytes(data))
    try:
        with pytest.raises(IntegrityError):
            pull("models:/squares@champion", site.tracking, folder / "altered")
        assert not Path(folder / "altered").exists()
    finally:
        site.store.delete(key)
        site.store.put_bytes(key, original)
