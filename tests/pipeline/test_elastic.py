"""Runs whose number of workers may change: what is asked of Ray and of a cluster, and what is refused before a start."""

from types import SimpleNamespace

import pytest

from pipeline import cluster, train
from pipeline.config import experiment_of
from pipeline.experiment_files import load_values
from pipeline.sweep import make_plan
from tests.tiny import write_experiment
from tood.errors import ConfigError

TWELVE = ["train.batch_size=12", "train.lr_batch_size=12", "ray.workers=4"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    more = "sweep: {max_concurrent: 1, space: {train.lr: [0.01, 0.02]}}\n"
    return str(write_experiment(tmp_path_factory.mktemp("tiny"), more))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["ray.workers=2", "ray.workers_min=3"], "ray.workers_min: 3 is more than ray.workers=2"),
        (
            ["ray.workers=4", "ray.workers_min=1"],
            r"4 images a step .* evenly by 3 of ray.workers_min=1 to .*use a multiple of 12, or raise",
        ),
        (
            ["ray.workers=4", "ray.workers_min=1", "train.batch_size=24", "train.accumulate=4"],
            r"24 images .* by 4 of .* multiple of 48, or",
        ),
        (
            ["ray.workers=64", "ray.workers_min=1", "train.batch_size=64"],
            r"evenly by 3 of .*; no batch can, or raise ray.workers_min",
        ),
    ],
)
def test_a_global_batch_must_be_shared_evenly_by_any_number_of_workers(tiny, settings, message):
    with pytest.raises(ConfigError, match=message):
        experiment_of(load_values(tiny, settings))


def test_a_range_of_workers_is_another_experiment_and_none_is_the_same_as_ever(tiny):
    hashes = [
        experiment_of(load_values(tiny, [*TWELVE, *more])).hash for more in ([], ["ray.workers_min=0"], ["ray.workers_min=2"])
    ]
    assert hashes[0] == hashes[1] != hashes[2]


def test_trials_at_the_same_time_are_refused(tiny):
    assert len(make_plan(load_values(tiny, [*TWELVE, "ray.workers_min=1"])).trials) == 2
    for at_once in (0, 2):
        with pytest.raises(ConfigError, match=r"ray\.workers_min: .*set sweep\.max_concurrent=1, or ray\.workers_min=0"):
            make_plan(load_values(tiny, [*TWELVE, "ray.workers_min=1", f"sweep.max_concurrent={at_once}"]))


@pytest.mark.parametrize(("least", "asked", "cpus"), [(0, 4, 8), (1, (1, 4), 2), (4, 4, 8)])
def test_what_is_asked_of_ray_and_needed_of_a_cluster(tiny, monkeypatch, least, asked, cpus):
    experiment = experiment_of(load_values(tiny, [*TWELVE, f"ray.workers_min={least}", "ray.cpus_per_worker=2"]))
    assert cluster.demand(experiment.ray, 0).cpus == cpus
    made = []
    result = SimpleNamespace(checkpoint=object())
    monkeypatch.setattr(train, "Trainer", lambda *_, **given: made.append(given) or SimpleNamespace(fit=lambda: result))
    monkeypatch.setattr(train, "read_pointer", lambda checkpoint: "progress")
    assert train.fit(experiment, train.Address("run", "", "", "", "/tmp"), gpus=0) == "progress"
    assert made[0]["scaling_config"].num_workers == asked
