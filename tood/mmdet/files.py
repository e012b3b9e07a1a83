"""Checkpoint files of mmdetection 3, of mmdetection 2 and of TOOD's first code: read without running them, and written.

    {"state_dict": {"backbone.conv1.weight": ...}, "meta": {"dataset_meta": {"classes": (...)}, "cfg": "model = dict(...", ...}}

Also a bare state dict, as .pth or .safetensors. Where a file holds an average of the weights, mmdetection has put it into
`state_dict` already; a file that has nothing but `ema_state_dict` is read from there.
"""

import io
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tood.atomic import write_file
from tood.errors import CheckpointError
from tood.mmdet.torchfile import is_tensor, read_torch_file
from tood.tensorfile import tensors_of

STATES = ("state_dict", "model", "ema_state_dict")
# TOOD's first code | mmdetection 3
_FIRST_NAMES = {
    "cls_decomp.la_conv1.": "cls_decomp.layer_attention.0.",
    "cls_decomp.la_conv2.": "cls_decomp.layer_attention.2.",
    "reg_decomp.la_conv1.": "reg_decomp.layer_attention.0.",
    "reg_decomp.la_conv2.": "reg_decomp.layer_attention.2.",
    "cls_prob_conv1.": "cls_prob_module.0.",
    "cls_prob_conv2.": "cls_prob_module.2.",
    "reg_offset_conv1.": "reg_offset_module.0.",
    "reg_offset_conv2.": "reg_offset_module.2.",
}
_NO_PARAMETERS = ("data_preprocessor.", "ema_backbone_", "ema_neck_", "ema_bbox_head_")  # nor are the averager's counters


class Foreign(NamedTuple):
    state: dict[str, Tensor]  # by mmdetection 3's names
    found_in: str  # which part of the file it is
    first_code: bool  # of TOOD's own repository, by its names
    classes: tuple[str, ...]  # () where the file does not say
    config_text: str | None  # mmdetection's configuration, Python source
    recipe: dict[str, Any] | None  # ours, in files that `tood export` wrote
    epoch: int
    step: int


def read_foreign(path: Path) -> Foreign:
    """Raises CheckpointError for a file that cannot be read, or that holds no state dict."""
    if path.suffix.lower() == ".safetensors":
        try:
            values, meta, found_in = tensors_of(path.read_bytes(), path), {}, "the file"
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}; name another file") from None
        if not values:
            raise CheckpointError(f"{path}: holds no tensors; give the file of a state dict")
    else:
        file = read_torch_file(path)
        values, found_in = _state_of(file.content, path)
        values = file.tensors(values)
        meta = file.content.get("meta")
        meta = meta if isinstance(meta, dict) else {}
    state = _under_names_of_3(values)
    classes, text, recipe = _classes(meta), meta.get("cfg") or meta.get("config"), meta.get("tood")
    return Foreign(
        {key: tensor for key, (tensor, _) in state.items()},
        found_in,
        any(renamed for _, renamed in state.values()),
        classes,
        text if isinstance(text, str) else None,
        _recipe(recipe) if isinstance(recipe, str) else None,
        _count(meta.get("epoch")),
        _count(meta.get("iter")),
    )


def write_mmdet(file: Path, state: dict[str, Tensor], *, classes: list[str], recipe: dict[str, Any], epoch: int, step: int) -> None:
    """A .pth that mmdetection 3 loads, of tensors and plain values alone; `state` has its names. Checked by reading it again.

    The classes are where its visualizer looks for them; the recipe travels along as text for `read_foreign`.
    """
    meta = {"epoch": epoch, "iter": step, "dataset_meta": {"classes": tuple(classes)}, "tood": json.dumps(recipe, sort_keys=True)}
    buffer = io.BytesIO()
    torch.save({"meta": meta, "state_dict": {key: tensor.detach().cpu().clone() for key, tensor in state.items()}}, buffer)
    try:
        write_file(file, buffer.getvalue())
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be written: {error.strerror or error}") from None
    again = read_foreign(file)
    if again.state.keys() != state.keys() or not all(torch.equal(again.state[key], state[key].cpu()) for key in state):
        file.unlink()
        raise CheckpointError(f"{file}: does not read back as what was written, and was removed")


def _state_of(content: Any, path: Path) -> tuple[dict[str, Any], str]:
    if not isinstance(content, dict):
        kind = getattr(content, "path", None) or type(content).__name__
        raise CheckpointError(f"{path}: holds an object ({kind}), not a state dict; save its state_dict() instead")
    if any(is_tensor(value) for value in content.values()):
        return _of_texts(content), "the file"
    for name in STATES:
        part = content.get(name)
        if isinstance(part, dict) and any(is_tensor(value) for value in part.values()):
            return _of_texts(part), name
    keys = ", ".join(str(key) for key in list(content)[:8] if isinstance(key, str))
    raise CheckpointError(f"{path}: no state dict of tensors, neither the file itself nor {', '.join(STATES)}; it has: {keys:.300}")


def _of_texts(values: dict[Any, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if isinstance(key, str)}


def _under_names_of_3(values: dict[str, Tensor]) -> dict[str, tuple[Tensor, bool]]:
    """Without a wrapper's prefix and what no detector has; and whether the name was one of the first code's."""
    counters = {"steps", "n_averaged", "module.steps", "module.n_averaged"}
    kept = {key: value for key, value in values.items() if key not in counters}
    while kept and all(key.startswith("module.") for key in kept):
        kept = {key.removeprefix("module."): value for key, value in kept.items()}
    state = {}
    for key, value in kept.items():
        if key.startswith(_NO_PARAMETERS):
            continue
        name = key
        for first, third in _FIRST_NAMES.items():
            name = name.replace(f"bbox_head.{first}", f"bbox_head.{third}")
        state[name] = value, name != key
    return state


def _classes(meta: dict[Any, Any]) -> tuple[str, ...]:
    data = meta.get("dataset_meta")
    of_data = {str(key).lower(): value for key, value in data.items()} if isinstance(data, dict) else {}
    classes = of_data.get("classes") or meta.get("CLASSES")
    fits = isinstance(classes, list | tuple) and all(isinstance(name, str) for name in classes)
    return tuple(classes) if fits else ()


def _recipe(text: str) -> dict[str, Any] | None:
    try:
        recipe = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return recipe if isinstance(recipe, dict) else None


def _count(value: Any) -> int:
    return value if type(value) is int and 0 <= value < 2**53 else 0
