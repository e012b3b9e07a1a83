"""The verb that times the parts of training and detection, and what Ray, more workers and a sweep cost beside them."""

import argparse

from pipeline.arguments import Verbs
from tood.bench.arguments import add_arguments

SWEEP, WORKERS, RAY = "sweep", "workers", "ray"


def add_to(verbs: Verbs) -> None:
    added = verbs.add("bench", _bench, "time the parts of training and detection, beside each other and beside a peer")
    add_arguments(added, more=[SWEEP, WORKERS, RAY])


def _bench(options: argparse.Namespace) -> int:
    from pipeline.bench.ray_share import share
    from pipeline.bench.sweeps import overheads
    from pipeline.bench.workers import costs
    from tood.bench.command import run

    return run(options, {SWEEP: overheads, WORKERS: costs}, {RAY: share})
