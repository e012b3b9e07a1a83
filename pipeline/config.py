"""What an experiment is: frozen dataclasses, checked, hashed. `pipeline.experiment_files` reads the YAML; `tood.config.build`
checks keys, types and ranges.
"""

import difflib
import math
import re
from dataclasses import dataclass
from typing import Any, Literal

import yaml

from pipeline.tracking.facts import carries_credentials, redact
from tood.config import DataConfig, PredictConfig, TrainConfig, bounded, build, config_hash, to_dict, unhashed
from tood.detectors import ModelConfig, idle_choices
from tood.errors import ConfigError
from tood.recipe import Recipe

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,79}")  # fit for folders, object stores and MLflow's registry
AREAS, LIMITS = ("small", "medium", "large"), (1, 10, 100)
METRICS = ("val/AP", "val/AP50", "val/AP75", *(f"val/AP_{a}" for a in AREAS), *(f"val/AR_{x}" for x in (*LIMITS, *AREAS)))
COSTS = ("params_m", "head_params_m", "gmac", "head_gmac")  # trainable parameters in millions; GMAC of an image of 1280 x 800
ANALYSIS = ("pcc_top50", "iou_top10", "correct", "redundant", "error")  # what `tood analyze` measures of a model
FIGURES = (*(metric.removeprefix("val/") for metric in METRICS), *COSTS, *ANALYSIS, "fps")  # what a paper may say of a cell


@dataclass(frozen=True)
class RayConfig:
    address: str = unhashed("")  # "": a Ray of its own on this machine; auto, host:port or ray://... for a cluster
    workers: int = bounded(1, 1, 4096)  # DDP processes a run
    workers_min: int = bounded(0, 0, 4096, later=True)  # a run goes on with so few while nodes are away; 0: with all or not at all
    cpus_per_worker: int = bounded(1, 1, 1024, identity=False)
    gpus_per_worker: float | None = bounded(None, 0, 1024, identity=False)  # None: 1 where the cluster has GPUs, else 0
    accelerator_type: str = unhashed("")  # such as H100: workers go to nodes that have it
    max_failures: int = bounded(2, -1, 1000, identity=False)  # restarts of a run after a dead worker or node
    collective_seconds: int = bounded(600, 10, 86_400, identity=False)  # longest wait of a worker for another, then a restart


@dataclass(frozen=True)
class TrackingConfig:
    uri: str = unhashed("")  # "": an SQLite file in the output folder
    experiment: str = unhashed("")  # "": the experiment's own name
    model: str = unhashed("")  # name in the model registry; "": the experiment's own name
    licence: str = unhashed("")  # of the models that are registered, as their cards state it


@dataclass(frozen=True)
class StorageConfig:
    url: str = unhashed("")  # "": a folder in the output folder; s3://bucket/prefix


@dataclass(frozen=True)
class CacheConfig:
    """Where a node keeps data that it fetched from an s3:// or https:// data.root."""

    dir: str = unhashed("")  # "": $XDG_CACHE_HOME/tood/data, else ~/.cache/tood/data
    max_gb: float = bounded(100, 0.001, 1e6, identity=False)  # of all data sets in it; the longest unused go first


@dataclass(frozen=True)
class SweepConfig:
    search: Literal["grid", "random", "optuna"] = "grid"
    space: dict = unhashed(None)  # axes; see pipeline.space
    samples: int = bounded(1, 1, 1_000_000, identity=False)  # trials of random and optuna
    seed: int = bounded(0, 0, 2**31 - 1, identity=False)  # of the search
    repeats: int = bounded(1, 1, 1000, identity=False)  # seeds of each trial, from train.seed on; ranked by their mean
    metric: Literal[METRICS] = unhashed("val/AP")
    scheduler: Literal["none", "asha", "pbt"] = unhashed("none")
    grace_epochs: int = bounded(1, 1, 10_000, identity=False)  # asha: no trial is stopped before
    reduction: int = bounded(3, 2, 100, identity=False)  # asha: one of so many goes on
    exploit_every: int = bounded(1, 1, 10_000, identity=False)  # pbt: epochs between two generations
    exploit_share: float = bounded(0.25, 0.01, 0.5, identity=False)  # pbt: of the trials, replaced each time by so many of the best
    resample: float = bounded(0.25, 0, 1, identity=False)  # pbt: chance that a child's value is drawn anew
    max_concurrent: int = bounded(0, 0, 10_000, identity=False)  # 0: what the cluster can hold
    time_budget_minutes: float = bounded(0, 0, 1e6, identity=False)  # 0: none
    published: tuple[dict, ...] = unhashed(())  # a paper's figures: [{at: {axis: value}, AP: 42.5}, ...]
    out_of_scope: tuple[dict, ...] = unhashed(())  # a paper's rows that are not run: [{row: PISA, why: ..., AP: 37.3}, ...]

    def check(self) -> None:
        for i, cell in enumerate(self.published):
            _check_figures(f"published[{i}]", cell, isinstance(cell.get("at"), dict), "at: {axis: value}", {"at"})
        for i, row in enumerate(self.out_of_scope):
            said = all(isinstance(row.get(key), str) and row[key] for key in ("row", "why"))
            _check_figures(f"out_of_scope[{i}]", row, said, "row: its name, why: the reason", {"row", "why"})


