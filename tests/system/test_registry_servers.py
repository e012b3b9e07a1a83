"""The registry on real servers: MLflow on PostgreSQL, an S3 bucket, and a pull from a home that holds nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipeline.errors import IntegrityError
from pipeline.registry.models import publish, pull
from pipeline.storage.checkpoints import fetch, upload_checkpoint
from pipeline.storage.opening import check, open_store
from pipeline.storage.pointers import latest
from pipeline.storage.store import Store
from tests.pipeline.checkpoints import make_checkpoint
from tests.servers import mlflow_server, postgres, s3_server

pytestmark = pytest.mark.system

INFO = {"config_hash": "c0ffee", "dataset": "d" * 64, "metric": "val/AP", "names": ["cell"], "epoch": 1, "step": 12}


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    with s3_server(tmp_path_factory.mktemp("s3")) as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.env().items():
            patch.setenv(name, value)
        server.make_bucket("experiments")
        yield server


@pytest.fixture(scope="module")
def tracking_uri(bucket, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mlflow")
    with postgres(folder) as database, mlflow_server(database, "s3://experiments/artifacts", folder=folder) as url:
        yield url


@pytest.fixture(params=["s3", "folder"])
def store(request, bucket, tmp_path) -> Store:
    """A bucket that MLflow reads itself, or a folder whose models the server must be given."""
    store = open_store(f"s3://experiments/{request.node.originalname}" if request.param == "s3" else str(tmp_path / "store"))
    check(store)
    return store


def publish_checkpoint(tracking_uri: str, store: Store, name: str, folder: Path, value: float = 0.5):
    client = MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)
    experiment = client.get_experiment_by_name(name)
    run_id = client.create_run(experiment.experiment_id if experiment else client.create_experiment(name)).info.run_id
    return publish(
        tracking_uri=tracking_uri,
        name=name,
        store=store,
        prefix=upload_checkpoint(store, folder, "run"),
        run_id=run_id,
        info={**INFO, "value": value},
        tags={"hp.alpha": 1.0},
    )


def model_name(store: Store, what: str) -> str:
    return f"{what}-{store.url.partition(':')[0]}"


def from_an_empty_home(code: str, home: Path, **variables: str) -> str:
    """What `code` prints in a fresh process that knows no more than addresses and credentials."""
    home.mkdir()
    known = {name: value for name, value in os.environ.items() if name.startswith(("AWS_", "MLFLOW_", "PATH"))}
    environment = {**known, "HOME": str(home), "PYTHONPATH": str(Path(__file__).parents[2]), **variables}
    done = subprocess.run([sys.executable, "-c", code], cwd=home, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip().splitlines()[-1]


def test_a_published_model_is_pulled_from_an_empty_home(tracking_uri, store, tmp_path):
    name, folder = model_name(store, "pulled"), make_checkpoint(tmp_path / "checkpoint")
    published = publish_checkpoint(tracking_uri, store, name, folder)
    assert published.is_champion
    assert published.source.startswith("s3://experiments" if store.url.startswith("s3") else "mlflow-artifacts:/")
    original = (folder / "model" / "model.safetensors").read_bytes()

    ours = (
        "from pathlib import Path; from pipeline.registry.models import pull; "
        f"print(pull('models:/{name}@champion', {tracking_uri!r}, Path('model').absolute()))"
    )
    assert (Path(from_an_empty_home(ours, tmp_path / "home1")) / "model.safetensors").read_bytes() == original

    plain = f"import mlflow; print(mlflow.artifacts.download_artifacts('models:/{name}@champion', dst_path='plain'))"
    printed = from_an_empty_home(plain, tmp_path / "home2", MLFLOW_TRACKING_URI=tracking_uri)
    assert (tmp_path / "home2" / printed / "model.safetensors").read_bytes() == original


def test_publishing_again_is_free_and_a_better_one_leads(tracking_uri, store, tmp_path):
    name = model_name(store, "again")
    first = make_checkpoint(tmp_path / "first")
    assert publish_checkpoint(tracking_uri, store, name, first, 0.5).version == 1
    assert publish_checkpoint(tracking_uri, store, name, first, 0.5).version == 1
    worse = publish_checkpoint(tracking_uri, store, name, make_checkpoint(tmp_path / "worse", seed=1), 0.4)
    assert (worse.version, worse.is_champion) == (2, False)
    better = publish_checkpoint(tracking_uri, store, name, make_checkpoint(tmp_path / "better", seed=2), 0.6)
    assert (better.version, better.is_champion) == (3, True)


def test_one_flipped_byte_in_the_bucket_is_refused(tracking_uri, store, bucket, tmp_path):
    name = model_name(store, "flipped")
    published = publish_checkpoint(tracking_uri, store, name, make_checkpoint(tmp_path / "checkpoint"))
    key = f"{published.source.removeprefix('s3://experiments/')}/model.safetensors"
    if published.source.startswith("mlflow-artifacts:/"):
        key = f"artifacts/{published.source.removeprefix('mlflow-artifacts:/')}/model.safetensors"
    weights = bytearray(bucket.client().get_object(Bucket="experiments", Key=key)["Body"].read())
    weights[1000] ^= 1
    bucket.client().put_object(Bucket="experiments", Key=key, Body=bytes(weights))
    with pytest.raises(IntegrityError, match=r"model\.safetensors: sha256 is [0-9a-f]{64} .* its manifest says"):
        pull(name, tracking_uri, tmp_path / "out" / "pulled")
    bucket.client().delete_object(Bucket="experiments", Key=key)
    with pytest.raises(IntegrityError, match=r"model\.safetensors: .*does not exist"):
        pull(name, tracking_uri, tmp_path / "out" / "pulled")
    assert list(tmp_path.glob("out/*")) == []


def test_an_upload_killed_midway_leaves_no_checkpoint(bucket, tmp_path):
    folder = make_checkpoint(tmp_path / "checkpoint")
    code = f"""
import os, signal
from pathlib import Path
from pipeline.storage.checkpoints import upload_checkpoint
from pipeline.storage.opening import open_store
from pipeline.storage.s3 import S3Store
create = S3Store.create
def killed(self, key, source):
    if key.endswith("training.safetensors"):
        os.kill(os.getpid(), signal.SIGKILL)
    return create(self, key, source)
S3Store.create = killed
upload_checkpoint(open_store("s3://experiments/killed"), Path({str(folder)!r}), "run")
"""
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])})
    assert done.returncode == -9
    store = open_store("s3://experiments/killed")
    assert [key.rpartition("/")[2] for key in store.list()] == ["model.safetensors"]
    assert latest(store, "run") is None
    prefix = upload_checkpoint(store, folder, "run")
    fetched = fetch(store, latest(store, "run"), tmp_path / "fetched")
    assert latest(store, "run") == prefix
    assert (fetched / "training.safetensors").read_bytes() == (folder / "training.safetensors").read_bytes()
