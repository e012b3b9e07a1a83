"""What every program of harm says at its end: a table for people, a JSON line for programs, and an exit code.

A program is a module of this folder with `main(argv) -> int`, run as `python -m tests.system.chaos.NAME --seed S --count N`:
the same seed does the same harm. `python -m tests.system.chaos` runs them all, one after the other (`make chaos`).
"""

import argparse
import json
import signal
import sys
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple


class Row(NamedTuple):
    """One kind of harm: how often it was done, and how often everything was as it should be afterwards."""

    what: str
    tried: int
    survived: int
    remark: str = ""


def parser(name: str, does: str, count: int, counted: str) -> argparse.ArgumentParser:
    """The arguments that all programs share; a program adds its own. `counted`: what --count counts."""
    made = argparse.ArgumentParser(prog=f"python -m tests.system.chaos.{name}", description=does)
    made.add_argument("--seed", type=int, default=0, help="the same seed does the same harm (default 0)")
    made.add_argument("--count", type=int, default=count, help=f"{counted} (default {count})")
    return made


def begin() -> float:
    """Now, by the monotonic clock; from here on SIGTERM ends the program by way of its `finally`s, which end its servers."""
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    return time.monotonic()


def conclude(name: str, rows: Sequence[Row], *, seed: int, began: float, **figures: float) -> int:
    """Print the table, then one JSON line. 0 where all survived and something was tried at all, else 1.

    began: what `begin` gave. figures: numbers worth keeping, for the JSON line alone.
    """
    survived = bool(rows) and all(row.tried > 0 and row.survived == row.tried for row in rows)
    print(table(rows), flush=True)
    line = {"chaos": name, "seed": seed, "seconds": round(time.monotonic() - began, 1), "survived": survived}
    print(json.dumps(line | {"rows": [row._asdict() for row in rows]} | figures), flush=True)
    return 0 if survived else 1


def table(rows: Sequence[Row]) -> str:
    """Columns as wide as what stands in them."""
    lines = [("harm", "tried", "survived", "")]
    lines += [(row.what, str(row.tried), str(row.survived), row.remark) for row in rows]
    widths = [max(len(line[column]) for line in lines) for column in range(4)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)
