"""What fits on a cluster, as it is and as its autoscaler may make it. Ray is stood in for: real clusters are tests/system's."""

import signal
import subprocess
import sys

import pytest
import ray
from ray._private.state import state

from pipeline.cluster import Demand, concurrency, gpus_per_worker
from pipeline.config import RayConfig
from pipeline.errors import ClusterError


@pytest.fixture
def cluster(monkeypatch):
    """Say what each node of a cluster has now and, with an autoscaler that says so, all of them at most."""

    def has(*nodes, at_most=None, labels=None):
        dead = {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 64.0}, "Labels": {}}
        live = [{"Alive": True, "Resources": node, "Labels": labels or {}} for node in nodes]
        monkeypatch.setattr(ray, "nodes", lambda: [dead, *live])
        monkeypatch.setattr(state, "get_max_resources_from_cluster_config", lambda: at_most)

    return has


def test_as_many_runs_as_fit_and_as_are_wanted(cluster):
    cluster({"CPU": 9.0, "GPU": 4.0})
    assert concurrency(Demand(1, 3, 0), 0) == 3
    assert concurrency(Demand(2, 1, 1, 1), 0) == 2
    assert concurrency(Demand(1, 3, 0), 1) == 1
    with pytest.raises(ClusterError, match=r"needs 10 CPUs and 0 GPUs, the cluster has 9 and 4"):
        concurrency(Demand(10, 1, 0), 0)


def test_workers_that_the_autoscaler_can_bring_count(cluster):
    idle = {"memory": 8e9}  # a head without CPUs, and no worker yet
    cluster(idle)
    with pytest.raises(ClusterError):
        concurrency(Demand(1, 1, 1, 1), 0)
    assert gpus_per_worker(RayConfig()) == 0
    cluster(idle, at_most={"CPU": 64, "GPU": 8})
    assert concurrency(Demand(1, 1, 1, 1), 0) == 8
    assert gpus_per_worker(RayConfig()) == 1


def test_an_autoscaler_that_does_not_say_how_far_it_goes_is_believed(cluster):
    """Ray's own tells nobody (ray-project/ray#63012): its clusters are known by their nodes' groups."""
    cluster({"memory": 8e9}, labels={"ray.io/node-group": "headgroup"})
    assert concurrency(Demand(2, 4, 1, 1, "H100"), 0) == 1
    assert concurrency(Demand(2, 4, 1, 1, "H100"), 6) == 6


DRIVER = """
import signal, sys, time
from pipeline.cluster import connected
from pipeline.config import RayConfig

signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))
with connected(RayConfig(), 1):
    print("at work", flush=True)
    try:
        time.sleep(60)
    finally:
        time.sleep(4)  # a checkpoint on its way to the store
        print("stored", flush=True)
"""


@pytest.mark.short_run
def test_a_driver_that_is_told_to_end_has_the_time_that_it_takes():
    """Ray's own handler of the signal aborts the process after 3 s."""
    process = subprocess.Popen([sys.executable, "-c", DRIVER], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        while "at work" not in (line := process.stdout.readline()):
            assert line, process.stderr.read()[-1500:]
        process.send_signal(signal.SIGTERM)
        said, complained = process.communicate(timeout=60)
        assert (process.returncode, said) == (143, "stored\n"), complained[-1500:]
    finally:
        process.kill()
        process.wait()
