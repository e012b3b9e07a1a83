"""A node is about to be taken away, and Ray says so: the run stores a checkpoint in time and goes on elsewhere, at no charge."""

import itertools
import os
import random
import subprocess
import sys
import time

import pytest

from tests.system.chaos.ledger import account, read
from tests.system.chaos.nodes import TwoNodes
from tests.tiny import write_experiment

pytestmark = pytest.mark.system

EPOCHS, IMAGES, STEPS = 20, 16, 4  # so many that the notice, which takes its seconds to be given, comes before the end
GRACE = 20  # seconds from the notice until the node goes
DRAIN = """
import ray, subprocess, sys
ray.init(address=sys.argv[1], log_to_driver=False)
(second,) = [node["NodeID"] for node in ray.nodes() if node["Alive"] and "node:__internal_head__" not in node["Resources"]]
subprocess.run([sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", sys.argv[1], "--node-id", second,
    "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "taken away", "--deadline-remaining-seconds", sys.argv[2]],
    check=True)
"""


def test_a_preempted_run_loses_no_step_and_no_restart(tmp_path):
    """No checkpoint is written by time, and ray.max_failures=0: a notice alone makes both possible."""
    file = write_experiment(tmp_path)
    settings = [f"train.epochs={EPOCHS}", "train.log_every=1", "train.checkpoint_minutes=0", "ray.workers=2", "ray.max_failures=0"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    ledger = tmp_path / "ledger.jsonl"
    with TwoNodes(tmp_path, random.Random(0), env) as cluster, cluster.train(ledger, str(file), *settings) as run:
        cluster.wait(run, lambda: any((e["what"], e.get("epoch"), e.get("batch")) == ("batch", 1, 1) for e in read(ledger)))
        subprocess.run([sys.executable, "-c", DRAIN, cluster.address, str(GRACE)], env=cluster.env, check=True, timeout=60)
        time.sleep(GRACE)
        at_the_end = read(ledger)
        cluster.kill_node()
        cluster.add_node()
        cluster.wait_for_the_end(run)

    stored = [e["step"] for e in at_the_end if e["what"] == "stored"]
    assert stored[-1] == sum(e["what"] == "batch" and e["rank"] == 0 for e in at_the_end), "steps were lost with the node"
    events = read(ledger)
    assert (stored[-1] // STEPS, stored[-1] % STEPS) in [(e["epoch"], e["batch"]) for e in events if e["what"] == "begun"]
    found = account(events, STEPS, "stored")
    assert found.faults == []
    assert found.redone == []
    for epoch in range(EPOCHS):
        assert sorted(itertools.chain(*found.epochs[epoch])) == list(range(1, IMAGES + 1))