@dataclass(frozen=True)
class Experiment:
    name: str = unhashed("experiment")
    description: str = unhashed("")
    output: str = unhashed("runs")  # folder for everything that the embedded parts keep
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    predict: PredictConfig = PredictConfig()
    init: str = "imagenet"
    ray: RayConfig = RayConfig()
    tracking: TrackingConfig = unhashed(TrackingConfig())
    storage: StorageConfig = unhashed(StorageConfig())
    cache: CacheConfig = unhashed(CacheConfig())
    sweep: SweepConfig | None = unhashed(None)

    def check(self) -> None:
        self._check_addresses()
        self.recipe.check()
        for reason in idle_choices(self.model):
            raise ConfigError(f"model.{reason}")
        for key, name in (("name", self.name), ("tracking.model", self.tracking.model or self.name)):
            if not NAME.fullmatch(name):
                raise ConfigError(f"{key}: {name!r:.80} names folders and models; use up to 80 letters, digits and . _ -")
        if self.sweep and self.sweep.scheduler == "asha" and self.sweep.grace_epochs > self.train.epochs:
            raise ConfigError(
                f"sweep.grace_epochs: {self.sweep.grace_epochs} is more than train.epochs={self.train.epochs}; lower it"
            )
        self._check_workers()

    def _check_workers(self) -> None:
        """Whatever their number, all workers have equal parts of the same global batch."""
        least, most, train = self.ray.workers_min or self.ray.workers, self.ray.workers, self.train
        if least > most:
            raise ConfigError(f"ray.workers_min: {least} is more than ray.workers={most}; lower it")
        counts = range(least, most + 1)
        if uneven := [count for count in counts if train.batch_size // train.accumulate % count]:
            workers = f"ray.workers={most}" if least == most else f"{uneven[0]} of ray.workers_min={least} to ray.workers={most}"
            whole = math.lcm(*counts) * train.accumulate
            advice = f"use a multiple of {whole}" if whole <= 65_536 else "no batch can"
            raise ConfigError(
                f"train.batch_size: {train.batch_size} images a step (accumulate={train.accumulate}) cannot be shared evenly by "
                f"{workers}; {advice}" + ("" if least == most else ", or raise ray.workers_min")
            )
        if most > 1 and self.ray.gpus_per_worker not in (None, 0) and self.ray.gpus_per_worker < 1:
            raise ConfigError("ray.gpus_per_worker: NCCL needs a whole GPU for each of several workers; use 1")

    def _check_addresses(self) -> None:
        """A configuration is printed, logged and kept; no secret may be in it, wherever it is going to be used."""
        addresses = {
            "tracking.uri": self.tracking.uri,
            "storage.url": self.storage.url,
            "data.root": self.data.root,
            "ray.address": self.ray.address,
            "init": self.init,
            "output": self.output,
            "cache.dir": self.cache.dir,
        }
        for key, address in addresses.items():
            if carries_credentials(address):
                raise ConfigError(
                    f"{key}: {redact(address):.300}: holds credentials, which would travel into logs and records; leave them "
                    "out, and give them by MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, AWS_ACCESS_KEY_ID and "
                    "AWS_SECRET_ACCESS_KEY, RAY_AUTH_TOKEN, ~/.netrc or ~/.pgpass"
                )

    @property
    def recipe(self) -> Recipe:
        return Recipe(self.data, self.model, self.train, self.predict, self.init)

    @property
    def hash(self) -> str:
        return config_hash(self)


def experiment_of(values: dict, trial: dict[str, Any] | None = None) -> Experiment:
    """The experiment that values describe; a sweep's trial sets dotted keys anew. Raises ConfigError."""
    for key, value in (trial or {}).items():
        values = merge(values, _nested(key, value))
    return build(Experiment, values)


def merge(base: dict, over: dict) -> dict:
    """Deep merge, `over` first; lists are replaced. A mapping whose `name` changes starts anew: its options are others."""
    merged = dict(base)
    for key, value in over.items():
        old = base.get(key)
        renamed = isinstance(value, dict) and isinstance(old, dict) and value.get("name", old.get("name")) != old.get("name")
        merged[key] = merge(old, value) if isinstance(value, dict) and isinstance(old, dict) and not renamed else value
    return merged


def to_yaml(experiment: Experiment) -> str:
    """Every key of an experiment, as YAML that reads back to the same."""
    return yaml.safe_dump(to_dict(experiment), sort_keys=False, width=110)


def _check_figures(where: str, cell: dict, complete: bool, expected: str, words: set[str]) -> None:
    figures = {key: value for key, value in cell.items() if key not in words}
    if not complete or not all(type(figure) in (int, float) for figure in figures.values()):
        raise ConfigError(f"{where}: expected {expected} and figures such as AP: 42.5, got {cell!r}")
    for name in figures.keys() - set(FIGURES):
        close = difflib.get_close_matches(str(name), FIGURES, n=1)
        raise ConfigError(
            f"{where}.{name}: no such figure; " + (f"did you mean {close[0]!r}?" if close else f"valid: {', '.join(FIGURES)}")
        )


def _nested(key: str, value: Any) -> dict:
    first, _, rest = key.partition(".")
    return {first: _nested(rest, value) if rest else value}
