"""What fits on a cluster, counted node by node: a worker lies whole on one node, of the type of accelerator that is asked for."""

import difflib
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pipeline.config import RayConfig
from pipeline.errors import ClusterError

TYPE = "accelerator_type:"  # how Ray begins the resource of a node that has accelerators of a type


class Demand(NamedTuple):
    """What one training run needs of a cluster to begin."""

    workers: int
    worker_cpus: int
    worker_gpus: float
    driver_cpus: int = 0  # of a trial's own process, which may lie on any node
    accelerator_type: str = ""  # that the workers' nodes must have

    @property
    def cpus(self) -> int:
        return self.driver_cpus + self.workers * self.worker_cpus

    @property
    def gpus(self) -> float:
        return self.workers * self.worker_gpus


class Reach(NamedTuple):
    """What a cluster has, and what it may grow to."""

    nodes: Sequence[Mapping[str, float]]  # resources of each live node
    at_most: Mapping[str, float] | None = None  # in all, with what an autoscaler may bring; None: nobody says
    grows: bool = False  # nodes may come, whether or not somebody says how many

    def total(self, resource: str) -> float:
        """Of a resource, with what is known that the autoscaler may bring."""
        now = sum(node.get(resource, 0) for node in self.nodes)
        return float(max(now, (self.at_most or {}).get(resource, 0)))

    def types(self) -> list[str]:
        """Of accelerators: those that nodes have, or that the autoscaler knows of."""
        named = {key for place in (*self.nodes, self.at_most or {}) for key, count in place.items() if count}
        return sorted(key.removeprefix(TYPE) for key in named if key.startswith(TYPE))


def demand(config: RayConfig, gpus_per_worker: float, driver_cpus: int = 0) -> Demand:
    workers = config.workers_min or config.workers
    return Demand(workers, config.cpus_per_worker, gpus_per_worker, driver_cpus, config.accelerator_type)


def gpus_each(config: RayConfig, reach: Reach) -> float:
    """Of a worker: as configured; by default a GPU each where the cluster has any."""
    if config.gpus_per_worker is not None:
        return config.gpus_per_worker
    return 1.0 if reach.total("GPU") >= 1 else 0.0


def fitting_now(need: Demand, nodes: Sequence[Mapping[str, float]]) -> int:
    """How many runs the nodes hold at once."""
    cpus = sum(math.floor(node.get("CPU", 0)) for node in nodes)  # what workers leave over is the drivers'
    return min(worker_places(need, nodes) // need.workers, cpus // need.cpus)


def worker_places(need: Demand, nodes: Sequence[Mapping[str, float]]) -> int:
    """How many workers find a place, were there nothing else."""
    return sum(_on_node(need, node) for node in nodes)


def at_once(need: Demand, reach: Reach, wanted: int) -> int:
    """How many runs fit at once: at most `wanted` (0: as many as fit). Raises ClusterError where not even one does."""
    fits = fitting_now(need, reach.nodes)
    if reach.at_most and (not need.accelerator_type or TYPE + need.accelerator_type in reach.at_most):
        # The shapes of nodes to come are not known, so their sums are the bound.
        sums = math.floor(reach.total("CPU") / need.cpus)
        fits = max(fits, min(sums, math.floor(reach.total("GPU") / need.gpus + 1e-9)) if need.gpus else sums)
    elif reach.grows and reach.at_most is None:
        fits = max(fits, wanted, 1)  # nobody knows how far it grows: as many as were asked for
    if fits < 1:
        raise ClusterError(_lack(need, reach))
    return min(fits, wanted) if wanted else fits


def _on_node(need: Demand, node: Mapping[str, float]) -> int:
    if need.accelerator_type and not node.get(TYPE + need.accelerator_type):
        return 0
    places = math.floor(node.get("CPU", 0) / need.worker_cpus)
    if not need.worker_gpus:
        return places
    gpus = node.get("GPU", 0)
    if need.worker_gpus < 1:  # Ray takes a part of a GPU from one GPU alone
        return min(places, math.floor(gpus) * math.floor(1 / need.worker_gpus + 1e-9))
    return min(places, math.floor(gpus / need.worker_gpus + 1e-9))


def _lack(need: Demand, reach: Reach) -> str:
    """What is missing for one run, and what to do."""
    asked, types = need.accelerator_type, reach.types()
    if asked and asked not in types:
        near = {kind.lower(): kind for kind in types}
        nearest = [near[kind] for kind in difflib.get_close_matches(asked.lower(), near, n=len(near) or 1, cutoff=0)]
        if nearest:
            return f"ray.accelerator_type: no node has {asked!r}; use one that is there ({', '.join(nearest)}), or leave it empty"
        return f"ray.accelerator_type: no node has {asked!r}, nor says any type; leave it empty, or add nodes that have it"
    if worker_places(need, reach.nodes) >= need.workers or need.cpus > reach.total("CPU") or need.gpus > reach.total("GPU"):
        said = f"{need.cpus} CPUs and {need.gpus:g} GPUs, the cluster has {reach.total('CPU'):g} and {reach.total('GPU'):g}"
    else:
        each = f"{need.worker_cpus} CPUs and {need.worker_gpus:g} GPUs" + (f" and {asked}" if asked else "")
        workers = f"{need.workers} worker{'s' if need.workers > 1 else ''}"
        said = f"{workers}, each whole on a node with {each}; the nodes have room for {worker_places(need, reach.nodes)}"
    return f"one run needs {said}; lower ray.workers, ray.cpus_per_worker or ray.gpus_per_worker, or add nodes"
