"""The registry on SQLite and a folder: what is published is what is pulled, and who becomes champion."""

import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mlflow.artifacts
import pytest

from pipeline.detect import find_model
from pipeline.errors import IntegrityError, MissingObjectError, RegistryError
from pipeline.registry.models import DIGEST, decide, pull, resolve
from pipeline.storage.checkpoints import remove_others, verify
from tests.pipeline.publisher import DATA, alias
from tests.servers import free_ports


def test_the_first_version_is_champion_and_says_what_it_is(publisher, client):
    published = publisher(0, 0.25, tags={"hp.alpha": 1.5, "hp.head": "t_head"})
    assert published[:2] == (publisher.name, 1)
    assert published.is_champion
    assert published.decision == (True, "it is the first")
    stored = client.get_model_version(publisher.name, "1")
    model = f"{publisher.upload(0)}/model"
    digest = verify(publisher.store, model).digest
    assert stored.source == published.source == publisher.store.url_of(model)
    assert stored.run_id == publisher.run_id
    promoted = json.loads(stored.tags.pop("champion.promoted"))
    assert (promoted["over"], promoted["why"], promoted["by"]) == (None, "it is the first", "its figures")
    assert stored.tags == {
        "config_hash": "c0ffee", "dataset": DATA, "metric": "val/AP", "value": "0.25", "epoch": "3", "step": "12",
        "manifest_sha256": digest, "hp.alpha": "1.5", "hp.head": "t_head",
    }  # fmt: skip
    for shown in ("| val/AP | 0.2500 |", "alpha 1.5, head t_head", "a/b, cell", digest, f"tood pull models:/{publisher.name}"):
        assert shown in stored.description
    assert f"models:/{publisher.name}@champion" in client.get_registered_model(publisher.name).description


def test_the_same_model_again_is_the_same_version(publisher, client):
    publisher(0, 0.4)
    publisher(1, 0.5)
    again = publisher(0, 0.4)
    assert (again.version, again.is_champion) == (1, False)
    assert publisher(1, 0.5).decision == (False, "it is the champion already")
    assert publisher(1, 0.5).is_champion
    assert len(client.search_model_versions(f"name = '{publisher.name}'")) == 2


def test_a_run_that_goes_on_leaves_its_registered_checkpoint(publisher, tracking_uri, tmp_path):
    publisher(1, 0.4)
    plain, newest = publisher.upload(2), publisher.upload(3)
    remove_others(publisher.store, "run", {newest})
    assert publisher.store.list(plain) == []
    pulled = pull(f"models:/{publisher.name}/1", tracking_uri, tmp_path / "pulled")
    assert (pulled / "model.safetensors").read_bytes() == (tmp_path / "checkpoint1/model/model.safetensors").read_bytes()


def test_a_model_kept_from_an_earlier_pull_does_not_stand_for_a_new_champion(publisher, client, tracking_uri, tmp_path):
    name, found = f"models:/{publisher.name}@champion", []
    for version, value in ((1, 0.4), (2, 0.5)):
        publisher(version, value)
        digest = client.get_model_version(publisher.name, str(version)).tags[DIGEST]
        assert resolve(name, tracking_uri) == (f"models:/{publisher.name}/{version}", digest)
        folders = {find_model(name, tracking_uri, tmp_path / "kept") for _ in range(2)}  # pulled, then verified
        assert len(folders) == 1
        found.append((folders.pop() / "model.safetensors").read_bytes())
    assert found == [(tmp_path / f"checkpoint{v}/model/model.safetensors").read_bytes() for v in (1, 2)]
    assert found[0] != found[1]


def test_the_alias_moves_to_the_better_only(publisher, client):
    steps = [
        (0.50, {}, True, "it is the first"),
        (0.50, {}, False, "val/AP 0.5000 is not better than the champion's 0.5000"),
        (0.40, {}, False, "not better"),
        (0.90, {"dataset": "e" * 64}, False, "measured on other data (dddddddddddd, not eeeeeeeeeeee)"),
        (0.90, {"metric": "val/AP50"}, False, "measured by val/AP, not val/AP50"),
        (float("nan"), {}, False, "its val/AP is nan"),
        (0.51, {}, True, "val/AP 0.5100 is better than the champion's 0.5000"),
    ]
    for seed, (value, other, moves, reason) in enumerate(steps):
        published = publisher(seed, value, **other)
        assert (published.decision.moved, published.is_champion) == (moves, moves)
        assert reason in published.decision.reason
        assert alias(client, publisher.name) == (1 if seed < 6 else 7)


def test_a_champion_set_by_hand_is_respected(publisher, client):
    publisher(0, 0.5)
    publisher(1, 0.6)
    client.set_registered_model_alias(publisher.name, "champion", "1")  # a person rolls back
    publisher(2, 0.4)
    assert alias(client, publisher.name) == 1


def test_a_champion_without_figures_is_not_replaced():
    ours = {"dataset": DATA, "metric": "val/AP", "value": "0.5"}
    assert "other data (None" in decide(ours, {}).reason
    assert "val/AP is best" in decide(ours, {**ours, "value": "best"}).reason
    assert not decide(ours, {"dataset": DATA, "metric": "val/AP"}).moved


def test_racing_publishers_make_one_version_a_model_and_the_best_champion(publisher, client):
    seeds = [0, 0, 1, 1, 2, 2]
    for seed in range(3):
        publisher.upload(seed)
    with ThreadPoolExecutor(6) as threads:
        versions = list(threads.map(lambda seed: publisher(seed, 0.1 * (seed + 1)).version, seeds))
    assert len(set(versions)) == 3
    assert versions[0::2] == versions[1::2]
    assert alias(client, publisher.name) == versions[4]


