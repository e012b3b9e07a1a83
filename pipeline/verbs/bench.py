"""The verb that times the parts of training and detection, and what a sweep costs beside them."""

import argparse

from pipeline.arguments import Verbs
from tood.bench.arguments import add_arguments

SWEEP = "sweep"


def add_to(verbs: Verbs) -> None:
    added = verbs.add("bench", _bench, "time the parts of training and detection, beside each other and beside a peer")
    add_arguments(added, more=[SWEEP])


def _bench(options: argparse.Namespace) -> int:
    from pipeline.bench import overheads
    from tood.bench.command import run

    return run(options, {SWEEP: overheads})
