"""What a cluster lacks for an experiment: a problem, or advice where nodes may come. Ray is stood in for."""

import pytest

from pipeline.capacity import Reach
from pipeline.config import experiment_of
from pipeline.doctor import places
from pipeline.doctor.finding import Patient
from pipeline.jobs import server as jobs_server
from pipeline.jobs.profiles import Cluster, Profile

IDLE = {"memory": 8e9}  # a head without CPUs
ONE_GPU = {"CPU": 8.0, "GPU": 1.0, "accelerator_type:H100": 1.0}


def looked_at(monkeypatch, reach: Reach, **ray):
    monkeypatch.setattr(places, "_reach_of", lambda address: reach)
    experiment = experiment_of({"ray": {"address": "auto"} | ray, "train": {"batch_size": 24}})
    return list(places.ray_cluster(Patient(experiment, True, None)))


def test_what_fits_is_one_row(monkeypatch):
    (row,) = looked_at(monkeypatch, Reach([IDLE, ONE_GPU, ONE_GPU]), workers=2, accelerator_type="H100")
    assert (row.state, row.says) == ("ok", "auto: 3 nodes with 16 CPUs and 2 GPUs")


@pytest.mark.parametrize(
    ("ray", "said"),
    [
        ({"accelerator_type": "h100"}, "no node has 'h100'; use one that is there (H100), or leave it empty"),
        ({"gpus_per_worker": 2.0}, "1 worker, each whole on a node with 1 CPUs and 2 GPUs"),
        ({"workers": 3}, "needs 3 CPUs and 3 GPUs, the cluster has 16 and 2"),
    ],
)
def test_what_no_node_can_take_is_a_problem(monkeypatch, ray, said):
    _, row = looked_at(monkeypatch, Reach([IDLE, ONE_GPU, ONE_GPU]), **ray)
    assert (row.state, bool(row.do)) == ("problem", True)
    assert said in f"{row.says}; {row.do}"


@pytest.mark.parametrize("reach", [Reach([IDLE], {"CPU": 64, "GPU": 8}, True), Reach([IDLE], None, True)])
def test_an_idle_cluster_that_may_grow_is_advice(monkeypatch, reach):
    ok, row = looked_at(monkeypatch, reach, workers=2, gpus_per_worker=1.0)
    assert ok.says == "auto: 1 node with 0 CPUs and 0 GPUs, and may grow"
    assert (row.state, row.says) == ("advice", "no run fits as the cluster is now: one needs 2 CPUs and 2 GPUs")


def test_what_not_even_the_autoscaler_brings_is_a_problem(monkeypatch):
    _, row = looked_at(monkeypatch, Reach([IDLE], {"CPU": 64, "GPU": 8}, True), workers=12, gpus_per_worker=1.0)
    assert row.state == "problem"


@pytest.mark.parametrize(("cpus", "state"), [(0, "advice"), (2, "problem")])
def test_behind_a_job_server_a_head_without_cpus_may_grow(monkeypatch, tmp_path, cpus, state):
    class Server:
        version = "2.60.0"

        def __init__(self, address, token):
            pass

        def nodes(self):
            return [{"name": "head", "head": True, "resources": IDLE | ({"CPU": cpus} if cpus else {})}]

    monkeypatch.setattr(jobs_server, "JobServer", Server)
    cluster = Cluster("there", Profile(jobs="http://there:8265"), tmp_path)
    rows = list(places.ray_cluster(Patient(experiment_of({"ray": {"workers": 4}}), True, cluster)))
    assert rows[-1].state == state


def test_a_cluster_is_asked_by_a_process_of_its_own(monkeypatch, tmp_path):
    """That its answer is read back as it was meant; the cluster itself is stood in for."""
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray/__init__.py").write_text("def init(**options): pass\n")
    (tmp_path / "sitecustomize.py").write_text(
        "import sys, types\n"
        "cluster = sys.modules['pipeline.cluster'] = types.ModuleType('pipeline.cluster')\n"
        "cluster.reach = lambda: ([{'CPU': 8.0}], {'CPU': 64}, True)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert places._reach_of("auto") == Reach([{"CPU": 8.0}], {"CPU": 64}, True)
