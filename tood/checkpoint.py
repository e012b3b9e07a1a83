"""Models and checkpoints on disk: safetensors and JSON. Nothing is pickled; no byte is used before it is verified.

    MODEL folder       model.safetensors, manifest.json
    CHECKPOINT folder  model/ (a model), training.safetensors (optimizer, raw weights, RNG), manifest.json

A manifest is an account of its content plus `files`: name -> sha256, size. The header of a safetensors file repeats the
account, so a change to the manifest shows as well as one to a tensor, and a single file describes (and checks) itself.
Equal input gives equal bytes; the sha256 of manifest.json is the content's address.
"""

import dataclasses
import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from tood.atomic import write_folder
from tood.errors import CheckpointError
from tood.finetune import LoadReport, load_into
from tood.tensorfile import (
    FORMAT,
    MAX_JSON,
    account_of,
    canonical,
    check_content,
    check_format,
    pack,
    parse_json,
    plain,
    tensors_of,
)

__all__ = [
    "Checkpoint",
    "LoadReport",
    "Model",
    "ModelInfo",
    "digest",
    "load_checkpoint",
    "load_into",
    "load_model",
    "read_manifest",
    "save_checkpoint",
    "save_model",
    "verify",
]

MANIFEST, WEIGHTS, TRAINING = "manifest.json", "model.safetensors", "training.safetensors"
FILES = {"model": {WEIGHTS}, "checkpoint": {f"model/{WEIGHTS}", f"model/{MANIFEST}", TRAINING}}  # of each kind
PICKLES = (".pth", ".pt", ".pkl", ".pickle", ".ckpt", ".bin")


@dataclass(frozen=True)
class ModelInfo:
    """What a model is and where it came from; plain JSON values, finite numbers."""

    config: dict[str, Any]  # the full recipe, as `tood.config.to_dict` gives it
    config_hash: str
    names: list[str]  # class names by label
    category_ids: list[int]  # the data set's category ids by label
    epoch: int  # epochs and steps done
    step: int
    metrics: dict[str, float]
    dataset: str  # fingerprint of the data set that `metrics` were measured on
    versions: dict[str, str]


class Model(NamedTuple):
    info: ModelInfo
    weights: dict[str, Tensor]


class Checkpoint(NamedTuple):
    info: ModelInfo
    weights: dict[str, Tensor]
    tensors: dict[str, Tensor]
    state: dict[str, Any]


# -- writing ---------------------------------------------------------------------------------------------------------


def save_model(folder: Path, weights: dict[str, Tensor], info: ModelInfo) -> None:
    """Write a model folder, atomically; an earlier model or checkpoint in its place stays whole until then.

    Raises CheckpointError for an `info` that JSON cannot hold, a folder that holds something else, or a full disk.
    """
    _write(Path(folder), _model_files(weights, info))


def save_checkpoint(
    folder: Path, weights: dict[str, Tensor], info: ModelInfo, tensors: dict[str, Tensor], state: dict[str, Any]
) -> None:
    """Write a checkpoint folder like `save_model`: `tensors` and the JSON `state` are what training needs to go on."""
    model = {f"model/{name}": data for name, data in _model_files(weights, info).items()}
    account = plain({"format": FORMAT, "kind": "checkpoint", "epoch": info.epoch, "step": info.step, "state": state})
    files = model | {TRAINING: pack(tensors, account)}
    _write(Path(folder), files | {MANIFEST: _manifest_bytes(account, files)})


def _model_files(weights: dict[str, Tensor], info: ModelInfo) -> dict[str, bytes]:
    account = plain({"format": FORMAT, "kind": "model", "info": dataclasses.asdict(info)})
    _info(account["info"], "the model to be saved")
    files = {WEIGHTS: pack(weights, account)}
    return files | {MANIFEST: _manifest_bytes(account, files)}


