"""Models and checkpoints of ours: their folders, manifests and safetensors headers."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from typing import Any

from tests.bad_inputs.case import Case, Cases, Place, text
from tood.tensorfile import canonical

COMMAND = "predict {folder}/m {sound}/data/val/1.png --output {out}"


def _load(place: Place):
    from tood.checkpoint import load_model

    return load_model(place.folder / "m")


def _load_detector(place: Place):
    from tood.trained import load

    return load(place.folder / "m", "cpu")


def copied(
    what: str, damage: Callable[[Any], Any], where: str, says: str, command: str = "", of: str = "model", load=_load
) -> Case:
    """A copy of a sound folder with one fault."""

    def make(place: Place) -> None:
        damage(shutil.copytree(place.sound / of, place.folder / "m"))

    return Case(what, make, load, where, says, command)


def manifest(what: str, says: str, command: str = "", **changes: Any) -> Case:
    """Changed by somebody who knows its form."""

    def damage(folder) -> None:
        content = json.loads((folder / "manifest.json").read_text()) | changes
        (folder / "manifest.json").write_bytes(json.dumps(content, sort_keys=True, indent=1).encode() + b"\n")

    return copied(what, damage, "{folder}/m", says, command)


def rewritten(folder, **info: Any) -> None:
    """The whole model anew with another account of itself, every hash right: what only its content gives away."""
    from tood.tensorfile import pack, tensors_of

    weights = folder / "model.safetensors"
    account = json.loads((folder / "manifest.json").read_text())
    account.pop("files")
    account["info"] |= info
    data = pack(tensors_of(weights.read_bytes(), weights), account)
    weights.write_bytes(data)
    files = {"model.safetensors": {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}}
    (folder / "manifest.json").write_bytes(canonical(account | {"files": files}, indent=1) + b"\n")


def info(what: str, says: str, of: str = "model", where: str = "{folder}/m", load=_load, command: str = "", **values: Any) -> Case:
    return copied(what, lambda folder: rewritten(folder, **values), where, says, command, of, load)


def manifest_text(what: str, content: str | bytes, says: str) -> Case:
    data = content if isinstance(content, bytes) else content.encode()
    return copied(what, lambda folder: (folder / "manifest.json").write_bytes(data), "{folder}/m/manifest.json", says)


def header(what: str, content: Any, says: str = "", data: bytes = b"\0" * 64, length: int | None = None, command: str = "") -> Case:
    """A .safetensors file of a header that says whatever it likes, read on both roads that read such files."""
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    whole = (len(raw) if length is None else length).to_bytes(8, "little") + raw + data

    def load(place: Place):
        from tood.mmdet.files import read_foreign

        return read_foreign(place.folder / "x.safetensors")

    return Case(what, text("x.safetensors", whole), load, "{folder}/x.safetensors", says, command)


def tensor(start: int = 0, end: int = 8, shape: Any = (2,), dtype: Any = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def _whole(content: Any, size: int) -> bytes:
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    return len(raw).to_bytes(8, "little") + raw + b"\0" * size


IMPORT = "import {folder}/x.safetensors --output {out}"
DAMAGED = "damaged or foreign"
CASES: Cases = {
    "model-missing": Case("no folder", lambda place: None, _load, "{folder}/m", "No such file", COMMAND),
    "model-folder-empty": Case("an empty folder", lambda place: (place.folder / "m").mkdir(), _load, "{folder}/m/manifest.json", "cannot be read", COMMAND),
    "model-without-weights": copied("a manifest without weights", lambda f: (f / "model.safetensors").unlink(), "{folder}/m/model.safetensors", "cannot be read"),
    "model-without-manifest": copied("weights without a manifest", lambda f: (f / "manifest.json").unlink(), "{folder}/m/manifest.json", "cannot be read"),
    "model-cut": copied("weights cut in the middle", lambda f: os.truncate(f / "model.safetensors", 300), "{folder}/m/model.safetensors", "the manifest says", COMMAND),
    "model-flipped-bit": copied("one bit flipped", lambda f: _flip(f / "model.safetensors"), "{folder}/m/model.safetensors", "altered or damaged", COMMAND),
    "model-longer": copied("a byte too many", lambda f: (f / "model.safetensors").open("ab").write(b"x"), "{folder}/m/model.safetensors", "the manifest says"),
    "model-weights-link": copied("a link in place of the weights", lambda f: _link(f / "model.safetensors"), "{folder}/m/model.safetensors", "a link"),
    "model-manifest-link": copied("a link in place of the manifest", lambda f: _link(f / "manifest.json"), "{folder}/m/manifest.json", "a link"),
    "model-weights-folder": copied("a folder in place of the weights", lambda f: _folder(f / "model.safetensors"), "{folder}/m/model.safetensors", ""),
    "model-weights-pipe": copied("a pipe in place of the weights", lambda f: _pipe(f / "model.safetensors"), "{folder}/m/model.safetensors", "not a file"),
    "manifest-empty": manifest_text("an empty manifest", "", DAMAGED),
    "manifest-cut": manifest_text("a manifest cut in the middle", '{"files": {"mod', DAMAGED),
    "manifest-list": manifest_text("a list", "[]", "not the manifest of a model"),
    "manifest-deep": manifest_text("a hundred thousand lists in each other", "[" * 100_000, DAMAGED),
    "manifest-nan": manifest_text("a number that is none", '{"format": NaN}', "NaN is not a finite number"),
    "manifest-infinite": manifest_text("a number beyond every fraction", '{"format": 1e999}', "is not a finite number"),
    "manifest-binary": manifest_text("bytes that are no text", b"\xff" * 50, DAMAGED),
    "manifest-huge": copied("seventeen megabytes", lambda f: os.truncate(f / "manifest.json", 17 * 2**20), "{folder}/m/manifest.json", "too many for a manifest"),
    "manifest-key-twice": copied("a key given twice", lambda f: _twice(f / "manifest.json"), "{folder}/m/manifest.json", "not in the form"),
    "manifest-kind": manifest("a kind that nobody knows", "not the manifest of a model", kind="picture"),
    "manifest-format": manifest("the format of a later version", "format 2, this version reads 1", format=2, command=COMMAND),
    "manifest-more-keys": manifest("a key more", "lists other keys or files", loader="evil"),
    "manifest-no-files": manifest("no files", "lists other keys or files", files={}),
    "manifest-file-absolute": manifest("a file by its absolute path", "lists other keys or files", files={"/etc/hostname": {"sha256": "0" * 64, "size": 1}}, command=COMMAND),
    "manifest-file-parent": manifest("a file that leaves the folder", "lists other keys or files", files={"../x": {"sha256": "0" * 64, "size": 1}}),
    "manifest-size-text": manifest("a size that is a text", "needs a sha256 and a size", files={"model.safetensors": {"sha256": "0", "size": "1"}}),
    "manifest-size-negative": manifest("a negative size", "", files={"model.safetensors": {"sha256": "0" * 64, "size": -1}}),
    "manifest-other-hash": manifest("the hash of another file", "", files={"model.safetensors": {"sha256": "0" * 64, "size": 1}}),
    "info-missing": manifest("nothing said of the model", "do not agree", info=None),
    "info-other": manifest("another account than the weights give", "do not agree", info={"epoch": 4}),
    "info-names-number": info("a number for the class names", "info.names does not fit: 3", names=3),
    "info-names-empty": info("no class at all", "info.names does not fit: []", names=[], category_ids=[]),
    "info-names-twice": info("two classes of one name", "info.names does not fit", names=["a", "a"]),
    "info-ids-twice": info("two classes of one category id", "info.category_ids does not fit", category_ids=[1, 1]),
    "info-ids-few": info("fewer ids than names", "info.category_ids does not fit", category_ids=[1]),
    "info-epoch-negative": info("a negative epoch", "info.epoch does not fit: -1", epoch=-1),
    "info-metrics-text": info("a text for a metric", "info.metrics does not fit", metrics={"val/AP": "high"}),
    "info-config-list": info("a list for the recipe", "info.config does not fit", config=[]),
    "info-config-key": info("a recipe with an unknown key", "unknown key", "detector", load=_load_detector, command=COMMAND, config={"model": {"tovver": 1}}),
    "info-config-value": info("a recipe with an impossible value", "is not between", "detector", load=_load_detector, config={"model": {"layers": 10**6}}),
    "info-config-other": info("a recipe of another detector", "do not fit this model", "detector", load=_load_detector, command=COMMAND, config={"model": {"detector": "atss"}}),
    "info-config-giant": info(
        "a recipe of a detector of forty billion bytes for weights of forty million",
        "do not fit this model",
        "detector",
        load=_load_detector,
        config={"model": {"channels": 4096, "layers": 32, "neck": {"channels": 1024}, "deformable": "none"}},
    ),
    "checkpoint-inner-link": copied("a link in place of a checkpoint's model", lambda f: _link(f / "model"), "{folder}/m/model", "a link", of="checkpoint"),
    "checkpoint-without-state": copied("no state of the training", lambda f: (f / "training.safetensors").unlink(), "{folder}/m/training.safetensors", "cannot be read", of="checkpoint"),
    "checkpoint-wanted": Case(
        "a model where a checkpoint is wanted",
        lambda place: shutil.copytree(place.sound / "model", place.folder / "m"),
        lambda place: _load_checkpoint(place),
        "{folder}/m",
        "a model, not a checkpoint",
    ),
    "state-as-model": Case(
        "the state of a training where a model is wanted",
        lambda place: shutil.copy(place.sound / "checkpoint/training.safetensors", place.folder / "m"),
        _load,
        "{folder}/m",
        "the state of a training, not a model",
    ),
    "header-empty-file": Case("an empty file", text("x.safetensors", b""), lambda place: _load_file(place), "{folder}/x.safetensors", "not a whole safetensors file"),
    "header-short-file": Case("three bytes", text("x.safetensors", b"abc"), lambda place: _load_file(place), "{folder}/x.safetensors", "not a whole safetensors file"),
    "header-of-others": Case("weights of another program", text("x.safetensors", _whole({"a": tensor()}, 8)), lambda place: _load_file(place), "{folder}/x.safetensors", "not a model of ours"),
    "header-half-character": Case("half a character in the account", text("x.safetensors", _whole(rb'{"__metadata__": {"tood": "\ud800"}}', 0)), lambda place: _load_file(place), "{folder}/x.safetensors", ""),
    "header-not-sha": Case("an account without its hash", text("x.safetensors", _whole(b'{"__metadata__": {"tood": "{\\"format\\": 1}"}}', 0)), lambda place: _load_file(place), "{folder}/x.safetensors", "altered or damaged"),
    "header-huge": header("a header of a hundred gigabytes, it says", b"{}", length=10**11, command=IMPORT),
    "header-longer-than-file": header("a header longer than the file", b"{}", length=1000),
    "header-negative": header("a header of 2^64 - 1 bytes", b"{}", length=2**64 - 1),
    "header-list": header("a list for a header", []),
    "header-deep": header("a header of lists in each other", b"[" * 100_000),
    "header-binary": header("a header that is no text", b"\xff\xfe" * 20),
    "header-overlap": header("two tensors in the same bytes", {"a": tensor(0, 8), "b": tensor(4, 12)}, data=b"\0" * 12, command=IMPORT),
    "header-hole": header("bytes that belong to no tensor", {"a": tensor(0, 8), "b": tensor(16, 24)}, data=b"\0" * 24),
    "header-beyond-end": header("a tensor beyond the file's end", {"a": tensor(0, 8000, (2000,))}),
    "header-backwards": header("a tensor that ends before it starts", {"a": tensor(8, 0)}, data=b"\0" * 8),
    "header-negative-offset": header("a negative offset", {"a": tensor(-8, 0)}, data=b"\0" * 8),
    "header-negative-side": header("a negative side", {"a": tensor(0, 8, (-2, -1))}, data=b"\0" * 8),
    "header-overflowing-shape": header("sides whose product overflows", {"a": tensor(0, 8, (2**62, 2**62))}, data=b"\0" * 8),
    "header-shape-lies": header("a shape of more than its bytes", {"a": tensor(0, 8, (3,))}, data=b"\0" * 8),
    "header-dtype-lies": header("a type of more than its bytes", {"a": tensor(0, 8, (2,), "F64")}, data=b"\0" * 8),
    "header-dtype-unknown": header("a type that there is not", {"a": tensor(0, 8, (2,), "F31")}, data=b"\0" * 8),
    "header-dtype-number": header("a number for a type", {"a": tensor(0, 8, (2,), 32)}, data=b"\0" * 8),
    "header-shape-text": header("a text for a shape", {"a": tensor(0, 8, "2")}, data=b"\0" * 8),
    "header-trailing": header("bytes after the last tensor", {"a": tensor()}, data=b"\0" * 9),
    "header-tensor-twice": header("a tensor given twice", b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}', data=b"\0" * 16),
    "header-no-tensor": header("no tensor", {}, data=b"", says="holds no tensors"),
}  # fmt: skip


def _load_file(place: Place):
    from tood.checkpoint import load_model

    return load_model(place.folder / "x.safetensors")


def _load_checkpoint(place: Place):
    from tood.checkpoint import load_checkpoint

    return load_checkpoint(place.folder / "m")


def _flip(path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def _twice(path) -> None:
    path.write_text(path.read_text().replace('"kind"', '"kind": "model",\n "kind"', 1))


def _link(path) -> None:
    away = path.with_name("away")
    path.rename(away)
    path.symlink_to(away)


def _folder(path) -> None:
    path.unlink()
    path.mkdir()


def _pipe(path) -> None:
    path.unlink()
    os.mkfifo(path)
