"""Checkpoints appear whole or not at all, and no altered byte or hostile manifest gets through a download."""

import hashlib
import json
import random
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.errors import IntegrityError, MissingObjectError, StorageError
from pipeline.storage.checkpoints import (
    close_run,
    fetch,
    fetch_url,
    prefix_of,
    remove_checkpoint,
    remove_others,
    upload_checkpoint,
    verify,
)
from pipeline.storage.folder import FolderStore
from pipeline.storage.opening import open_store
from pipeline.storage.pointers import latest, latest_of
from tests.pipeline.checkpoints import make_checkpoint

FILES = ["manifest.json", "model/manifest.json", "model/model.safetensors", "training.safetensors"]


@pytest.fixture
def folder(tmp_path) -> Path:
    return make_checkpoint(tmp_path / "checkpoint")


@pytest.fixture
def store(tmp_path) -> FolderStore:
    return FolderStore(tmp_path / "store")


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_checkpoint_comes_back_as_it_went(store, folder, tmp_path):
    prefix = upload_checkpoint(store, folder, "run")
    digest = hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
    assert prefix == f"checkpoints/run/00000012-{digest[:12]}"
    assert store.list(prefix) == [f"{prefix}/{name}" for name in FILES]
    fetched = fetch(store, prefix, tmp_path / "new" / "fetched", digest)
    assert content(fetched) == content(folder)


def test_the_model_of_a_checkpoint_comes_alone(store, folder, tmp_path):
    prefix = upload_checkpoint(store, folder, "run")
    fetched = fetch_url(store.url_of(f"{prefix}/model"), tmp_path / "model")
    assert content(fetched) == content(folder / "model")


def test_what_tood_saves_can_be_stored_and_loaded(store, tmp_path):
    import torch

    from tood.checkpoint import ModelInfo, load_checkpoint, load_model, save_checkpoint

    info = ModelInfo({"a": 1}, "hash", ["cell"], [7], 1, 12, {"AP": 0.5}, "data", {"torch": "2"})
    weights = {"weight": torch.arange(6.0).reshape(2, 3)}
    save_checkpoint(tmp_path / "saved", weights, info, {"momentum": torch.ones(2)}, {"next": 3})
    prefix = upload_checkpoint(store, tmp_path / "saved", "run")
    back = load_checkpoint(fetch(store, prefix, tmp_path / "back"))
    assert (back.info, back.state) == (info, {"next": 3})
    assert torch.equal(back.weights["weight"], weights["weight"])
    assert load_model(fetch(store, f"{prefix}/model", tmp_path / "model")).info == info


class Interrupted(FolderStore):
    """Dies at the `last`-th creation, and records the order of the others."""

    def __init__(self, root: Path, last: int):
        super().__init__(root)
        self.created, self.last = [], last

    def create(self, key, source):
        if len(self.created) == self.last:
            raise KeyboardInterrupt
        self.created.append(key)
        return super().create(key, source)


@pytest.mark.parametrize("last", range(len(FILES)))
def test_an_interrupted_upload_does_not_exist_and_can_be_repeated(tmp_path, folder, last):
    interrupted = Interrupted(tmp_path / "store", last)
    with pytest.raises(KeyboardInterrupt):
        upload_checkpoint(interrupted, folder, "run")
    store = FolderStore(tmp_path / "store")
    assert latest(store, "run") is None
    for key in interrupted.created:
        with pytest.raises(MissingObjectError, match="never finished"):
            fetch(store, key.rsplit("/model/")[0].rsplit("/training")[0], tmp_path / "fetched")
    prefix = upload_checkpoint(store, folder, "run")
    assert latest(store, "run") == prefix
    assert content(fetch(store, prefix, tmp_path / "fetched")) == content(folder)


def test_manifests_are_written_after_what_they_name(tmp_path, folder):
    store = Interrupted(tmp_path / "store", 99)
    prefix = upload_checkpoint(store, folder, "run")
    names = [key.removeprefix(f"{prefix}/") for key in store.created]
    assert names == ["model/model.safetensors", "training.safetensors", "model/manifest.json", "manifest.json"]
    upload_checkpoint(store, folder, "run")
    assert len(store.created) == len(FILES)  # nothing was sent again


def test_every_flipped_bit_is_found(store, folder, tmp_path):
    prefix = upload_checkpoint(store, folder, "run")
    digest = hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
    rng = random.Random(0)
    for name in FILES:
        path = store.root / prefix / name
        whole = path.read_bytes()
        for _ in range(50):
            place = rng.randrange(len(whole))
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << rng.randrange(8)]) + whole[place + 1 :])
            with pytest.raises(IntegrityError, match=f"{prefix}/{name}: sha256 is [0-9a-f]{{64}}"):
                fetch(store, prefix, tmp_path / "out" / "fetched", digest)
        path.write_bytes(whole)
    assert list(tmp_path.glob("out/*")) == []


