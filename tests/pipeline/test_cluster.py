"""What fits on a cluster, as it is and as its autoscaler may make it. Ray is stood in for: real clusters are tests/system's."""

import pytest
import ray
from ray._private.state import state

from pipeline.cluster import Demand, concurrency, gpus_per_worker
from pipeline.config import RayConfig
from pipeline.errors import ClusterError


@pytest.fixture
def cluster(monkeypatch):
    """Say what a cluster has now and, with an autoscaler, at most."""

    def has(now, at_most=None):
        monkeypatch.setattr(ray, "cluster_resources", lambda: now)
        monkeypatch.setattr(state, "get_max_resources_from_cluster_config", lambda: at_most)

    return has


def test_as_many_runs_as_fit_and_as_are_wanted(cluster):
    cluster({"CPU": 9.0, "GPU": 4.0})
    assert concurrency(Demand(3, 0), 0) == 3
    assert concurrency(Demand(3, 2), 0) == 2
    assert concurrency(Demand(3, 0), 1) == 1
    with pytest.raises(ClusterError, match=r"needs 10 CPUs and 0 GPUs, the cluster has 9 and 4"):
        concurrency(Demand(10, 0), 0)


def test_workers_that_the_autoscaler_can_bring_count(cluster):
    idle = {"memory": 8e9}  # a head without CPUs, and no worker yet
    cluster(idle)
    with pytest.raises(ClusterError):
        concurrency(Demand(2, 1), 0)
    assert gpus_per_worker(RayConfig()) == 0
    cluster(idle, {"CPU": 64, "GPU": 8})
    assert concurrency(Demand(2, 1), 0) == 8
    assert gpus_per_worker(RayConfig()) == 1
