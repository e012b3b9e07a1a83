"""Checkpoints: nothing damaged, foreign or pickled gets in."""

import dataclasses
import hashlib
import json
import os
import pickle
import re
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch

from tests.tood.checkpoints import INFO, content, weights
from tood.checkpoint import (
    digest,
    load_checkpoint,
    load_model,
    read_manifest,
    verify,
)
from tood.errors import CheckpointError

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
