"""What a look through a store finds, and what it removes: litter, and never what a reader or a writer needs."""

import json
import os
import time
import zlib

import pytest

from pipeline.cli import main
from pipeline.errors import IntegrityError
from pipeline.storage.checkpoints import fetch, upload_checkpoint
from pipeline.storage.folder import FolderStore
from pipeline.storage.opening import open_store
from pipeline.storage.pointers import latest
from pipeline.storage.upkeep import check, litter
from tests.pipeline.checkpoints import make_checkpoint
from tests.pipeline.publisher import Publisher

TORN = "checkpoints/run/00000001-abcdef012345"


@pytest.fixture
def store(place, request):
    return open_store(f"{place}/{zlib.crc32(request.node.name.encode())}")


def cut_off(store) -> None:
    """A write that its process did not live to finish."""
    if isinstance(store, FolderStore):
        store._stage(b"x" * 100)
    else:
        store._client.create_multipart_upload(Bucket=store.bucket, Key=f"{store.base}checkpoints/run/weights")


def replace(store, key, change) -> None:
    data = bytearray(store.get_bytes(key))
    change(data)
    store.delete(key)
    store.put_bytes(key, bytes(data))


def flip(data: bytearray) -> None:
    data[len(data) // 2] ^= 1


def test_a_whole_store_has_no_problems(store, tmp_path):
    for step in (1, 2):
        upload_checkpoint(store, make_checkpoint(tmp_path / str(step), step=step), "run")
    found = check(store)
    assert (found.checkpoints, found.models, found.pointers, found.problems, found.litter) == (2, 0, 1, (), 0)
    assert found.size > 10_000


@pytest.mark.parametrize("name", ["manifest.json", "model/manifest.json", "model/model.safetensors", "training.safetensors"])
def test_every_file_of_a_checkpoint_is_compared(store, tmp_path, name):
    good = upload_checkpoint(store, make_checkpoint(tmp_path / "good", step=1), "run")
    bad = upload_checkpoint(store, make_checkpoint(tmp_path / "bad", step=2, seed=1), "run")
    replace(store, f"{bad}/{name}", flip)
    (problem,) = check(store).problems
    assert problem.key == bad != good
    assert name in problem.what


def test_a_changed_manifest_does_not_fit_its_folders_name(store, tmp_path):
    prefix = upload_checkpoint(store, make_checkpoint(tmp_path / "c", step=7), "run")

    def other_step(data: bytearray) -> None:
        data[:] = data.replace(b'"step": 7', b'"step": 8')

    replace(store, f"{prefix}/manifest.json", other_step)
    with pytest.raises(IntegrityError, match="its folder is named after another"):
        fetch(store, prefix, tmp_path / "fetched")
    assert len(check(store).problems) == 1


def test_a_model_that_names_other_files_than_its_checkpoint(store, tmp_path):
    folder = make_checkpoint(tmp_path / "c", step=7)
    manifest = json.loads((folder / "model/manifest.json").read_text())
    manifest["files"]["model.safetensors"]["size"] += 1
    (folder / "model/manifest.json").write_text(json.dumps(manifest))
    from tests.pipeline.checkpoints import write_manifest

    write_manifest(folder, "model/manifest.json", "model/model.safetensors", "training.safetensors", step=7)
    prefix = upload_checkpoint(store, folder, "run")
    (problem,) = check(store).problems
    assert (problem.key, problem.what) == (f"{prefix}/model/manifest.json", "names other files than the checkpoint's manifest")


def test_pointers_are_followed(store, tmp_path):
    prefix = upload_checkpoint(store, make_checkpoint(tmp_path / "c"), "run")
    store.put_bytes("checkpoints/other/latest.json", b"{}")
    store.put_bytes("checkpoints/other/notes.txt", b"")
    for key in store.list(prefix):
        store.delete(key)
    found = {problem.key: problem.what for problem in check(store).problems}
    assert found.keys() == {"checkpoints/run/latest.json", "checkpoints/other/latest.json", "checkpoints/other/notes.txt"}
    assert found["checkpoints/run/latest.json"] == f"points to {prefix}, which does not exist"


def test_litter_goes_once_it_is_old_and_nothing_else(store, tmp_path):
    whole = upload_checkpoint(store, make_checkpoint(tmp_path / "c", step=2), "run")
    cut_off(store)
    store.put_bytes(f"{TORN}/training.safetensors", b"torn")
    store.put_bytes("models/abc/model/model.safetensors", b"torn")
    store.put_bytes("check/0123-object", b"first")
    before = store.list()
    assert [item.goes for item in litter(store, 3600, remove=True)] == [False] * 4
    assert sorted(item.why for item in litter(store, 0)) == [
        "a proof of the store that was cut off",
        "a write that was cut off",
        "its upload never finished",
        "its upload never finished",
    ]
    assert (store.list(), len(store.unfinished()), check(store).litter) == (before, 1, 4)
    assert len(litter(store, 0, remove=True)) == 4
    assert (litter(store, 0), store.unfinished()) == ([], [])
    assert (latest(store, "run"), check(store).problems) == (whole, ())
    fetch(store, whole, tmp_path / "fetched")


def test_age_is_that_of_the_newest_object_of_an_upload(tmp_path):
    store, old = FolderStore(tmp_path), time.time() - 7200
    for name in ("a", "b"):
        store.put_bytes(f"{TORN}/{name}", b"x")
    os.utime(tmp_path / TORN / "a", (old, old))
    (item,) = litter(store, 3600, remove=True)
    assert not item.goes
    os.utime(tmp_path / TORN / "b", (old, old))
    (item,) = litter(store, 3600, remove=True)
    assert item.goes
    assert store.list() == []


def test_an_upload_that_finds_its_files_cleaned_away_puts_them_there_again(tmp_path):
    folder = make_checkpoint(tmp_path / "c")

    class Cleaned(FolderStore):
        """Another process cleans while this one writes the manifest, as it found the files there already."""

        def put_bytes(self, key, data):
            for item in litter(FolderStore(self.root), 0, remove=True):
                assert item.goes
            super().put_bytes(key, data)

    store = Cleaned(tmp_path / "store")
    prefix = upload_checkpoint(store, folder, "run")
    assert check(store).problems == ()
    fetch(store, prefix, tmp_path / "fetched")


def test_a_folder_finished_meanwhile_stays(tmp_path, monkeypatch):
    folder, store = make_checkpoint(tmp_path / "c"), FolderStore(tmp_path / "store")
    entries = FolderStore.entries

    def slow(self, prefix=""):
        """Sees an upload before its last file, which is written by the time it is looked at."""
        return [entry for entry in entries(self, prefix) if not entry.key.endswith("/manifest.json")]

    prefix = upload_checkpoint(store, folder, "run")
    monkeypatch.setattr(FolderStore, "entries", slow)
    (item,) = litter(store, 0, remove=True)
    assert (item.key, item.goes) == (prefix, False)
    monkeypatch.undo()
    fetch(store, prefix, tmp_path / "fetched")


def test_the_verbs(tracking_uri, run_id, tmp_path, capsys):
    publish = Publisher(tracking_uri, run_id, tmp_path, "checked-store")
    publish(900)
    kept = ["--set", f"storage.url={publish.store.url}", "--set", f"tracking.uri={tracking_uri}", "--json"]

    def tood(*words) -> dict:
        code = main(["storage", *words, *kept])
        return json.loads(capsys.readouterr().out) | {"code": code}

    found = tood("check")
    assert (found["code"], found["checkpoints"], found["versions"], found["problems"]) == (0, 1, 1, [])
    cut_off(publish.store)
    assert tood("clean", "--older-than", "0m")["deleted"] is False
    assert tood("check")["litter"] == 1
    assert tood("clean", "--older-than", "1h", "--delete")["bytes"] == 0
    assert tood("clean", "--older-than", "0m", "--delete")["bytes"] == 100
    (weights,) = (key for key in publish.store.list() if key.endswith("/model/manifest.json"))
    publish.store.delete(weights)
    found = tood("check")
    assert found["code"] == 1
    assert [problem["key"] for problem in found["problems"]][-1] == "models:/checked-store/1"
    assert main(["storage", "check", *kept[:-1]]) == 1
    assert "2 problems" in capsys.readouterr().out
