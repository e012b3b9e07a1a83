"""The state of a training run: how it starts, what a checkpoint keeps of it, how it goes on from one to the bit."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
import torchvision

from tood import __version__
from tood.backbone import load_imagenet
from tood.checkpoint import LoadReport, ModelInfo, load_checkpoint, load_into, load_model, save_checkpoint
from tood.config import hash_of
from tood.data.coco import CocoData
from tood.detector import Detector
from tood.detectors import build_detector
from tood.early_stopping import Standing
from tood.errors import ConfigError
from tood.evaluation import Figures
from tood.optimisation import AveragedWeights, load_optimizer_tensors, make_optimizer, optimizer_tensors
from tood.recipe import Recipe


@dataclass
class Run:
    """The moving parts of one training run on one rank."""

    recipe: Recipe
    config: dict  # what checkpoints say they were made from: the part of a configuration that changes results
    config_hash: str
    model: Detector
    optimizer: torch.optim.Optimizer
    ema: AveragedWeights | None
    device: torch.device
    names: tuple[str, ...]
    category_ids: tuple[int, ...]
    dataset: str
    epoch: int = 0  # epochs done
    step: int = 0  # optimizer steps done
    loaded: LoadReport | None = None  # of the model that `init` names
    standing: Standing | None = None  # for early stopping, where it is on


def start(recipe: Recipe, config: dict, train_data: CocoData, val_data: CocoData, device: torch.device) -> Run:
    """A fresh run: seeded weights, then those that `init` names."""
    model = build_detector(recipe.model, len(train_data.names), recipe.predict)
    loaded = None
    if recipe.init == "imagenet":
        load_imagenet(model.backbone, recipe.model.backbone)
    elif recipe.init != "none":
        source = load_model(Path(recipe.init))
        loaded = load_into(
            model,
            source.weights,
            names=train_data.names,
            names_from=source.info.names,
            class_layers=model.CLASS_LAYERS,
        )
    model.to(device)
    if recipe.train.channels_last:
        model.to(memory_format=torch.channels_last)
    if recipe.train.fold_norms:
        model.backbone.fold_norms()
    if recipe.train.compile:
        if device.type == "cpu" and not (os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")):
            raise ConfigError(
                "train.compile: needs a C++ compiler on a CPU, and there is no g++; install one, or set compile=false"
            )
        model.compile_dense()
    model.head.checkpointing = recipe.train.checkpointing
    ema = AveragedWeights(model, recipe.train.ema) if recipe.train.ema else None
    return Run(
        recipe,
        config,
        hash_of(config),
        model,
        make_optimizer(model, recipe.train),
        ema,
        device,
        train_data.names,
        train_data.category_ids,
        val_data.fingerprint,
        loaded=loaded,
        standing=Standing() if recipe.train.early_stopping else None,
    )


def save(run: Run, folder: Path, figures: Figures | None) -> None:
    """The model folder holds what is evaluated and shared: the averaged weights where averaging is on."""
    weights = run.model.state_dict()
    tensors = {**optimizer_tensors(run.optimizer, run.model), "rng": torch.get_rng_state()}
    if run.ema:
        tensors |= {f"weights.{name}": tensor for name, tensor in weights.items()}
        weights = run.ema.tensors
    info = ModelInfo(
        config=run.config,
        config_hash=run.config_hash,
        names=list(run.names),
        category_ids=list(run.category_ids),
        epoch=run.epoch,
        step=run.step,
        metrics=val_metrics(figures) if figures else {},
        dataset=run.dataset,
        versions={"tood": __version__, "torch": torch.__version__, "torchvision": torchvision.__version__},
    )
    position = {"epoch": run.epoch, "batch": 0}
    state = {"epoch": run.epoch, "step": run.step, "sampler": position}
    if run.standing is not None:
        state["early_stopping"] = run.standing._asdict()
    save_checkpoint(folder, weights, info, tensors, state)


def go_on(run: Run, folder: Path) -> None:
    checkpoint = load_checkpoint(folder)
    tensors = checkpoint.tensors
    if checkpoint.info.config_hash != run.config_hash:
        raise ConfigError(
            f"{folder}: was written by another configuration (hash {checkpoint.info.config_hash}, here "
            f"{run.config_hash}); resume with the same one, or start anew from it with init={folder}"
        )
    if run.ema:
        run.ema.load(checkpoint.weights)
        run.model.load_state_dict({k.removeprefix("weights."): v for k, v in tensors.items() if k.startswith("weights.")})
    else:
        run.model.load_state_dict(checkpoint.weights)
    load_optimizer_tensors(run.optimizer, run.model, tensors)
    torch.set_rng_state(tensors["rng"].cpu())
    run.epoch, run.step = checkpoint.state["epoch"], checkpoint.state["step"]
    if run.standing is not None:
        run.standing = Standing(**checkpoint.state["early_stopping"])


def val_metrics(figures: Figures) -> dict[str, float]:
    """Figures as metrics `val/AP` and so on; those that the data leaves undefined (-1: no small objects, say) are absent."""
    return {f"val/{name}": value for name, value in figures.summary.items() if value >= 0}
