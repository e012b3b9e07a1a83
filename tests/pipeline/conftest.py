"""One registry for the tests of a session, since making its tables takes seconds; each test has models of its own name."""

from pathlib import Path

import pytest

# MLflow and torch take seconds to import, so the fixtures that need them do it.


@pytest.fixture(scope="session")
def tracking_uri(tmp_path_factory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture(scope="session")
def client(tracking_uri):
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)


@pytest.fixture(scope="session")
def run_id(client, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("artifacts")
    return client.create_run(client.create_experiment("registry", folder.as_uri())).info.run_id


@pytest.fixture
def publisher(tracking_uri, run_id, tmp_path, request):
    from tests.pipeline.publisher import Publisher

    return Publisher(tracking_uri, run_id, tmp_path, request.node.originalname)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """A real model's folder, `model0`; beside it `model1`, `tiny.yaml` and `data`."""
    from tests.pipeline.publisher import save_tiny_model

    folder = tmp_path_factory.mktemp("tiny")
    save_tiny_model(folder, seed=1, metrics={"val/AP": 0.6, "val/AP50": 0.7})
    return save_tiny_model(folder)


@pytest.fixture(scope="module", params=["folder", pytest.param("s3", marks=pytest.mark.short_run)])
def place(request, tmp_path_factory):
    """URL of a store, in a folder and in a bucket; each test adds a name of its own."""
    if request.param == "folder":
        yield str(tmp_path_factory.mktemp("folder"))
        return
    from tests.servers import s3_server

    with s3_server(tmp_path_factory.mktemp("s3")) as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.env().items():
            patch.setenv(name, value)
        yield f"s3://{server.make_bucket('tests')}"
