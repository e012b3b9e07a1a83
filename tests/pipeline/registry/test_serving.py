"""A registered model as MLflow's pyfunc: the same detections, no pickle and no code beside the weights."""

import base64
import io
import json
from pathlib import Path

import mlflow.artifacts
import mlflow.pyfunc
import pandas
import pytest
import torch
import yaml
from mlflow.exceptions import MlflowException
from PIL import Image

from pipeline.detect import open_model
from pipeline.errors import RegistryError
from pipeline.registry.models import pull
from pipeline.registry.registration import register_folder
from pipeline.registry.serving import ServedDetector, describing_files
from pipeline.storage.folder import FolderStore
from tests.pipeline.checkpoints import write_manifest
from tood import load
from tood.data.decoding import decode
from tood.errors import DataError


@pytest.fixture(scope="module")
def registered(tracking_uri, tiny_model, tmp_path_factory) -> str:
    register_folder(tracking_uri, FolderStore(tmp_path_factory.mktemp("store")), tiny_model, "served")
    return "models:/served@champion"


@pytest.fixture(scope="module")
def picture(tiny_model) -> Path:
    return tiny_model.parent / "data/val/1.png"


def test_mlflow_loads_the_champion_and_finds_what_we_find(registered, tracking_uri, tiny_model, picture, monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri)
    model = mlflow.pyfunc.load_model(registered)
    content = picture.read_bytes()
    text = base64.b64encode(content).decode()
    images = [content, text, f"data:image/png;base64,{text}", picture]
    found = model.predict(pandas.DataFrame({"image": images}))
    assert len(found) == 4
    assert found[0] == found[1] == found[2] == found[3]
    _, recipe, detector = open_model(pull(registered, tracking_uri, tmp_path / "pulled"))
    sides = {"long_side": recipe.data.long_side, "short_side": recipe.data.short_side}
    (ours,) = detector.predict([decode(picture)], **sides)
    assert len(ours["scores"]) > 5
    for key, value in ours.items():
        torch.testing.assert_close(torch.tensor(found[0][key]), value, rtol=0, atol=0)
    assert set(found[0]["names"]) <= {"red", "green", "blue"}
    cut = sorted(found[0]["scores"])[-3]
    few = model.predict({"image": [text]}, params={"threshold": cut})
    assert few[0]["scores"] == [score for score in found[0]["scores"] if score >= cut]
    json.dumps(found)  # as a server answers
    with pytest.raises(MlflowException, match="image"):
        model.predict({"picture": [text]})


def test_no_code_and_no_pickle_lies_beside_the_weights(registered, tracking_uri, monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri)
    folder = Path(mlflow.artifacts.download_artifacts(registered, dst_path=str(tmp_path / "plain")))
    ours = {"MLmodel", "requirements.txt", "python_env.yaml", "manifest.json", "model.safetensors"}
    assert {path.name for path in folder.rglob("*")} - {"registered_model_meta"} == ours  # the last is MLflow's
    flavor = yaml.safe_load((folder / "MLmodel").read_text())["flavors"]
    assert flavor.keys() == {"python_function"}
    assert flavor["python_function"]["loader_module"] == "pipeline.registry.serving"
    assert "code" not in flavor["python_function"]
    assert load(folder).names == ["red", "green", "blue"]  # what MLflow adds is in nobody's way
    assert "tood==" in (folder / "requirements.txt").read_text()
    assert yaml.safe_load(describing_files("0" * 64)["python_env.yaml"])["dependencies"] == ["-r requirements.txt"]


def test_a_version_that_brings_code_is_not_pulled(publisher, client, tmp_path):
    folder = tmp_path / "evil"
    folder.mkdir()
    for name in ("model.safetensors", "evil.py"):
        (folder / name).write_text("raise SystemExit")
    write_manifest(folder, "model.safetensors", "evil.py")
    import hashlib

    digest = hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
    publisher(0)
    client.create_model_version(publisher.name, folder.as_uri(), tags={"manifest_sha256": digest})
    with pytest.raises(RegistryError, match=r"/2: holds evil\.py, which is no part of a model and might be code; nothing was"):
        pull(f"{publisher.name}/2", publisher.tracking_uri, tmp_path / "pulled")
    assert not (tmp_path / "pulled").exists()


def test_what_is_no_image_is_named_and_strings_never_open_files(tiny_model, picture):
    served = ServedDetector(tiny_model)
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30)).save(buffer, "PNG")
    for value, says in (
        (str(picture), "image 1: .* is not base64; a file's path is given as a pathlib.Path"),
        (b"no picture", "image 1: not an image"),
        (base64.b64encode(b"no picture").decode(), "image 1: not an image"),
        (buffer.getvalue()[:60], "image 1: "),
        (7, "image 1: a int; give an image file's bytes"),
    ):
        with pytest.raises(DataError, match=says):
            served.predict({"image": [buffer.getvalue(), value]})
