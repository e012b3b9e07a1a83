"""A run of two workers on two nodes, one of which is killed: it goes on with the other, in the same batches, each image once."""

import itertools
import os
import random

import pytest
from mlflow import MlflowClient

from pipeline.config import experiment_of
from pipeline.experiment_files import load_values
from tests.system.chaos.ledger import account, read
from tests.system.chaos.nodes import TwoNodes
from tests.tiny import write_experiment
from tood.data.coco import read_split
from tood.data.loaders import TrainLoader

pytestmark = pytest.mark.system

EPOCHS, IMAGES, STEPS = 8, 16, 4


def test_a_run_whose_second_node_is_gone_goes_on_with_one_worker(tmp_path):
    file = write_experiment(tmp_path)
    settings = [
        f"train.epochs={EPOCHS}",
        "train.log_every=1",
        "ray.workers=2",
        "ray.workers_min=1",
        "train.checkpoint_minutes=0.005",
    ]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "15"}
    ledger = tmp_path / "ledger.jsonl"
    with TwoNodes(tmp_path, random.Random(0), env) as cluster, cluster.train(ledger, str(file), *settings) as run:
        cluster.wait(run, lambda: any(e["what"] == "batch" and e["epoch"] == 1 for e in read(ledger)))
        cluster.kill_node()
        cluster.wait_for_the_end(run)

    events = read(ledger)
    assert [world for world, _ in itertools.groupby(e["world"] for e in events if e["what"] == "begun")] == [2, 1]
    found = account(events, STEPS, "stored")
    assert found.faults == []
    experiment = experiment_of(load_values(str(file), settings))
    split = read_split(experiment.data, "train")
    alone = TrainLoader(split, experiment.data, batch_size=4, seed=0, epochs=EPOCHS)
    for epoch in range(EPOCHS):
        assert sorted(itertools.chain(*found.epochs[epoch])) == list(range(1, IMAGES + 1))
        assert found.epochs[epoch] == [batch.image_ids.tolist() for batch in alone.epoch(epoch)]

    client = MlflowClient(f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}")
    (tracked,) = client.search_runs([client.get_experiment_by_name("tiny").experiment_id], "tags.`tood.kind` = 'train'")
    sizes = [m.value for m in sorted(client.get_metric_history(tracked.info.run_id, "perf/workers"), key=lambda m: m.step)]
    assert len(sizes) == EPOCHS * STEPS
    assert [size for size, _ in itertools.groupby(sizes)] == [2, 1]
    assert len(client.get_metric_history(tracked.info.run_id, "val/AP")) == EPOCHS
