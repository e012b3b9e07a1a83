"""Checkpoints: what is saved comes back, equal input gives equal bytes, and nothing damaged, foreign or pickled gets in."""

import dataclasses
import hashlib
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch

from tood import atomic
from tood.checkpoint import (
    ModelInfo,
    digest,
    load_checkpoint,
    load_model,
    read_manifest,
    save_checkpoint,
    save_model,
    verify,
)
from tood.errors import CheckpointError

INFO = ModelInfo(
    config={"model": {"tower": "t_head", "layers": 6}, "train": {"lr": 0.1, "milestones": [8, 11], "clip": None}},
    config_hash="0123456789ab",
    names=["Röntgen", "cup"],
    category_ids=[1, 90],
    epoch=3,
    step=120,
    metrics={"val/AP": 0.1 + 0.2, "val/AP_small": -1.0},
    dataset="fingerprint",
    versions={"torch": "2.0"},
)
STATE = {"sampler": {"epoch": 3, "batch": 0}, "best": 0.25, "note": None}


def weights(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "head.weight": torch.randn(3, 4, generator=generator),
        "backbone.bias": torch.randn(5, generator=generator).to(torch.bfloat16),
        "steps": torch.tensor(7),
        "empty": torch.zeros(0, 3),
    }


def training(seed: int = 0) -> dict[str, torch.Tensor]:
    return {"momentum.head.weight": torch.full((3, 4), float(seed)), "rng": torch.Generator().manual_seed(0).get_state()}


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def same(ours: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == expected.keys()
    for name, tensor in expected.items():
        assert ours[name].dtype == tensor.dtype
        assert torch.equal(ours[name], tensor.cpu()), name


@pytest.fixture
def model(tmp_path) -> Path:
    save_model(tmp_path / "model", weights(), INFO)
    return tmp_path / "model"


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    save_checkpoint(tmp_path / "checkpoint", weights(), INFO, training(), STATE)
    return tmp_path / "checkpoint"


# -- there and back --------------------------------------------------------------------------------------------------


def test_a_model_comes_back_from_folder_file_and_checkpoint(model, checkpoint):
    for path in (model, model / "model.safetensors", checkpoint, checkpoint / "model", str(model)):
        info, loaded = load_model(path)
        assert info == INFO
        same(loaded, weights())
    assert content(checkpoint / "model") == content(model)


def test_a_checkpoint_comes_back(checkpoint):
    info, loaded, tensors, state = load_checkpoint(checkpoint)
    assert (info, state) == (INFO, STATE)
    same(loaded, weights())
    same(tensors, training())


def test_manifests_say_what_is_there(model, checkpoint):
    manifest = verify(model)
    assert manifest == read_manifest(model) == json.loads((model / "manifest.json").read_text())
    assert manifest.keys() == {"format", "kind", "files", "info"}
    assert manifest["info"] == dataclasses.asdict(INFO)
    for folder in (model, checkpoint):
        for name, listed in verify(folder)["files"].items():
            data = (folder / name).read_bytes()
            assert listed == {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    manifest = verify(checkpoint)
    assert (manifest["kind"], manifest["epoch"], manifest["step"], manifest["state"]) == ("checkpoint", 3, 120, STATE)
    assert content(checkpoint).keys() == {*manifest["files"], "manifest.json"}


def test_equal_input_gives_equal_bytes(tmp_path, checkpoint):
    backwards = dict(reversed(weights().items())), dict(reversed(training().items()))
    info = dataclasses.replace(INFO, config=dict(reversed(INFO.config.items())))
    save_checkpoint(tmp_path / "again", backwards[0], info, backwards[1], dict(reversed(STATE.items())))
    assert content(tmp_path / "again") == content(checkpoint)
    assert digest(checkpoint) == hashlib.sha256((checkpoint / "manifest.json").read_bytes()).hexdigest()
    save_checkpoint(tmp_path / "other", weights(), INFO, training(1), STATE)
    assert digest(tmp_path / "other") != digest(checkpoint)


def test_bytes_do_not_depend_on_the_process(tmp_path, checkpoint):
    """Hash seeds order sets, and the maps of safetensors, anew in every process."""
    script = "import test_checkpoint as t; from pathlib import Path; import sys\n"
    script += "t.save_checkpoint(Path(sys.argv[1]), t.weights(), t.INFO, t.training(), t.STATE)"
    run_here(script, tmp_path / "again", PYTHONHASHSEED="1")
    assert content(tmp_path / "again") == content(checkpoint)


def run_here(script: str, *arguments: object, **environment: str) -> None:
    """Run Python in a process of its own that can import this file."""
    path = os.pathsep.join([*sys.path, str(Path(__file__).parent)])
    command = [sys.executable, "-c", script, *map(str, arguments)]
    subprocess.run(command, env={**os.environ, "PYTHONPATH": path, **environment}, check=True, timeout=120)


def test_other_readers_can_open_the_file(model):
    with safetensors.safe_open(model / "model.safetensors", "pt") as file:
        account = json.loads(file.metadata()["tood"])
        assert account == {"format": 1, "kind": "model", "info": dataclasses.asdict(INFO)}
        assert sorted(file.keys()) == sorted(weights())
    same(safetensors.torch.load_file(model / "model.safetensors"), weights())


def test_views_and_shared_memory_are_saved_as_they_read(tmp_path):
    base = torch.arange(24.0).reshape(4, 6)
    tensors = {
        "whole": base,
        "same": base,
        "transposed": base.T,
        "strided": base[::2, 1:],
        "expanded": torch.tensor(2.0).expand(3),
        "channels_last": torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "flags": torch.tensor([True, False]),
    }
    save_model(tmp_path / "model", tensors, INFO)
    loaded = load_model(tmp_path / "model").weights
    same(loaded, {name: tensor.detach() for name, tensor in tensors.items()})
    loaded["whole"].zero_()
    assert loaded["same"].any()


@pytest.mark.parametrize(
    "wrong",
    [
        {"metrics": {"val/AP": float("nan")}},
        {"config": {"path": Path("x")}},
        {"config": {1: "a", "b": 2}},
        {"names": ["cup", "cup"]},
        {"category_ids": [1]},
        {"epoch": -1},
        {"step": True},
        {"versions": {"torch": 2}},
        {"metrics": {"val/AP": "high"}},
    ],
)
def test_info_that_would_not_come_back_is_refused(wrong, tmp_path):
    with pytest.raises(CheckpointError):
        save_model(tmp_path / "model", weights(), dataclasses.replace(INFO, **wrong))
    assert not list(tmp_path.iterdir())


# -- damage ----------------------------------------------------------------------------------------------------------


def places(size: int, count: int) -> list[int]:
    return sorted({*range(min(size, 16)), *(size * i // count for i in range(count)), size - 1})


@pytest.mark.parametrize("kind", ["model", "checkpoint"])
def test_every_flipped_byte_is_refused(kind, request):
    folder = request.getfixturevalue(kind)
    load = load_model if kind == "model" else load_checkpoint
    for name, data in content(folder).items():
        # Of a manifest each byte, since no hash covers it; of the others enough to reach header and data.
        where = range(len(data)) if name == "manifest.json" else places(len(data), 40)
        for place in where:
            for bit in (0, 5):  # digits and letters; upper and lower case, and spaces
                flipped = bytearray(data)
                flipped[place] ^= 1 << bit
                (folder / name).write_bytes(flipped)
                for reader in (load, verify, load_model):
                    with pytest.raises(CheckpointError):
                        reader(folder)
        (folder / name).write_bytes(data)
    load(folder)


def test_every_flipped_byte_of_a_single_file_is_refused(model, tmp_path):
    data, path = (model / "model.safetensors").read_bytes(), tmp_path / "alone.safetensors"
    for place in range(len(data)):
        for bit in (0, 5):
            flipped = bytearray(data)
            flipped[place] ^= 1 << bit
            path.write_bytes(flipped)
            with pytest.raises(CheckpointError):
                load_model(path)
    path.write_bytes(data)
    assert load_model(path).info == INFO


@pytest.mark.parametrize("cut", [0, 1, 7, 8, 9, 200, -1])
def test_truncated_files_are_refused(cut, checkpoint):
    for name, data in content(checkpoint).items():
        for changed in (data[:cut], data + b" "):
            (checkpoint / name).write_bytes(changed)
            with pytest.raises(CheckpointError):
                load_checkpoint(checkpoint)
            if name.endswith("model.safetensors"):
                with pytest.raises(CheckpointError):
                    load_model(checkpoint / name)
        (checkpoint / name).write_bytes(data)


def test_missing_files_are_named(checkpoint, model):
    for name, data in content(checkpoint).items():
        (checkpoint / name).unlink()
        with pytest.raises(CheckpointError, match=re.escape(f"{checkpoint / name}: cannot be read: No such file")):
            load_checkpoint(checkpoint)
        (checkpoint / name).write_bytes(data)
    with pytest.raises(CheckpointError, match="not a folder"):
        load_checkpoint(checkpoint / "none")
    with pytest.raises(CheckpointError, match="No such file"):
        load_model(checkpoint / "none")
    with pytest.raises(CheckpointError, match="a model, not a checkpoint"):
        load_checkpoint(model)
    with pytest.raises(CheckpointError, match="state of a training, not a model"):
        load_model(checkpoint / "training.safetensors")


def rewrite(folder: Path, **changes: object) -> None:
    """A manifest changed by someone who knows its form."""
    manifest = json.loads((folder / "manifest.json").read_text()) | changes
    (folder / "manifest.json").write_text(json.dumps(manifest, sort_keys=True, indent=1) + "\n")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "format 2, this version reads 1"),
        ({"format": True}, "format True"),
        ({"kind": "picture"}, "not the manifest of a model or checkpoint"),
        ({"kind": ["model"]}, "not the manifest of a model or checkpoint"),
        ({"kind": "checkpoint"}, "lists other keys or files"),
        ({"extra": 1}, "lists other keys or files"),
        ({"files": []}, "lists other keys or files"),
        ({"files": {}}, "lists other keys or files"),
        ({"files": {"model.safetensors": "abc"}}, "needs a sha256 and a size"),
        ({"files": {"model.safetensors": {"sha256": "abc", "size": "1"}}}, "needs a sha256 and a size"),
        ({"info": dataclasses.asdict(INFO) | {"epoch": 4}}, "do not agree"),
        ({"info": None}, "do not agree"),
        ({"info": {"epoch": float("nan")}}, "NaN is not a finite number"),
    ],
)
def test_changed_manifests_are_refused(changes, message, model):
    rewrite(model, **changes)
    with pytest.raises(CheckpointError, match=message):
        load_model(model)


@pytest.mark.parametrize("name", ["/etc/hostname", "../secret", "model/../../secret", "secret"])
def test_manifests_cannot_reach_elsewhere(name, model):
    (model.parent / "secret").write_bytes(b"x")
    listed = {"sha256": hashlib.sha256(b"x").hexdigest(), "size": 1}
    for files in ({name: listed}, read_manifest(model)["files"] | {name: listed}):
        rewrite(model, files=files)
        with pytest.raises(CheckpointError, match="lists other keys or files"):
            verify(model)


@pytest.mark.parametrize("text", ["", "[]", "null", "{", "\xff", "[" * 100_000, '{"format": 1e999}', "1" * 10_000])
def test_manifests_that_are_no_json_objects_are_refused(text, model):
    (model / "manifest.json").write_bytes(text.encode("latin-1"))
    for reader in (verify, load_model, digest, read_manifest):
        with pytest.raises(CheckpointError):
            reader(model)


def test_links_are_refused(model, checkpoint, tmp_path):
    for folder, names in ((model, ["model.safetensors", "manifest.json"]), (checkpoint, ["training.safetensors"])):
        for name in names:
            (folder / name).rename(tmp_path / "moved")
            (folder / name).symlink_to(tmp_path / "moved")
            with pytest.raises(CheckpointError, match="a link"):
                load_model(folder)
            (tmp_path / "moved").replace(folder / name)
    (checkpoint / "model").rename(tmp_path / "moved")
    (checkpoint / "model").symlink_to(tmp_path / "moved")
    with pytest.raises(CheckpointError, match="a link"):
        load_checkpoint(checkpoint)


def test_pipes_and_folders_in_place_of_files_are_refused(model):
    (model / "model.safetensors").unlink()
    os.mkfifo(model / "model.safetensors")  # reading it would wait for ever
    with pytest.raises(CheckpointError, match="not a file"):
        load_model(model)
    (model / "model.safetensors").unlink()
    (model / "model.safetensors").mkdir()
    with pytest.raises(CheckpointError, match="directory"):
        load_model(model)


def test_oversized_headers_and_manifests_are_refused(model, tmp_path):
    with open(tmp_path / "huge.safetensors", "wb") as file:
        file.write((20 * 2**20).to_bytes(8, "little"))
        file.truncate(21 * 2**20)
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        load_model(tmp_path / "huge.safetensors")
    os.truncate(model / "manifest.json", 17 * 2**20)
    with pytest.raises(CheckpointError, match="too many for a manifest"):
        load_model(model)


def test_files_of_others_are_refused(tmp_path):
    path = tmp_path / "other.safetensors"
    safetensors.torch.save_file(weights(), path, {"format": "pt"})
    with pytest.raises(CheckpointError, match="not a model of ours"):
        load_model(path)
    path.write_bytes((2).to_bytes(8, "little") + b"[]")
    with pytest.raises(CheckpointError, match="not an object"):
        load_model(path)
    for header in (r'{"__metadata__": {"tood": "\ud800"}}', r'{"__metadata__": {"tood": "{}"}, "a": 1e999}', "{" * 9000):
        path.write_bytes(len(header).to_bytes(8, "little") + header.encode())
        with pytest.raises(CheckpointError):
            load_model(path)


# -- pickles ---------------------------------------------------------------------------------------------------------


class Payload:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["model.pth", "model.PT", "model.ckpt", "model.safetensors", "model"])
@pytest.mark.parametrize("form", ["pickle", "zip"])
def test_pickles_are_refused_and_not_run(name, form, tmp_path):
    trap, path = tmp_path / "trap", tmp_path / name
    path.write_bytes(pickle.dumps(Payload(trap)))
    if form == "zip":
        torch.save(Payload(trap), path)
    with pytest.raises(CheckpointError, match="pickle"):
        load_model(path)
    assert not trap.exists()
    with open(path, "rb") as file:
        torch.load(file, weights_only=False) if form == "zip" else pickle.load(file)
    assert trap.exists()  # the payload would have worked


def test_pickles_inside_folders_are_not_run(model, tmp_path):
    (model / "model.safetensors").write_bytes(pickle.dumps(Payload(tmp_path / "trap")))
    with pytest.raises(CheckpointError):
        load_model(model)
    assert not (tmp_path / "trap").exists()


# -- atomicity -------------------------------------------------------------------------------------------------------


def test_saving_replaces_an_older_one_and_leaves_nothing_else(checkpoint, model):
    save_checkpoint(checkpoint, weights(1), INFO, training(1), STATE)
    same(load_checkpoint(checkpoint).weights, weights(1))
    save_model(checkpoint, weights(2), INFO)
    assert content(checkpoint).keys() == {"model.safetensors", "manifest.json"}
    assert {p.name for p in checkpoint.parent.iterdir()} == {"checkpoint", "model"}


@pytest.mark.parametrize(("call", "nth"), [("fsync", 1), ("fsync", 3), ("fsync", 6), ("rename", 1), ("rename", 2)])
def test_a_crash_leaves_the_old_one_valid(call, nth, checkpoint, monkeypatch):
    """In the middle of writing, or between the renames where names cannot be swapped in one step."""
    before, calls, real = content(checkpoint), [], getattr(os, call)

    def crash(*arguments: object) -> None:
        calls.append(arguments)
        if len(calls) == nth:
            raise RuntimeError("crash")
        real(*arguments)

    monkeypatch.setattr(atomic, "_exchange", lambda first, second: False)
    monkeypatch.setattr(os, call, crash)
    with pytest.raises(RuntimeError, match="crash"):
        save_checkpoint(checkpoint, weights(1), INFO, training(1), STATE)
    monkeypatch.undo()
    assert content(checkpoint) == before
    assert [p.name for p in checkpoint.parent.iterdir()] == ["checkpoint"]
    verify(checkpoint)


def test_without_exchange_saving_replaces_too(checkpoint, monkeypatch):
    monkeypatch.setattr(atomic, "_exchange", lambda first, second: False)
    save_checkpoint(checkpoint, weights(1), INFO, training(1), STATE)
    same(load_checkpoint(checkpoint).weights, weights(1))
    assert [p.name for p in checkpoint.parent.iterdir()] == ["checkpoint"]


def test_a_full_disk_is_a_clear_error(checkpoint, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"checkpoint: cannot be written: No space left on device"):
        save_checkpoint(checkpoint, weights(1), INFO, training(1), STATE)
    same(load_checkpoint(checkpoint).weights, weights())


KILLED = """
import os, signal, sys, time
from pathlib import Path
import test_checkpoint as t

folder = Path(sys.argv[1])
for attempt in range(20):
    begun, begin = os.pipe()
    writer = os.fork()
    if not writer:
        number = 100_000 * attempt
        while True:
            number += 1
            t.save_checkpoint(folder, t.weights(number), t.INFO, t.training(number), {"number": number})
            os.write(begin, b".")
    os.read(begun, 1)
    time.sleep(0.001 * attempt)
    os.kill(writer, signal.SIGKILL)
    os.waitpid(writer, 0)
    os.close(begun), os.close(begin)
    _, loaded, tensors, state = t.load_checkpoint(folder)
    t.same(loaded, t.weights(state["number"]))
    assert tensors["momentum.head.weight"][0, 0] == state["number"] > 100_000 * attempt
"""


@pytest.mark.skipif(sys.platform != "linux", reason="names are swapped in one step on Linux alone")
def test_a_killed_writer_always_leaves_a_whole_checkpoint(checkpoint):
    """Twenty processes that save without pause are killed, each at another moment."""
    run_here(KILLED, checkpoint, OMP_NUM_THREADS="1")


def test_other_folders_are_never_replaced(tmp_path):
    (tmp_path / "home").mkdir()
    save_model(tmp_path / "home", weights(), INFO)  # empty: fine
    (tmp_path / "home" / "thesis.txt").write_text("years of work")
    for target in (tmp_path / "home", tmp_path / "home" / "thesis.txt"):
        with pytest.raises(CheckpointError):
            save_model(target, weights(), INFO)
    assert (tmp_path / "home" / "thesis.txt").read_text() == "years of work"
    shutil.rmtree(tmp_path / "home")
