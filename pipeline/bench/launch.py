"""Work on Ray Train, launched as `pipeline.train` launches a training run on CPUs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray import train as ray_train
from ray.train.v2.api.config import LoggingConfig

from pipeline.failures import Trainer
from pipeline.notice import HeedingTorchConfig
from tood.memory import ONE_ARENA


def launch(
    work: Callable[..., None], storage: Path | str, *, name: str, workers: int = 1, job: dict[str, Any] | None = None
) -> None:
    """Return when all workers have done `work`, which is called with `job` if there is one. storage: for Ray's own state."""
    Trainer(
        work,
        train_loop_config=job,
        torch_config=HeedingTorchConfig(backend="gloo"),
        scaling_config=ray_train.ScalingConfig(num_workers=workers),
        run_config=ray_train.RunConfig(
            name=name,
            storage_path=str(storage),
            logging_config=LoggingConfig(log_level="WARNING"),
            worker_runtime_env={"env_vars": dict(ONE_ARENA)},
        ),
    ).fit()
