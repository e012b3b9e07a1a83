"""The verb that times the parts of training and detection."""

import argparse

from pipeline.arguments import Verbs
from tood.bench.arguments import add_arguments


def add_to(verbs: Verbs) -> None:
    add_arguments(verbs.add("bench", _bench, "time the parts of training and detection, beside each other and beside a peer"))


def _bench(options: argparse.Namespace) -> int:
    from tood.bench.command import run

    return run(options)