@pytest.mark.parametrize("change", ["cut", "longer", "missing", "exchanged"])
def test_a_damaged_file_is_found_by_name(store, folder, tmp_path, change):
    prefix = upload_checkpoint(store, folder, "run")
    path = store.root / prefix / "training.safetensors"
    whole = path.read_bytes()
    if change == "missing":
        path.unlink()
    else:
        other = (folder / "model" / "model.safetensors").read_bytes()
        path.write_bytes({"cut": whole[:-1], "longer": whole + b"x", "exchanged": other[: len(whole)]}[change])
    with pytest.raises(IntegrityError, match=r"training\.safetensors"):
        verify(store, prefix)
    with pytest.raises(IntegrityError, match=r"training\.safetensors"):
        fetch(store, prefix, tmp_path / "out" / "fetched")
    assert list(tmp_path.glob("out/*")) == []


def test_a_manifest_exchanged_with_its_files_is_found_by_its_digest(store, tmp_path):
    ours = upload_checkpoint(store, make_checkpoint(tmp_path / "ours"), "run")
    theirs = upload_checkpoint(store, make_checkpoint(tmp_path / "theirs", seed=1), "run")
    digest = verify(store, ours).digest
    with pytest.raises(IntegrityError, match=f"expected {digest}; it is not what was registered"):
        fetch(store, theirs, tmp_path / "fetched", digest)


ENTRY = {"sha256": hashlib.sha256(b"evil").hexdigest(), "size": 4}
HOSTILE = {
    "parent": {"../evil": ENTRY},
    "deep parent": {"a/../../evil": ENTRY},
    "absolute": {"/tmp/evil": ENTRY},
    "hidden": {".bashrc": ENTRY},
    "itself": {"manifest.json": ENTRY},
    "file and folder": {"a": ENTRY, "a/b": ENTRY},
    "negative": {"a": {**ENTRY, "size": -1}},
    "truth for a size": {"a": {**ENTRY, "size": True}},
    "text for a size": {"a": {**ENTRY, "size": "4"}},
    "short hash": {"a": {**ENTRY, "sha256": "ab"}},
    "no hash": {"a": {"size": 4}},
    "a list": ["a"],
    "nothing": None,
}