def _manifest_bytes(account: dict, files: dict[str, bytes]) -> bytes:
    listed = {name: {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)} for name, data in files.items()}
    return canonical(account | {"files": listed}, indent=1) + b"\n"


def _write(folder: Path, files: dict[str, bytes]) -> None:
    try:
        others = {entry.name for entry in folder.iterdir()} if folder.exists() else set()
        others -= {MANIFEST, WEIGHTS, TRAINING, "model"}
        if others:
            raise CheckpointError(f"{folder}: holds {min(others)!r}, so it will not be replaced; name another folder")
        write_folder(folder, files)
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be written: {error.strerror or error}") from None


# -- reading ---------------------------------------------------------------------------------------------------------


def load_model(path: Path) -> Model:
    """Read a model folder, the model of a checkpoint folder, or one of our .safetensors files. Tensors on the CPU.

    Raises CheckpointError for anything missing, altered or foreign. A pickle is never opened.
    """
    path = Path(path)
    if path.is_dir():
        manifest, files = _open_folder(path)
        name = WEIGHTS if manifest["kind"] == "model" else f"model/{WEIGHTS}"
        return _model(files[name], path / name)
    if path.suffix.lower() in PICKLES:
        raise CheckpointError(f"{path}: a pickle can run code when opened, so it is not; give a .safetensors model")
    data = _read(Path(os.path.realpath(path)))
    check_content(data, path)
    return _model(data, path)


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint folder. Raises CheckpointError like `load_model`."""
    folder = Path(folder)
    manifest, files = _open_folder(folder)
    if manifest["kind"] != "checkpoint":
        raise CheckpointError(
            f"{folder}: a {manifest['kind']}, not a checkpoint: training cannot be resumed from it; use it as init"
        )
    model = _model(files[f"model/{WEIGHTS}"], folder / "model" / WEIGHTS)
    return Checkpoint(*model, tensors_of(files[TRAINING], folder / TRAINING), manifest["state"])


def verify(folder: Path) -> dict[str, Any]:
    """Check every byte of a model or checkpoint folder and return its manifest. Raises CheckpointError."""
    return _open_folder(Path(folder))[0]


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest, checked for form; the files that it lists are not looked at. Raises CheckpointError."""
    return _parse_manifest(*_manifest_of(Path(folder)))


def digest(folder: Path) -> str:
    """The sha256, in hex, of the manifest: the address of everything in the folder."""
    data, where = _manifest_of(Path(folder))
    _parse_manifest(data, where)
    return hashlib.sha256(data).hexdigest()


def _open_folder(folder: Path) -> tuple[dict, dict[str, bytes]]:
    """The manifest and the content of the files that it lists, all of which agree."""
    manifest = read_manifest(folder)
    if (folder / "model").is_symlink():
        raise CheckpointError(f"{folder / 'model'}: a link, and a checkpoint holds its files itself; copy what it leads to")
    files = {}
    for name, listed in manifest["files"].items():
        files[name] = data = _read(folder / name, listed["size"])
        if hashlib.sha256(data).hexdigest() != listed["sha256"]:
            raise CheckpointError(f"{folder / name}: altered or damaged: not the manifest's sha256; get it again")
    described_by = {WEIGHTS if manifest["kind"] == "model" else TRAINING: manifest}
    if manifest["kind"] == "checkpoint":
        model = _parse_manifest(files[f"model/{MANIFEST}"], folder / "model" / MANIFEST)
        if model["files"] != {WEIGHTS: manifest["files"][f"model/{WEIGHTS}"]}:
            raise CheckpointError(f"{folder / 'model' / MANIFEST}: lists other files than the checkpoint's manifest; get it again")
        described_by[f"model/{WEIGHTS}"] = model
    for name, its_manifest in described_by.items():
        account = {key: value for key, value in its_manifest.items() if key != "files"}
        if account != account_of(files[name], folder / name):
            raise CheckpointError(f"{folder / name}: its header and its manifest do not agree: altered; get it again")
    return manifest, files


