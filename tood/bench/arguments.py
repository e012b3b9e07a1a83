"""The arguments of the bench. Apart from what they do, so that a command can offer them without importing torch."""

import argparse
from collections.abc import Sequence
from pathlib import Path

GROWTH, ALL = "growth", "all"
NAMES = ("step", "assign", "loss", "decode", "infer", "eval", "loader", GROWTH)
SECONDS = 5.0  # a group


def add_arguments(parser: argparse.ArgumentParser, more: Sequence[str] = ()) -> None:
    """more: what else the caller measures."""
    parser.add_argument("settings", nargs="+", metavar="WHAT|data.KEY=VALUE", help=", ".join((*NAMES, *more, ALL)))
    parser.add_argument(
        "--seconds",
        type=float,
        default=SECONDS,
        help="that a group is timed for, at least; a growth: half (default %(default)g)",
    )
    parser.add_argument("--threads", type=int, help="of torch (default: its own choice)")
    parser.add_argument("--quick", action="store_true", help="tiny cases, to see that all runs; their times say nothing")
    parser.add_argument("--json", action="store_true", help="one JSON document")
    parser.add_argument("--profile", type=Path, metavar="FOLDER", help="a trace of each case, and its dearest operators")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="a picture of how costs grow")
