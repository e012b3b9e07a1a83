"""A recipe: everything that decides what a training run learns, without where it runs."""

import json
from dataclasses import dataclass
from pathlib import Path

from tood.config import DataConfig, PredictConfig, TrainConfig, build
from tood.detectors import ModelConfig
from tood.errors import ConfigError


@dataclass(frozen=True)
class Recipe:
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    predict: PredictConfig = PredictConfig()
    init: str = "imagenet"  # imagenet | none | a model folder, a checkpoint folder or a .safetensors file of ours

    def check(self) -> None:
        if self.train.batch_size % self.train.accumulate:
            raise ConfigError(
                f"train.accumulate: {self.train.accumulate} does not divide train.batch_size={self.train.batch_size}; "
                "set it to a number that does"
            )
        if list(self.train.milestones) != sorted(self.train.milestones) or min(self.train.milestones, default=1) < 1:
            raise ConfigError(
                f"train.milestones: {list(self.train.milestones)} are not epochs from 1 in ascending order; sort them"
            )
        if self.data.short_side_min > self.data.short_side:
            raise ConfigError(
                f"data.short_side_min: {self.data.short_side_min} is larger than data.short_side={self.data.short_side}; lower it"
            )
        if self.train.compile and not self.data.buckets:
            raise ConfigError(
                "train.compile: every size of batch would be compiled, for minutes each; set data.buckets=2 for two sizes an "
                "orientation, or compile=false"
            )
        self._check_training_aids()

    def _check_training_aids(self) -> None:
        augment, stopping, epochs = self.data.augment, self.train.early_stopping, self.train.epochs
        mixes = augment.mosaic > 0 or augment.mixup > 0
        if augment.last_epochs_off > epochs or (mixes and augment.last_epochs_off == epochs):
            raise ConfigError(
                f"data.augment.last_epochs_off: {augment.last_epochs_off} of train.epochs={epochs} leave no epoch with mosaic or "
                "mixup; lower it, or set both to 0"
            )
        if stopping and stopping.patience >= epochs:
            raise ConfigError(
                f"train.early_stopping.patience: {stopping.patience} epochs without a better figure cannot come before the end "
                f"of train.epochs={epochs}; lower it, or leave early_stopping out"
            )
        if stopping and stopping.patience < self.train.evaluate_every:
            raise ConfigError(
                f"train.early_stopping.patience: {stopping.patience} is less than the train.evaluate_every="
                f"{self.train.evaluate_every} epochs between two figures, so that the first lower one would end the run; raise it"
            )


def read_recipe(path: Path) -> Recipe:
    """Read a recipe from a JSON file. Raises ConfigError."""
    try:
        values = json.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give a JSON file with a recipe") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: is not JSON ({error}); correct it, or give another file") from None
    return build(Recipe, values)


def recipe_of(config: dict) -> Recipe:
    """The recipe inside a larger configuration, such as the one a model's manifest keeps."""
    keys = Recipe.__dataclass_fields__
    return build(Recipe, {key: value for key, value in config.items() if key in keys})
