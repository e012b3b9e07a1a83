"""What fits is counted node by node: sums over a cluster promise places that no node has."""

import pytest

from pipeline.capacity import Demand, Reach, at_once, demand
from pipeline.config import RayConfig
from pipeline.errors import ClusterError

ONE_GPU = [{"CPU": 8.0, "GPU": 1.0}] * 8
MIXED = [
    {"CPU": 8.0},
    *[{"CPU": 8.0, "GPU": 1.0, "accelerator_type:H100": 1.0}] * 2,
    {"CPU": 64.0, "GPU": 8.0, "accelerator_type:A100": 1.0},
]


def fits(need, nodes, wanted=0, at_most=None, grows=False):
    return at_once(need, Reach(nodes, at_most, grows or bool(at_most)), wanted)


def test_a_demand_is_of_the_least_workers_of_the_type_asked_for():
    need = demand(RayConfig(workers=8, workers_min=4, cpus_per_worker=2, accelerator_type="H100"), 1, 1)
    assert need == Demand(4, 2, 1, 1, "H100")
    assert (need.cpus, need.gpus) == (9, 4)


def test_workers_are_counted_on_nodes_of_their_type_and_drivers_anywhere():
    assert fits(Demand(1, 8, 1, 1, "H100"), MIXED) == 2
    assert fits(Demand(2, 8, 1, 1, "H100"), MIXED) == 1
    assert fits(Demand(1, 8, 1, 1, "A100"), MIXED) == 8
    assert fits(Demand(1, 7, 1, 1), MIXED) == 10
    assert fits(Demand(1, 7, 1, 1), MIXED, wanted=3) == 3


def test_a_type_that_no_node_has_is_refused_and_the_nearest_named_first():
    with pytest.raises(ClusterError, match=r"ray.accelerator_type: no node has 'h100'; use one that is there \(H100, A100\)"):
        fits(Demand(1, 1, 1, 0, "h100"), MIXED)
    with pytest.raises(ClusterError, match=r"no node has 'H100', nor says any type"):
        fits(Demand(1, 1, 1, 0, "H100"), ONE_GPU)


def test_what_the_nodes_have_together_and_none_alone_is_refused():
    with pytest.raises(ClusterError, match=r"1 worker, each whole on a node with 1 CPUs and 2 GPUs; the nodes have room for 0;"):
        fits(Demand(1, 1, 2), ONE_GPU)
    with pytest.raises(ClusterError, match=r"3 workers, each whole on a node with 1 CPUs and 1 GPUs and H100; .* room for 2;"):
        fits(Demand(3, 1, 1, 0, "H100"), MIXED)
    assert fits(Demand(1, 8, 1), ONE_GPU) == 8
    with pytest.raises(ClusterError, match=r"needs 65 CPUs and 8 GPUs, the cluster has 64 and 8;"):
        fits(Demand(8, 8, 1, 1), ONE_GPU)
    assert fits(Demand(1, 8, 1, 1), ONE_GPU) == 7  # the eighth node holds their drivers


def test_a_part_of_a_gpu_is_taken_from_one_gpu():
    assert fits(Demand(1, 1, 0.6), [{"CPU": 8.0, "GPU": 2.0}]) == 2
    assert fits(Demand(1, 1, 0.5), [{"CPU": 8.0, "GPU": 2.0}]) == 4
    assert fits(Demand(1, 1, 1 / 3), [{"CPU": 8.0, "GPU": 1.0}]) == 3


def test_what_an_autoscaler_may_bring_is_bound_by_its_sums():
    head, at_most = [{"memory": 8e9}], {"CPU": 64, "GPU": 8, "accelerator_type:H100": 8}
    assert fits(Demand(1, 1, 1, 1, "H100"), head, at_most=at_most) == 8
    assert fits(Demand(1, 8, 1, 1), head, at_most=at_most) == 7
    with pytest.raises(ClusterError, match=r"no node has 'h100'; use one that is there \(H100\)"):
        fits(Demand(1, 1, 1, 0, "h100"), head, at_most=at_most)
    with pytest.raises(ClusterError, match=r"needs 16 CPUs and 16 GPUs, the cluster has 64 and 8;"):
        fits(Demand(16, 1, 1), head, at_most=at_most)


def test_an_autoscaler_brings_no_node_for_a_type_that_it_does_not_know_of():
    """It compares demands with what its groups declare: H100 nodes that are there for another reason are all there will be."""
    there = [{"memory": 8e9}, {"CPU": 8.0, "GPU": 1.0, "accelerator_type:H100": 1.0}]
    assert fits(Demand(1, 1, 1, 0, "H100"), there, at_most={"CPU": 64, "GPU": 8}) == 1


def test_a_cluster_that_grows_without_saying_how_far_holds_what_was_asked_for():
    assert fits(Demand(2, 8, 1, 1, "H100"), [{"memory": 8e9}], grows=True) == 1
    assert fits(Demand(2, 8, 1, 1, "H100"), [{"memory": 8e9}], wanted=5, grows=True) == 5
    assert fits(Demand(1, 1, 1), ONE_GPU, grows=True) == 8
