"""The state of a training run: how it starts, what a checkpoint keeps of it, how it goes on from one to the bit.

Ranks differ in nothing that a checkpoint would have to keep for each: no random number is drawn in training but by sample
(seed, epoch, image), weights are equal, and of BatchNorm's statistics rank 0's alone count, which no other rank's training reads.
"""

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from tood import __version__
from tood.backbone import load_imagenet
from tood.checkpoint import (
    MANIFEST,
    LoadReport,
    ModelInfo,
    digest,
    load_checkpoint,
    load_into,
    load_model,
    read_manifest,
    save_checkpoint,
)
from tood.config import TrainConfig, hash_of
from tood.data.coco import CocoData
from tood.deformable import DeformableConv, ModulatedDeformableConv
from tood.detector import Detector
from tood.detectors import build_detector
from tood.early_stopping import Standing
from tood.errors import ConfigError, DataError
from tood.evaluation import Figures
from tood.optimisation import AveragedWeights, load_optimizer_tensors, make_optimizer, optimizer_tensors
from tood.recipe import Recipe
from tood.refinement import StarConv

DEFORMABLE = DeformableConv, ModulatedDeformableConv, StarConv


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
    into: int = 0  # of these, in the epoch that has begun
    sums: dict[str, Tensor] = field(default_factory=dict)  # of each loss since the last report
    summed: int = 0  # over so many steps
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
    prepare(model, recipe.train, device)
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


def prepare(model: Detector, config: TrainConfig, device: torch.device) -> None:
    """The model as it is to be trained: where, and in which of the fast settings. Raises ConfigError where one cannot be had."""
    if config.compile:
        _check_compiling(model, config, device.type)
    model.to(device)
    if config.channels_last:
        model.to(memory_format=torch.channels_last)
    if config.fold_norms:
        model.backbone.fold_norms()
    if config.compile:
        model.compile_dense()
    model.head.checkpointing = config.checkpointing


def _check_compiling(model: Detector, config: TrainConfig, device_type: str) -> None:
    """torch's compiler writes C++ for a CPU; for a GPU Triton does the work, which builds a little C to start its kernels."""
    if device_type != "cpu" and config.deterministic and any(isinstance(part, DEFORMABLE) for part in model.modules()):
        raise ConfigError(
            "train.compile: on a GPU the gradient of deformable convolutions cannot both be compiled and have the same bits each "
            "time; set deterministic=false or compile=false"
        )
    if device_type == "cpu":
        language, variable, names = "C++", "CXX", ("clang++" if sys.platform == "darwin" else "g++",)
    else:
        language, variable, names = "C", "CC", ("gcc", "clang")
    if not os.environ.get(variable) and not any(map(shutil.which, names)):
        raise ConfigError(
            f"train.compile: needs a {language} compiler where it trains, and there is no {names[0]}; install one, "
            "or set compile=false"
        )


def save(run: Run, folder: Path, figures: Figures | None = None, order: str = "") -> None:
    """The model folder holds what is evaluated and shared: the averaged weights where averaging is on.

    order: what `TrainLoader.order` says of an epoch that is under way.
    """
    import torchvision  # here: see tood.backbone

    weights = run.model.state_dict()
    tensors = {**optimizer_tensors(run.optimizer, run.model), "rng": torch.get_rng_state()}
    tensors |= {f"sum.{name}": total for name, total in run.sums.items()}
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
    position = {"epoch": run.epoch, "batch": run.into * run.recipe.train.accumulate}
    if run.into:
        position["order"] = order
    state = {"epoch": run.epoch, "step": run.step, "sampler": position}
    if run.summed:
        state["summed"] = run.summed
    if run.standing is not None:
        state["early_stopping"] = run.standing._asdict()
    save_checkpoint(folder, weights, info, tensors, state)


def go_on(run: Run, folder: Path, order: Callable[[int], str], handed_over: str = "") -> None:
    """Take up what the checkpoint in `folder` keeps. order: see `save`; of the data at hand, of an epoch.

    handed_over: digest of the one checkpoint of another configuration that the run may begin with. Raises ConfigError for any
    other one's, DataError where its epoch had other images.
    """
    checkpoint = load_checkpoint(folder)
    tensors = checkpoint.tensors
    if checkpoint.info.config_hash != run.config_hash and digest(folder) != handed_over:
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
    position = checkpoint.state["sampler"]
    run.into = position["batch"] // run.recipe.train.accumulate
    run.sums = {k.removeprefix("sum."): v.to(run.device) for k, v in tensors.items() if k.startswith("sum.")}
    run.summed = checkpoint.state.get("summed", 0)
    if run.into and position["order"] != order(run.epoch):
        raise DataError(
            f"{folder}: was written {position['batch']} batches into epoch {run.epoch + 1}, whose images came in another order: "
            "the training data has changed since; resume with the same data, or start anew from it with "
            f"init={folder}"
        )
    if run.standing is not None:
        run.standing = Standing(**checkpoint.state["early_stopping"])


def val_metrics(figures: Figures) -> dict[str, float]:
    """Figures as metrics `val/AP` and so on; those that the data leaves undefined (-1: no small objects, say) are absent."""
    return {f"val/{name}": value for name, value in figures.summary.items() if value >= 0}


# -- a folder of checkpoints -----------------------------------------------------------------------------------------


def after_epoch_folder(folder: Path, epochs: int) -> Path:
    """Where the checkpoint after so many epochs belongs."""
    return folder / f"epoch_{epochs:04d}"


def within_epoch_folder(folder: Path, step: int) -> Path:
    """Where one written within an epoch belongs, which counts until the next is there."""
    return folder / f"step_{step:08d}"


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint that a run goes on from: of the highest step, and behind an epoch's evaluation rather than before it."""
    found = [path.parent for kind in ("epoch_*", "step_*") for path in folder.glob(f"{kind}/{MANIFEST}")]
    return max(found, key=lambda path: (read_manifest(path)["step"], path.name.startswith("epoch_")), default=None)


def tidy(folder: Path, newest: Path) -> None:
    """Remove the checkpoints within epochs but for `newest`, and what a killed process left half written."""
    for path in [*folder.glob("step_*"), *folder.glob(".step_*"), *folder.glob(".epoch_*")]:
        if path != newest:
            shutil.rmtree(path, ignore_errors=True)