def _manifest_of(folder: Path) -> tuple[bytes, Path]:
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: not a folder; give a model's or a checkpoint's")
    return _read(folder / MANIFEST), folder / MANIFEST


def _parse_manifest(data: bytes, where: Path) -> dict[str, Any]:
    manifest = parse_json(data, where)
    if not isinstance(manifest, dict) or manifest.get("kind") not in list(FILES):
        raise CheckpointError(f"{where}: not the manifest of a model or checkpoint; give another folder")
    check_format(manifest, where)
    expected = {"format", "kind", "files"} | ({"info"} if manifest["kind"] == "model" else {"epoch", "step", "state"})
    files = manifest.get("files")
    if manifest.keys() != expected or not isinstance(files, dict) or files.keys() != FILES[manifest["kind"]]:
        raise CheckpointError(f"{where}: lists other keys or files than a {manifest['kind']} has; it was altered, get it again")
    for name, listed in files.items():
        if not isinstance(listed, dict) or {k: type(v) for k, v in listed.items()} != {"sha256": str, "size": int}:
            raise CheckpointError(f"{where}: {name} needs a sha256 and a size; it was altered, get it again")
    if canonical(manifest, indent=1) + b"\n" != data:  # spaces, order, keys given twice
        raise CheckpointError(f"{where}: not in the form it was written in; it was altered, get it again")
    return manifest


def _read(path: Path, size: int | None = None) -> bytes:
    """The content of a plain file, not a link, of `size` bytes; of a manifest, no more than a manifest can have."""
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK)) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise CheckpointError(f"{path}: not a file; put the model's own there")
            if size is not None and status.st_size != size:
                raise CheckpointError(f"{path}: {status.st_size} bytes, the manifest says {size}; get it again")
            if path.name == MANIFEST and status.st_size > MAX_JSON:
                raise CheckpointError(f"{path}: {status.st_size} bytes are too many for a manifest; get it again")
            return file.read()
    except OSError as error:
        link = "a link, and a checkpoint holds its files itself; copy what it leads to"
        said = link if path.is_symlink() else f"{error.strerror or error}; give the folder or file of a model"
        raise CheckpointError(f"{path}: cannot be read: {said}") from None


def _model(data: bytes, where: Path) -> Model:
    account = account_of(data, where)
    if account.get("kind") != "model":
        raise CheckpointError(f"{where}: the state of a training, not a model; give the checkpoint's folder")
    return Model(_info(account.get("info"), where), tensors_of(data, where))


def _info(values: Any, where: Any) -> ModelInfo:
    keys = {field.name for field in dataclasses.fields(ModelInfo)}
    if not isinstance(values, dict) or values.keys() != keys:
        raise CheckpointError(f"{where}: its info must have the keys {', '.join(sorted(keys))}; get it again")
    names, ids, metrics, versions = (values[key] for key in ("names", "category_ids", "metrics", "versions"))
    fits = {
        "config": isinstance(values["config"], dict),
        "config_hash": isinstance(values["config_hash"], str),
        "names": _all_different(names, str) and len(names) > 0,
        "category_ids": _all_different(ids, int) and isinstance(names, list) and len(ids) == len(names),
        "epoch": type(values["epoch"]) is int and values["epoch"] >= 0,
        "step": type(values["step"]) is int and values["step"] >= 0,
        "metrics": isinstance(metrics, dict) and all(type(m) in (int, float) for m in metrics.values()),
        "dataset": isinstance(values["dataset"], str),
        "versions": isinstance(versions, dict) and all(isinstance(v, str) for v in versions.values()),
    }
    for key, fit in fits.items():
        if not fit:
            raise CheckpointError(f"{where}: info.{key} does not fit: {values[key]!r:.80}; get the model again")
    return ModelInfo(**values)


def _all_different(values: Any, kind: type) -> bool:
    return isinstance(values, list) and all(type(value) is kind for value in values) and len(set(values)) == len(values)