@pytest.mark.parametrize("files", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_manifest_writes_nothing(tmp_path, files):
    source = tmp_path / "store" / "x"
    (source / "a").mkdir(parents=True)
    (source / "a" / "b").write_bytes(b"evil")
    (source.parent / "evil").write_bytes(b"evil")
    (source / "manifest.json").write_text(json.dumps({"files": files}))
    (tmp_path / "out").mkdir()
    with pytest.raises(StorageError):
        fetch(FolderStore(tmp_path / "store"), "x", tmp_path / "out" / "fetched")
    assert list((tmp_path / "out").iterdir()) == []
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("raw", [b"", b"[]", b"\xff\xfe", b'{"files"', b"[" * 100_000, b"x" * (17 << 20)])
def test_a_manifest_that_is_none_is_refused(tmp_path, raw):
    (tmp_path / "manifest.json").write_bytes(raw)
    with pytest.raises(IntegrityError, match=r"manifest\.json"):
        verify(FolderStore(tmp_path), "")


def test_no_more_is_read_than_the_manifest_says(tmp_path):
    read = 0

    class Endless(FolderStore):
        def chunks(self, key):
            nonlocal read
            if key.endswith("manifest.json"):
                yield json.dumps({"files": {"a": ENTRY}}).encode()
            while True:
                read += 1
                yield b"xxxx"

    class Bounded(Endless):
        def get_bytes(self, key, limit=0):
            return next(self.chunks(key))

    with pytest.raises(IntegrityError, match="larger than the 4 bytes"):
        fetch(Bounded(tmp_path), "", tmp_path / "fetched")
    assert read == 2
    assert not (tmp_path / "fetched").exists()


def test_a_fetch_onto_itself_is_free_and_onto_others_refused(store, folder, tmp_path):
    prefix = upload_checkpoint(store, folder, "run")
    fetched = fetch(store, prefix, tmp_path / "fetched")
    remove = store.root / prefix / "training.safetensors"
    remove.unlink()  # not needed again
    assert fetch(store, prefix, fetched) == fetched
    (fetched / "training.safetensors").write_bytes(b"altered")
    with pytest.raises(IntegrityError, match=r"fetched/training\.safetensors"):
        fetch(store, prefix, fetched)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis").write_text("x")
    for taken in (tmp_path / "mine", tmp_path / "mine" / "thesis"):
        with pytest.raises(StorageError, match="choose another destination"):
            fetch(store, prefix, taken)
    assert content(tmp_path / "mine") == {"thesis": b"x"}


def test_a_folder_that_is_not_what_its_manifest_says_is_not_uploaded(store, folder):
    (folder / "optimizer.pkl").write_bytes(b"x")
    with pytest.raises(IntegrityError, match=r"optimizer\.pkl is not named by manifest\.json"):
        upload_checkpoint(store, folder, "run")
    (folder / "optimizer.pkl").unlink()
    (folder / "training.safetensors").write_bytes(b"torn")
    with pytest.raises(IntegrityError, match=r"training\.safetensors: sha256"):
        upload_checkpoint(store, folder, "run")
    assert store.list() == []


@pytest.mark.parametrize("step", [None, -1, "12", 1.5, True])
def test_a_step_must_be_a_count(store, tmp_path, step):
    with pytest.raises(IntegrityError, match="step is"):
        upload_checkpoint(store, make_checkpoint(tmp_path / "c", step=step), "run")


@pytest.mark.parametrize("run", ["", "a/b", "..", "../other"])
def test_a_run_is_one_name(store, folder, run):
    with pytest.raises(StorageError):
        upload_checkpoint(store, folder, run)


def test_the_pointer_never_goes_back(store, tmp_path):
    prefixes = {step: upload_checkpoint(store, make_checkpoint(tmp_path / str(step), step), "run") for step in (5, 20, 10)}
    assert latest(store, "run") == prefixes[20]
    assert latest(store, "other") is None


def test_of_racing_uploads_the_highest_step_is_latest(tmp_path):
    folders = [make_checkpoint(tmp_path / str(step), step) for step in range(8)]
    with ThreadPoolExecutor(8) as threads:
        prefixes = list(threads.map(lambda f: upload_checkpoint(open_store(str(tmp_path / "store")), f, "run"), folders))
    assert latest(FolderStore(tmp_path / "store"), "run") == prefixes[7]


@pytest.mark.parametrize("data", [b"", b"{}", b'{"step": 1, "prefix": "checkpoints/other/1"}', b'{"step":"1"}'])
def test_a_foreign_pointer_is_refused(store, folder, data):
    store.put_bytes("checkpoints/run/latest.json", data)
    for action in (lambda: latest(store, "run"), lambda: upload_checkpoint(store, folder, "run")):
        with pytest.raises(IntegrityError, match=r"latest\.json: not a pointer"):
            action()


def test_a_pointer_altered_to_a_later_step_does_not_hold_back_what_follows(store, folder, tmp_path):
    prefix = upload_checkpoint(store, folder, "run")
    path = store.root / "checkpoints/run/latest.json"
    path.write_bytes(path.read_bytes().replace(b'"step": 12', b'"step": 92'))
    with pytest.raises(IntegrityError, match=r"latest\.json: not a pointer"):
        latest(store, "run")
    path.unlink()  # as the error says
    upload_checkpoint(store, make_checkpoint(tmp_path / "next", step=13), "run")
    assert latest(store, "run") != prefix


def test_a_removed_checkpoint_is_gone(store, folder, tmp_path):
    prefix = upload_checkpoint(store, folder, "run")
    remove_checkpoint(store, prefix)
    assert store.list(prefix) == []
    with pytest.raises(MissingObjectError):
        fetch(store, prefix, tmp_path / "fetched")


def test_the_pointer_keeps_a_note_and_what_a_run_no_longer_needs_goes(store, tmp_path):
    prefixes = [
        upload_checkpoint(store, make_checkpoint(tmp_path / str(step), step=step, seed=step), "noted", {"epoch": step})
        for step in (1, 2, 3)
    ]
    assert prefix_of(tmp_path / "3", "noted") == prefixes[2]
    assert latest_of(store, "noted") == (3, prefixes[2], {"epoch": 3}, False)
    other = upload_checkpoint(store, make_checkpoint(tmp_path / "other", seed=9), "noted-too")
    store.put_bytes("checkpoints/noted/00000004-unfinished/model/model.safetensors", b"half")
    remove_others(store, "noted", {prefixes[0], prefixes[2]})
    assert latest(store, "noted") == prefixes[2]
    left = {key.split("/")[2] for key in store.list("checkpoints/noted")}
    assert left == {prefixes[0].split("/")[2], prefixes[2].split("/")[2], "latest.json"}
    assert latest(store, "noted-too") == other


def test_a_closed_run_keeps_one_checkpoint_and_what_its_processes_store_later_counts_no_more(store, tmp_path):
    def upload(step):
        folder = make_checkpoint(tmp_path / f"{step}-{uuid.uuid4().hex}", step=step, seed=step)
        return upload_checkpoint(store, folder, "run", {"epoch": step, "best": best})

    assert close_run(store, "run", lambda note: note["best"]) is None
    best = ""
    best = upload(1)
    upload(2)
    for _ in range(2):  # it may be repeated
        assert close_run(store, "run", lambda note: note["best"]) == (1, best, {"epoch": 2, "best": best}, True)
        assert latest_of(store, "run") == (1, best, {"epoch": 2, "best": best}, True)
        assert {key.rsplit("/", 1)[0] for key in store.list("checkpoints/run") if key.count("/") == 3} == {best}
    for step in (1, 3):
        with pytest.raises(StorageError, match=r"latest\.json: the run was ended for good; train under another name"):
            upload(step)
    assert latest(store, "run") == best
    verify(store, best)


def test_nothing_stays_of_a_closed_run_that_has_none_to_keep(store, folder):
    upload_checkpoint(store, folder, "run", {"best": ""})
    assert close_run(store, "run", lambda note: note["best"]).prefix == ""
    assert store.list("checkpoints/run") == []
