"""Ray Train: the launcher that `tood train` and every trial of a sweep share; `pipeline.worker` is what it launches."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from ray import train as ray_train
from ray.train.v2.api.config import LoggingConfig
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError

from pipeline.config import Experiment
from pipeline.errors import ClusterError
from pipeline.failures import Trainer, cause
from pipeline.notice import HeedingTorchConfig, stop_workers
from pipeline.worker import Address, Progress, read_pointer, work
from tood.config import to_dict
from tood.memory import ONE_ARENA

__all__ = ["Address", "Progress", "fit"]


def fit(
    experiment: Experiment,
    address: Address,
    *,
    gpus: float,
    stop_after: int | None = None,
    handed_over: str = "",
    metric: str = "val/AP",
    callbacks: Sequence[Any] = (),
) -> Progress:
    """Train on Ray to the end; called again with the same address it goes on where it was.

    gpus: of each worker. handed_over: digest of another run's checkpoint, where that is what this one begins with. Raises
    what a worker raised when that is a ToodError, else ClusterError.
    """
    least, most = experiment.ray.workers_min, experiment.ray.workers
    elastic = least not in (0, most)
    # An elastic run may be started on a node that is gone and not yet known to be: a minute and a try each time.
    tries = 10 if elastic else 3
    resources = {"CPU": experiment.ray.cpus_per_worker} | ({"GPU": gpus} if gpus else {})
    job = {
        "experiment": to_dict(replace(experiment, sweep=None)),
        "address": asdict(address),
        "stop_after": stop_after,
        "handed_over": handed_over,
        "metric": metric,
    }
    trainer = Trainer(
        work,
        train_loop_config=job,
        torch_config=HeedingTorchConfig(backend="nccl" if gpus else "gloo", timeout_s=experiment.ray.collective_seconds),
        scaling_config=ray_train.ScalingConfig(
            num_workers=(least, most) if elastic else most,
            use_gpu=bool(gpus),
            resources_per_worker=resources,
            accelerator_type=experiment.ray.accelerator_type or None,
        ),
        run_config=ray_train.RunConfig(
            name=address.run,
            storage_path=address.ray_storage,
            failure_config=ray_train.FailureConfig(max_failures=experiment.ray.max_failures, controller_failure_limit=tries),
            checkpoint_config=ray_train.CheckpointConfig(num_to_keep=1),
            callbacks=list(callbacks),
            logging_config=LoggingConfig(log_level="WARNING"),
            worker_runtime_env={"env_vars": {} if gpus else dict(ONE_ARENA)},
        ),
    )
    try:
        result = trainer.fit()
    except (TrainingFailedError, WorkerGroupError, ControllerError) as error:
        raise cause(error, address.run) from None
    except (KeyboardInterrupt, SystemExit):  # Ctrl-C, SIGTERM
        if stop_workers(address.run):
            print(f"{address.label}stopped behind a checkpoint; --resume goes on from it", flush=True)
        raise
    if result.checkpoint is None:
        raise ClusterError(f"run {address.run}: ended without a checkpoint; see its log in Ray's dashboard")
    return read_pointer(result.checkpoint)
