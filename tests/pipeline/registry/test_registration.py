"""Models registered by hand: a folder of this machine, a run's best checkpoint; and what is refused."""

import shutil

import pytest

from pipeline.errors import RegistryError
from pipeline.registry.models import pull, show
from pipeline.registry.registration import info_of, register_folder, register_run
from pipeline.storage.folder import FolderStore
from pipeline.tracking.runs import CHECKPOINT, Run
from tests.pipeline.publisher import DATA, alias
from tood.errors import CheckpointError


def test_a_folder_is_stored_registered_and_pulled_back(tracking_uri, client, tiny_model, tmp_path):
    store, uri = FolderStore(tmp_path / "store"), tracking_uri
    first = register_folder(uri, store, tiny_model, "byhand", licence="MIT")
    assert (first.version, first.is_champion) == (1, True)
    shown = show("byhand/1", uri)
    assert (shown["value"], shown["dataset"], shown["metric"]) == (0.5, DATA, "val/AP")
    assert "| licence | MIT |" in shown["card"]
    run = client.get_run(shown["run_id"])
    assert (run.info.status, run.data.tags["tood.model.byhand"]) == ("FINISHED", "models:/byhand/1")
    again = register_folder(uri, store, tiny_model, "byhand")
    assert again.version == 1
    better = register_folder(uri, store, tiny_model.parent / "model1", "byhand")
    assert (better.version, alias(client, "byhand")) == (2, 2)
    pulled = pull("byhand/1", uri, tmp_path / "pulled")
    assert sorted(path.name for path in pulled.iterdir()) == ["manifest.json", "model.safetensors"]
    assert (pulled / "model.safetensors").read_bytes() == (tiny_model / "model.safetensors").read_bytes()
    beside = {key.rpartition("/")[2] for key in store.list("models")}
    assert beside == {"manifest.json", "model.safetensors", "MLmodel", "requirements.txt", "python_env.yaml"}


def test_a_run_is_registered_by_the_checkpoint_that_its_tag_names(publisher, client):
    uri, name = publisher.tracking_uri, publisher.name
    run_id = client.create_run(client.get_run(publisher.run_id).info.experiment_id).info.run_id
    client.log_param(run_id, "alpha", 1.5)
    with pytest.raises(RegistryError, match=f"run {run_id} has no checkpoint"):
        register_run(uri, run_id, name)
    Run.attach(uri, run_id).tags({CHECKPOINT: publisher.store.url_of(publisher.upload(0, value=0.7))})
    version = register_run(uri, run_id, name)
    shown = show(f"{name}/{version.version}", uri)
    assert (shown["value"], shown["run_id"], shown["tags"]["hp.alpha"]) == (0.7, run_id, "1.5")
    client.delete_run(run_id)
    with pytest.raises(RegistryError, match="was deleted"):
        register_run(uri, run_id, name)


def test_what_cannot_be_registered_is_named(tracking_uri, tiny_model, tmp_path):
    store = FolderStore(tmp_path / "store")
    with pytest.raises(RegistryError, match="neither a model folder here nor a run"):
        register_run(tracking_uri, "0" * 32, "x")
    with pytest.raises(RegistryError, match=r"its val/AR_1 was not measured, val/AP was; name one of these by --metric"):
        register_folder(tracking_uri, store, tiny_model, "x", metric="val/AR_1")
    with pytest.raises(RegistryError, match="model name"):
        register_folder(tracking_uri, store, tiny_model, "my model")
    for folder, says in ((tmp_path / "none", "not a folder"), (tmp_path, "cannot be read")):
        with pytest.raises(CheckpointError, match=says):
            register_folder(tracking_uri, store, folder, "x")
    damaged = shutil.copytree(tiny_model, tmp_path / "damaged")
    with (damaged / "model.safetensors").open("r+b") as file:
        file.seek(5000)
        file.write(b"xxxx")
    with pytest.raises(CheckpointError, match="altered or damaged"):
        register_folder(tracking_uri, store, damaged, "x")
    assert store.list() == []


def test_a_manifest_without_figures_is_no_candidate():
    from pipeline.storage.checkpoints import Manifest

    with pytest.raises(RegistryError, match="nothing was"):
        info_of(Manifest("0" * 64, {}, {"info": {}}, b""), "val/AP", "here")
