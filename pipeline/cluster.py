"""Ray: reach a cluster or start an embedded one, and work out what fits on it."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.capacity import Demand, Reach, at_once, demand, gpus_each
from pipeline.config import RayConfig
from pipeline.errors import ClusterError

__all__ = ["TRIAL_CPUS", "Demand", "concurrency", "connected", "demand", "gpus_per_worker", "reach"]

TRIAL_CPUS = 1  # a Tune trial's own driver process


@contextmanager
def connected(config: RayConfig, needed_cpus: int, say=print) -> Iterator[None]:
    """A Ray session: the cluster at `config.address`, or an embedded Ray that declares at least `needed_cpus`.

    Inside an existing session (a Ray job, a test) that one is used and left alone. Raises ClusterError.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    told_to_end = signal.getsignal(signal.SIGTERM)
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
    if callable(told_to_end) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, told_to_end)  # Ray's own aborts the process after 3 s, whatever it still has to store
    try:
        yield
    finally:
        ray.shutdown()


def gpus_per_worker(config: RayConfig) -> float:
    """As configured; by default a GPU each where the cluster has any."""
    return config.gpus_per_worker if config.gpus_per_worker is not None else gpus_each(config, reach())


def concurrency(need: Demand, wanted: int) -> int:
    """How many runs fit at once: at most `wanted` (0: as many as fit).

    Counted here because Ray Tune counts a trial's own process alone: with more trials than fit, their workers wait for each
    other for ever. Raises ClusterError where not even one fits.
    """
    return at_once(need, reach(), wanted)


def reach() -> Reach:
    """What the connected cluster has, or can grow to: an idle cluster whose workers come with work has next to nothing."""
    import ray
    from ray._private.state import state  # Ray Train itself asks here; there is no public place

    live = [node for node in ray.nodes() if node["Alive"]]
    at_most = state.get_max_resources_from_cluster_config()
    # KubeRay and `ray up` label each node by its group; their autoscaler, as Ray 2.60 comes, tells nobody how far it goes.
    grouped = any("ray.io/node-group" in node.get("Labels", {}) for node in live)
    return Reach([node["Resources"] for node in live], at_most, grows=bool(at_most) or grouped)
