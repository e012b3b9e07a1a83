"""Ray: reach a cluster or start an embedded one, and work out what fits on it."""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from pipeline.config import RayConfig
from pipeline.errors import ClusterError

TRIAL_CPUS = 1  # a Tune trial's own driver process


class Demand(NamedTuple):
    """What one training run needs of a cluster to begin."""

    cpus: int
    gpus: float


def demand(config: RayConfig, gpus_per_worker: float, driver_cpus: int = 0) -> Demand:
    workers = config.workers_min or config.workers
    return Demand(driver_cpus + workers * config.cpus_per_worker, workers * gpus_per_worker)


@contextmanager
def connected(config: RayConfig, needed_cpus: int, say=print) -> Iterator[None]:
    """A Ray session: the cluster at `config.address`, or an embedded Ray that declares at least `needed_cpus`.

    Inside an existing session (a Ray job, a test) that one is used and left alone. Raises ClusterError.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    try:
        if config.address:
            ray.init(address=config.address, log_to_driver=True, logging_level="ERROR")
        else:
            cpus = max(needed_cpus, os.cpu_count() or 1)
            if cpus > (os.cpu_count() or 1):
                say(f"embedded Ray: declaring {cpus} logical CPUs on {os.cpu_count()} cores, as the runs ask for so many")
            # Nobody preempts this machine, and a watcher is one more process for each run.
            os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
            # A dashboard is needed even here: Ray Train finds and frees the resources of a stopped trial through it.
            ray.init(address="local", num_cpus=cpus, include_dashboard=True, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError, TimeoutError, OSError) as error:
        where = config.address or "embedded Ray"
        raise ClusterError(
            f"ray.address: {where} cannot be used ({' '.join(str(error).split())[:200]}); check that the cluster runs and "
            "that this machine reaches it, or leave ray.address empty for an embedded Ray"
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


def gpus_per_worker(config: RayConfig) -> float:
    """As configured; by default a GPU each where the cluster has any."""
    if config.gpus_per_worker is not None:
        return config.gpus_per_worker
    return 1.0 if _within_reach("GPU") >= 1 else 0.0


def concurrency(need: Demand, wanted: int) -> int:
    """How many runs fit at once: at most `wanted` (0: as many as fit).

    Counted here because Ray Tune counts a trial's own process alone: with more trials than fit, their workers wait for each
    other for ever. Raises ClusterError where not even one fits.
    """
    cpus, gpus = _within_reach("CPU"), _within_reach("GPU")
    fits = math.floor(cpus / need.cpus) if need.cpus else math.inf
    if need.gpus:
        fits = min(fits, math.floor(gpus / need.gpus + 1e-9))
    if fits < 1:
        raise ClusterError(
            f"one run needs {need.cpus} CPUs and {need.gpus:g} GPUs, the cluster has {cpus:g} and "
            f"{gpus:g}; lower ray.workers, ray.cpus_per_worker or ray.gpus_per_worker, or add nodes"
        )
    return int(min(fits, wanted) if wanted else fits)


def _within_reach(resource: str) -> float:
    """What the cluster has of a resource, or can grow to: an idle cluster whose workers come with work has next to nothing."""
    import ray
    from ray._private.state import state  # Ray Train itself asks here; there is no public place

    at_most = state.get_max_resources_from_cluster_config() or {}  # None without an autoscaler
    return float(max(ray.cluster_resources().get(resource, 0), at_most.get(resource, 0)))
