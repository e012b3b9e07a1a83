"""The command line against real servers: a sweep on MLflow with PostgreSQL and an S3 bucket, its links in a browser, a pull."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.servers import S3Server, mlflow_server, postgres, s3_server
from tests.system.browser import browser_page, card, chromium, compare, curves, listed, pictures_of
from tests.tiny import write_experiment

pytestmark = pytest.mark.system

SWEEP = """
sweep:
  space:
    trial:
      choices:
        first: {model.objective.alpha: 0.5, model.objective.beta: 2.0, model.objective.m: 9, model.tower: t_head}
        second: {model.objective.alpha: 1.0, model.objective.beta: 6.0, model.objective.m: 13, model.tower: parallel}
"""
MODEL = "servers"


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    """An S3 server with a bucket, and MLflow on PostgreSQL that keeps its artifacts there."""
    folder = tmp_path_factory.mktemp("servers")
    with s3_server(folder / "s3") as s3:
        s3.make_bucket("lab")
        with postgres(folder) as database, mlflow_server(database, "s3://lab/mlflow", s3.env(), folder=folder / "mlflow") as uri:
            yield s3, uri


@pytest.fixture(scope="module")
def printed(servers, tmp_path_factory) -> str:
    """What `tood sweep` prints on these servers."""
    s3, uri = servers
    folder = tmp_path_factory.mktemp("sweep")
    file = write_experiment(folder, SWEEP)
    settings = [f"tracking.uri={uri}", "storage.url=s3://lab/tood", f"tracking.model={MODEL}"]
    done = tood("sweep", str(file), *settings, cwd=folder, s3=s3)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert s3.secret_key not in done.stdout + done.stderr
    return done.stdout


def tood(*arguments: str, cwd: Path, s3: S3Server, home: Path | None = None) -> subprocess.CompletedProcess:
    environment = {**os.environ, **s3.env(), "PYTHONPATH": str(Path(__file__).parents[2])}
    if home:
        home.mkdir()
        environment["HOME"] = str(home)
    command = [sys.executable, "-m", "pipeline.cli", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=540)


def test_every_trial_is_a_run_and_the_best_is_in_the_bucket(servers, printed):
    s3, uri = servers
    client = MlflowClient(uri)
    experiments = [e.experiment_id for e in client.search_experiments()]
    trials = client.search_runs(experiments, "tags.`tood.kind` = 'trial'")
    assert sorted(run.data.params["alpha"] for run in trials) == ["0.5", "1"]
    assert {run.info.status for run in trials} == {"FINISHED"}
    champion = client.get_model_version_by_alias(MODEL, "champion")
    assert champion.source.startswith("s3://lab/")
    key = champion.source.removeprefix("s3://lab/") + "/model.safetensors"
    assert s3.client().head_object(Bucket="lab", Key=key)["ContentLength"] > 100_000


@pytest.mark.skipif(not chromium(), reason="there is no Chromium on this machine (Debian: apt-get install chromium)")
def test_the_printed_links_show_curves_and_parameters_against_ap(printed, tmp_path):
    chart, side_by_side = (re.search(rf"^{name}: +(\S+)", printed, re.MULTILINE)[1] for name in ("curves", "compare"))
    with browser_page() as page:
        shown = curves(page, chart, ["val/AP"], tmp_path / "charts.png")
        assert [len(values) for values in shown["val/AP"].values()] == [4, 4]
        _, axes = compare(page, side_by_side, ["alpha", "beta", "m", "head"], "val/AP", tmp_path / "compare.png")
    assert sorted(axes["head"]) == ["parallel", "t_head"]
    assert sorted(axes["alpha"]) == [0.5, 1.0]
    assert len(axes["val/AP"]) == 2


@pytest.mark.skipif(not chromium(), reason="there is no Chromium on this machine (Debian: apt-get install chromium)")
def test_the_list_is_searched_by_tag_a_run_shows_its_pictures_and_a_version_its_card(servers, printed, tmp_path):
    _, uri = servers
    client = MlflowClient(uri)
    version = client.get_model_version_by_alias(MODEL, "champion")
    experiment = client.get_run(version.run_id).info.experiment_id
    search = "tags.`tood.kind` = 'trial'"
    trials = {run.info.run_id for run in client.search_runs([experiment], search)}
    with browser_page() as page:
        assert listed(page, uri, experiment, search, tmp_path / "list.png") == trials
        truth, first = pictures_of(page, uri, experiment, version.run_id, [0, 1], tmp_path / "pictures.png")
        assert truth != first
        said = card(page, uri, MODEL, version.version, "champion", tmp_path / "card.png")
    assert "val/AP" in said
    assert f"tood pull models:/{MODEL}@champion" in said


def test_trials_are_compared_by_their_ranks(servers, printed, tmp_path):
    s3, uri = servers
    first, second = re.search(r"tood compare (\S+/1) (\S+/2)", printed).groups()
    done = tood("compare", first, second, "--resamples", "100", "--json", "--set", f"tracking.uri={uri}", cwd=tmp_path, s3=s3)
    assert done.returncode == 0, done.stderr[-2000:]
    ranked = [subject["figures"]["AP"][0] for subject in json.loads(done.stdout)["subjects"]]
    client = MlflowClient(uri)
    experiments = [e.experiment_id for e in client.search_experiments()]
    best = [r.data.metrics["best_AP"] for r in client.search_runs(experiments, "tags.`tood.kind` = 'trial'")]
    assert ranked == pytest.approx(sorted(best, reverse=True), abs=1e-6)


def test_a_pull_from_an_empty_home_verifies_and_a_flipped_byte_is_refused(servers, printed, tmp_path):
    s3, uri = servers
    arguments = ["pull", f"models:/{MODEL}@champion", "--set", f"tracking.uri={uri}", "--output", "model"]
    done = tood(*arguments, cwd=tmp_path, s3=s3, home=tmp_path / "home")
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "model" / "model.safetensors").stat().st_size > 100_000

    source = MlflowClient(uri).get_model_version_by_alias(MODEL, "champion").source
    key = source.removeprefix("s3://lab/") + "/model.safetensors"
    weights = bytearray(s3.client().get_object(Bucket="lab", Key=key)["Body"].read())
    weights[5000] ^= 1
    s3.client().put_object(Bucket="lab", Key=key, Body=bytes(weights))
    (tmp_path / "again").mkdir()
    refused = tood(*arguments, cwd=tmp_path / "again", s3=s3, home=tmp_path / "home2")
    assert refused.returncode == 2
    assert "sha256" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (tmp_path / "again" / "model").exists()
