"""The smallest recipe that trains: a slim detector on the coloured squares of `tests.tiny`."""

import hashlib
from pathlib import Path

import torch

from tood.checkpoint import load_model
from tood.config import build
from tood.recipe import Recipe

SPLITS = {split: {"annotations": f"{split}.json", "images": split} for split in ("train", "val")}
BACKBONE = {"depth": 18, "frozen_stages": 0, "norm_eval": False}
MODEL = {"layers": 2, "channels": 16, "groups": 4, "neck": {"channels": 16}}
OBJECTIVE = {"name": "task_aligned", "warmup_epochs": 1}
TRAIN = {"epochs": 4, "milestones": [3], "batch_size": 4, "lr_batch_size": 4, "warmup_steps": 4, "log_every": 1}
PREDICT = {"score_threshold": 0.001, "max_detections": 20}  # so low that fresh weights find 20 objects an image


def recipe(data: Path, init: str = "none", norm_eval: bool = False, flip: float = 0.5, **options) -> Recipe:
    """`options` are those of the section `train`."""
    values = {
        "data": {"root": str(data), **SPLITS, "long_side": 64, "short_side": 64, "workers": 0, "flip": flip},
        "model": {**MODEL, "objective": OBJECTIVE, "backbone": {**BACKBONE, "norm_eval": norm_eval}},
        "train": {**TRAIN, **options},
        "predict": PREDICT,
        "init": init,
    }
    return build(Recipe, values)


def weights(folder: Path, epoch: int = 1) -> dict[str, torch.Tensor]:
    """Those of a checkpoint that training wrote to `folder`."""
    return load_model(folder / f"epoch_{epoch:04d}").weights


def files(checkpoint: Path) -> dict[str, str]:
    """The sha256 of all that a checkpoint keeps."""
    return {
        name: hashlib.sha256((checkpoint / name).read_bytes()).hexdigest()
        for name in ("model/model.safetensors", "training.safetensors")
    }
