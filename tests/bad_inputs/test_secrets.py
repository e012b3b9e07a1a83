"""Canaries in every place a secret may come from; then all that writes is done, and not one of them is found anywhere."""

import json
import logging
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.cli import main
from tests.bad_inputs.canaries import FILES, VARIABLES, address, all_canaries, canary, contents, search
from tests.servers import free_ports

ALL = all_canaries()
CLUSTER = """clusters:
  lab:
    jobs: http://127.0.0.1:{port}
    token: {{env: LAB_RAY_TOKEN}}
    code: installed
    folder: /mnt/lab
    settings: {{tracking.uri: "sqlite:///{runs}/mlflow.db"}}
    environment: {{AWS_DEFAULT_REGION: us-east-1}}
    secrets: {{AWS_SECRET_ACCESS_KEY: {{file: lab_secret_key}}, MLFLOW_TRACKING_TOKEN: {{file: lab_token}}}}
"""


@pytest.fixture
def work(tmp_path, monkeypatch) -> Path:
    """A folder to write in, and canaries all around it."""
    secrets, work = tmp_path / "secrets", tmp_path / "work"
    for folder in (secrets, work, tmp_path / "home"):
        folder.mkdir()
    (port,) = free_ports(1)
    for name in VARIABLES:
        monkeypatch.setenv(name, canary(name))
    for name in FILES:
        (secrets / name).write_text(canary(name) + "\n")
    (secrets / "cluster.yaml").write_text(CLUSTER.format(port=port, runs=work / "runs"))
    (tmp_path / "home/.netrc").write_text(f"machine 127.0.0.1 login me password {canary('data')}\n")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("https_proxy", address("http", "proxy", f"127.0.0.1:{port}"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.chdir(work)
    return work


def test_the_search_finds_what_is_there(tmp_path):
    for name, secret in ALL.items():
        (tmp_path / name).write_text(f"x {secret} y")
    (tmp_path / "escaped").write_text(json.dumps({"uri": address("http", "tracking", "host")}))
    found = search(contents(tmp_path), ALL.values())
    assert len(found) >= len(ALL) + 1
    assert search({"log": b"c4n4ry"}, ALL.values()) == []


def test_no_canary_is_found_in_anything_that_is_written(work, sound, capfd, caplog):
    """Configurations, runs and artifacts in MLflow's database, checkpoints in a store, a registered model, a job's package."""
    from pipeline.cli import make_parser
    from pipeline.config import experiment_of, to_yaml
    from pipeline.experiment_files import load_values
    from pipeline.jobs.profiles import find_cluster
    from pipeline.jobs.submit import plan, start
    from pipeline.registry.registration import register_folder
    from pipeline.site import prepare
    from pipeline.storage.checkpoints import fetch, upload_checkpoint
    from pipeline.storage.opening import check
    from pipeline.tracking.facts import environment_tags
    from pipeline.tracking.runs import Run

    caplog.set_level(logging.INFO)
    profiles = str(work.parent / "secrets/cluster.yaml")
    settings = [f"data.root={sound}/data", f"output={work}/runs"]
    values = load_values(str(sound / "tiny.yaml"), settings)
    experiment = experiment_of(values)

    cluster = find_cluster("lab", profiles)
    cluster.enter()
    (work / "token.txt").write_text(repr(cluster) + repr(cluster.job_environment()) + str(len(cluster.token())))
    site = prepare(experiment)
    (work / "site.txt").write_text(f"{site} {site.ray_storage(experiment, 'run')}")
    (work / "experiment.yaml").write_text(to_yaml(experiment))
    run = Run.open(
        site.tracking, site.experiment_id, identity="i", name="run", tags={"note": f"by {canary('HF_TOKEN')}"} | environment_tags()
    )
    run.params({"alpha": 1.0, "note": f"key={canary('lab_secret_key')}"})
    run.description(f"tracked at {address('http', 'tracking', 'host')}")
    run.text(f"{to_yaml(experiment)}\npassword: {canary('PGPASSWORD')}", "experiment.yaml")
    run.document({"error": f"no connection to {address('http', 'endpoint', 'host')}"}, "error.json")
    run.metrics({"val/AP": 0.5}, step=1)
    run.finish()
    check(site.store)
    prefix = upload_checkpoint(site.store, sound / "checkpoint", "run")
    fetch(site.store, prefix, work / "fetched")
    info = json.loads((sound / "detector/manifest.json").read_text())["info"]
    assert info["config_hash"] == experiment_of(load_values(str(sound / "tiny.yaml"))).hash
    register_folder(site.tracking, site.store, sound / "model", "tiny", licence=f"token={canary('HF_TOKEN')}")

    class Server:
        address = "http://lab"

        def jobs(self):
            return []

        def submit(self, job_id, entrypoint, runtime_env, metadata):
            folder = Path(runtime_env["working_dir"])
            files = {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}
            (work / "job.json").write_text(json.dumps([job_id, entrypoint, runtime_env, metadata, files]))
            return True

    start(Server(), plan(make_parser(), ["train", str(sound / "tiny.yaml"), *settings], cluster))
    for words in (
        f"train {sound}/tiny.yaml --dry-run --cluster lab --profiles {profiles}",
        f"submit --cluster lab --profiles {profiles} --dry-run train {sound}/tiny.yaml",
        f"submit --cluster lab --profiles {profiles} --dry-run --json train {sound}/tiny.yaml",
        f"models list --json --set tracking.uri={site.tracking}",
        f"models show tiny --json --set tracking.uri={site.tracking}",
        f"models show tiny/1 --set tracking.uri={site.tracking}",
        f"doctor {sound}/tiny.yaml output={work}/runs data.root={sound}/data storage.url={work}/other --json",
    ):
        assert main(shlex.split(words)) in (0, 1), words
    out, err = capfd.readouterr()
    (work / "output.txt").write_text(out + err + caplog.text)
    written = contents(work, sound)
    assert any(name.endswith("mlflow.db") for name in written)
    assert any(name.endswith("model.safetensors") for name in written)
    assert search(written, ALL.values()) == []
    assert "***" in (work / "runs/mlflow.db").read_bytes().decode(errors="replace")  # redacted, not lost


TROUBLES = {
    "tracking": "train {sound}/tiny.yaml output={work}/runs tracking.uri={tracking}",
    "tracking, printed": "train {sound}/tiny.yaml --dry-run output={work}/runs tracking.uri={tracking}",
    "tracking, listed": "models list --set tracking.uri={tracking}",
    "tracking of a sweep": "sweep {sound}/tiny.yaml output={work}/runs tracking.uri={tracking} 'sweep.space={{train.lr: [0.1]}}' --dry-run",
    "tracking of the doctor": "doctor {sound}/tiny.yaml tracking.uri={tracking}",
    "a database": "train {sound}/tiny.yaml output={work}/runs tracking.uri={database}",
    "MLflow's own variable": "models list",
    "the store": "train {sound}/tiny.yaml output={work}/runs storage.url={store}",
    "the store, printed": "train {sound}/tiny.yaml --dry-run storage.url={store}",
    "the store of a pack": "data pack --root {sound}/data --output {store}",
    "the endpoint": "train {sound}/tiny.yaml output={work}/runs storage.url=s3://bucket/x",
    "the endpoint of the doctor": "doctor {sound}/tiny.yaml output={work}/runs storage.url=s3://bucket/x data.root={sound}/data --json",
    "data": "train {sound}/tiny.yaml output={work}/runs data.root={data}",
    "data, printed": "train {sound}/tiny.yaml --dry-run data.root={data}",
    "data, checked": "data check {sound}/tiny.yaml data.root={data}",
    "data, submitted": "submit --cluster lab --profiles {profiles} --dry-run train {sound}/tiny.yaml data.root={data}",
    "Ray": "train {sound}/tiny.yaml output={work}/runs ray.address={jobs}",
    "Ray, printed": "train {sound}/tiny.yaml --dry-run ray.address={jobs}",
    "a job": "submit --cluster lab --profiles {profiles} train {sound}/tiny.yaml",
    "jobs": "jobs --cluster lab --profiles {profiles}",
    "a word that is no setting": "train {sound}/tiny.yaml {tracking}",
    "a broken setting": "train {sound}/tiny.yaml tracking.uri=[{tracking}",
    "a misspelt setting": "train {sound}/tiny.yaml tracking.url={tracking}",
    "a setting of another type": "train {sound}/tiny.yaml tracking={tracking}",
    "an unknown option": "train {sound}/tiny.yaml --uri={tracking}",
    "an unknown verb": "{tracking}",
    "initial weights": "train {sound}/tiny.yaml output={work}/runs data.root={sound}/data init={data}",
    "a model": "predict {tracking} {sound}/data/val/1.png --output {work}/out",
    "an image": "predict {sound}/detector {data} --output {work}/out",
}  # fmt: skip


@pytest.mark.parametrize("name", TROUBLES)
def test_no_canary_is_in_what_is_said_of_a_trouble(name, work, sound, capfd, caplog, monkeypatch):
    """Addresses with passwords, and servers that are not there: what is printed, and what is left."""
    caplog.set_level(logging.INFO)
    (port,) = free_ports(1)
    here = f"127.0.0.1:{port}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", address("http", "endpoint", here))
    if name == "MLflow's own variable":
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address("http", "mlflow_uri", here))
    places = {
        "sound": sound,
        "work": work,
        "profiles": work.parent / "secrets/cluster.yaml",
        "tracking": address("http", "tracking", here),
        "database": address("postgresql", "tracking", here) + "/db",
        "store": address("s3", "store", "bucket/x"),
        "data": address("https", "data", here) + "/x",
        "jobs": address("ray", "jobs", here),
    }
    before = contents(sound).keys()
    assert main(shlex.split(TROUBLES[name].format(**places))) in (1, 2)
    out, err = capfd.readouterr()
    said = {"what was printed": (out + err).encode(), "the log": caplog.text.encode()}
    assert search(said | contents(work), ALL.values()) == []
    assert "Traceback" not in out + err
    assert contents(sound).keys() == before


def test_no_canary_is_in_a_traceback_or_in_a_process_s_arguments(work, sound):
    """A whole process with the canaries around it, ended by an error nobody foresaw: Python prints lines, not values."""
    code = "import sys; sys.argv[1:] = ['models', 'list']; from pipeline import cli; cli.make_parser = None; sys.exit(cli.main())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert "Traceback" in done.stderr
    assert search({"stderr": done.stderr.encode(), "stdout": done.stdout.encode()}, ALL.values()) == []
