"""Publishes small models of one name to a registry, and a real one for tests that load it."""

from pathlib import Path
from typing import Any

import torch
from mlflow import MlflowClient

from pipeline.config import experiment_of
from pipeline.experiment_files import load_values
from pipeline.registry.models import Version, publish
from pipeline.storage.checkpoints import upload_checkpoint
from pipeline.storage.folder import FolderStore
from pipeline.storage.store import Store
from tests.pipeline.checkpoints import make_checkpoint
from tests.tiny import COLOURS, write_experiment
from tood.checkpoint import ModelInfo, save_model
from tood.config import identity
from tood.detectors import build_detector

DATA = "d" * 64


class Publisher:
    """Publishes models of one name, each from a checkpoint of its own, told apart by `seed`."""

    def __init__(self, tracking_uri: str, run_id: str, folder: Path, name: str, store: Store | None = None):
        self.tracking_uri, self.run_id, self.folder, self.name = tracking_uri, run_id, folder, name
        self.store = store or FolderStore(folder / "store")

    def upload(self, seed: int, run: str = "run", **info: Any) -> str:
        folder = self.folder / f"checkpoint{seed}"
        if not folder.exists():
            make_checkpoint(folder, seed=seed, info=self.info(**info))
        return upload_checkpoint(self.store, folder, run)

    def info(self, value: float = 0.5, **other: Any) -> dict[str, Any]:
        info = {"config_hash": "c0ffee", "dataset": DATA, "metric": "val/AP", "value": value}
        info |= {"names": ["a|b", "cell"], "epoch": 3, "step": 12} | other
        return info | {"metrics": {info["metric"]: info["value"]}}

    def __call__(self, seed: int, value: float = 0.5, tags: dict[str, Any] | None = None, **other: Any) -> Version:
        """The model's manifest has these figures unless the test uploaded it with others before."""
        measured = {} if value != value else {"value": value} | {k: v for k, v in other.items() if k in ("dataset", "metric")}
        return publish(
            tracking_uri=self.tracking_uri,
            name=self.name,
            store=self.store,
            prefix=self.upload(seed, **measured),
            run_id=self.run_id,
            info=self.info(value, **other),
            tags=tags or {},
        )


def alias(client: MlflowClient, name: str, which: str = "champion") -> int | None:
    number = client.get_registered_model(name).aliases.get(which)
    return None if number is None else int(number)


def save_tiny_model(folder: Path, *, seed: int = 0, metrics: dict[str, float] | None = None, dataset: str = DATA) -> Path:
    """A real model of fresh weights in `folder`/model<seed>, beside its data and its experiment's file tiny.yaml."""
    experiment = experiment_of(load_values(str(write_experiment(folder))))
    torch.manual_seed(seed)
    detector = build_detector(experiment.model, len(COLOURS))
    metrics = {"val/AP": 0.5} if metrics is None else metrics
    info = ModelInfo(identity(experiment), experiment.hash, list(COLOURS), [1, 2, 3], 1, 4, metrics, dataset, {})
    save_model(folder / f"model{seed}", detector.state_dict(), info)
    return folder / f"model{seed}"
