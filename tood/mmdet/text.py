"""The configuration that mmdetection writes into its checkpoints: Python source, of which only plain values are read.

Nothing is run: the source is parsed, and `model = dict(type='TOOD', ...)` becomes a dictionary where it consists of
numbers, texts, lists, tuples and dictionaries.
"""

import ast
from typing import Any

from tood.errors import ConfigError

MAX_TEXT = 2**20  # characters; a written-out configuration has some ten thousand
_READ = ("model", "train_cfg", "test_cfg", "img_norm_cfg", "test_pipeline")


def read_config_text(text: str) -> dict[str, Any]:
    """The assignments that say what a detector is. Raises ConfigError for source that is no plain configuration."""
    if len(text) > MAX_TEXT:
        raise ConfigError(f"the configuration in the file has {len(text)} characters, more than {MAX_TEXT}; give --config")
    try:
        statements = ast.parse(text).body
        assigned = {}
        for statement in statements:
            target = statement.targets[0] if isinstance(statement, ast.Assign) else None
            if isinstance(target, ast.Name) and target.id in _READ:
                assigned[target.id] = _value(statement.value)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ConfigError(f"the configuration in the file cannot be read ({str(error)[:120]}); give --config") from None
    if not isinstance(assigned.get("model"), dict) or not isinstance(assigned["model"].get("bbox_head"), dict):
        raise ConfigError("the configuration in the file says nothing of a model with one bbox_head; give --config")
    return assigned


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.List):
        return [_value(item) for item in node.elts]
    if isinstance(node, ast.Tuple):
        return tuple(_value(item) for item in node.elts)
    if isinstance(node, ast.Dict) and all(isinstance(key, ast.Constant) for key in node.keys):
        return {key.value: _value(value) for key, value in zip(node.keys, node.values, strict=True)}
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        number = _value(node.operand)
        if type(number) in (int, float):
            return -number
    made = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict"
    if made and not node.args and all(keyword.arg for keyword in node.keywords):
        return {keyword.arg: _value(keyword.value) for keyword in node.keywords}
    raise ValueError(f"line {getattr(node, 'lineno', 0)} is more than plain values")


def model_of(assigned: dict[str, Any]) -> dict[str, Any]:
    """Its `model` as mmdetection 3 would write it; that of mmdetection 2 and of TOOD's first code are put into that form."""
    model = dict(assigned["model"])
    for key in ("train_cfg", "test_cfg"):  # beside the model, in the oldest
        model[key] = model.get(key) or assigned.get(key) or {}
    norm = assigned.get("img_norm_cfg")
    if isinstance(norm, dict) and "data_preprocessor" not in model:
        pixels = {"mean": norm.get("mean", ()), "std": norm.get("std", ()), "bgr_to_rgb": norm.get("to_rgb", True)}
        model["data_preprocessor"] = pixels | {"pad_size_divisor": 32}
    model["bbox_head"] = _head_of(model["bbox_head"])
    return model


def _head_of(head: dict[str, Any]) -> dict[str, Any]:
    """TOOD's first code has other names for the same two losses, and for the number of deformable layers."""
    head = {key: value for key, value in head.items() if key != "num_dcn_on_head"} | (
        {"num_dcn": head["num_dcn_on_head"]} if "num_dcn_on_head" in head else {}
    )
    for key, theirs, ours in (
        ("initial_loss_cls", "FocalLossWithProb", {"type": "FocalLoss", "activated": True}),
        ("loss_cls", "TaskAlignedFocalLoss", {"type": "QualityFocalLoss", "activated": True}),
    ):
        loss = head.get(key)
        if isinstance(loss, dict) and loss.get("type") == theirs:
            renamed = {"beta" if name == "gamma" and key == "loss_cls" else name: value for name, value in loss.items()}
            head[key] = renamed | ours
    return head


def image_sides(assigned: dict[str, Any]) -> dict[str, int]:
    """long_side and short_side that images are resized to for detection; empty where it does not say so plainly."""
    for step in assigned.get("test_pipeline") or []:
        sides = step.get("scale") or step.get("img_scale") if isinstance(step, dict) else None
        if isinstance(sides, list | tuple) and len(sides) == 2 and all(type(side) is int for side in sides):
            return {"long_side": max(sides), "short_side": min(sides)}
    return {}