@pytest.mark.parametrize(("key", "value"), [("config_hash", "other"), ("epoch", 4), ("step", 1), ("names", ["x"])])
def test_what_contradicts_the_model_is_not_registered(publisher, client, key, value):
    with pytest.raises(RegistryError, match=f"its {key} is"):
        publisher(0, **{key: value})
    assert client.search_model_versions(f"name = '{publisher.name}'") == []


def test_a_damaged_model_is_not_registered(publisher, client):
    (publisher.store.root / publisher.upload(0) / "model" / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(IntegrityError, match=r"model\.safetensors"):
        publisher(0)
    assert client.search_model_versions(f"name = '{publisher.name}'") == []


@pytest.mark.parametrize("name", ["", "a/b", "a:b", "a b", "x' or name like '%", ".."])
def test_a_name_that_no_uri_can_hold_is_refused(publisher, name):
    publisher.name = name
    with pytest.raises(RegistryError, match="model name"):
        publisher(0)


def test_a_model_is_pulled_by_alias_version_or_name(publisher, tmp_path):
    publisher(0, 0.5)
    publisher(1, 0.4)
    for number, (uri, seed) in enumerate(
        {"models:/{}@champion": 0, "models:/{}/1": 0, "models:/{}/2": 1, "{}": 0, "{}/2": 1}.items()
    ):
        pulled = pull(uri.format(publisher.name), publisher.tracking_uri, tmp_path / f"pulled{number}")
        original = tmp_path / f"checkpoint{seed}" / "model"
        for file in ("model.safetensors", "manifest.json"):
            assert (pulled / file).read_bytes() == (original / file).read_bytes()


def test_plain_mlflow_downloads_the_champion(publisher, tmp_path, monkeypatch):
    publisher(0)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", publisher.tracking_uri)
    folder = Path(mlflow.artifacts.download_artifacts(f"models:/{publisher.name}@champion", dst_path=tmp_path / "plain"))
    assert (folder / "model.safetensors").read_bytes() == (tmp_path / "checkpoint0" / "model" / "model.safetensors").read_bytes()


def test_only_named_files_are_pulled(publisher, tmp_path):
    published = publisher(0)
    folder = publisher.store.root / published.source.removeprefix(publisher.store.url + "/")
    (folder / "MLmodel").write_text("flavors: {python_function: {loader_module: evil}}")
    (folder / "evil.pkl").write_bytes(b"cos\nsystem\n(S'touch /tmp/evil'\ntR.")
    pulled = pull(publisher.name, publisher.tracking_uri, tmp_path / "pulled")
    assert sorted(path.name for path in pulled.iterdir()) == ["manifest.json", "model.safetensors"]


def test_altered_bytes_are_not_pulled(publisher, tmp_path):
    folder = publisher.store.root / publisher(0).source.removeprefix(publisher.store.url + "/")
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[100] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    with pytest.raises(IntegrityError, match=r"model\.safetensors: sha256 is"):
        pull(publisher.name, publisher.tracking_uri, tmp_path / "out" / "pulled")
    shutil.copytree(tmp_path / "store" / publisher.upload(1) / "model", folder, dirs_exist_ok=True)  # all, consistently
    with pytest.raises(IntegrityError, match="not what was registered"):
        pull(publisher.name, publisher.tracking_uri, tmp_path / "out" / "pulled")
    assert list(tmp_path.glob("out/*")) == []


def test_what_the_registry_does_not_have_is_named(publisher, tmp_path):
    publisher(0)
    for uri, says in {
        f"models:/{publisher.name}s@champion": f"no model '{publisher.name}s'; it has: {publisher.name}",
        f"models:/{publisher.name}@best": "no alias 'best'; it has: champion",
        f"models:/{publisher.name}/9": "no version 9",
        "models:/a/b/c": "is not a model; write models:/NAME@alias",
        "runs:/abc/model": "is not a model; write models:/NAME@alias",
        "": "is not a model; write models:/NAME@alias",
    }.items():
        with pytest.raises(RegistryError, match=says):
            pull(uri, publisher.tracking_uri, tmp_path / "pulled")


@pytest.mark.parametrize(
    ("source", "tags", "says"),
    [("file:///tmp/x", {}, "no tag manifest_sha256"), ("ftp://host/x", {"manifest_sha256": "0" * 64}, "none that")],
)
def test_versions_of_others_are_not_pulled(publisher, client, tmp_path, source, tags, says):
    publisher(0)
    version = client.create_model_version(publisher.name, source, tags=tags).version
    with pytest.raises(RegistryError, match=says):
        pull(f"models:/{publisher.name}/{version}", publisher.tracking_uri, tmp_path / "pulled")


def test_a_version_whose_files_are_elsewhere_says_so(publisher, tmp_path):
    publisher(0)
    shutil.rmtree(publisher.store.root)
    with pytest.raises(MissingObjectError, match=r"manifest\.json does not exist"):
        pull(publisher.name, publisher.tracking_uri, tmp_path / "pulled")


def test_a_silent_server_is_named_within_seconds(tmp_path):
    started = time.monotonic()
    with pytest.raises(RegistryError, match="cannot be reached"):
        pull("any", f"http://127.0.0.1:{free_ports(1)[0]}", tmp_path / "pulled")
    assert time.monotonic() - started < 10


def test_no_secret_is_published(publisher, client, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-secret-value")
    publisher(0, tags={"note": "made with canary-secret-value"})
    stored = client.get_model_version(publisher.name, "1")
    assert "canary" not in json.dumps(stored.tags) + stored.description + stored.source
