"""Calls timed in turn with others, in the same breath.

Seconds say as much about the machine and its other work as about the code. A ratio of two operations that are timed call by call
in turn says mostly what the code does: whatever slows the machine for a while slows both. For the nights' ratios to a fixed
reference, single calls that were interrupted are not looked at either: of both the quick calls count (the QUICK quantile).
"""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch.nn.functional import conv2d

Operation = Callable[[], object]

SECONDS = 2.0  # that an operation and its reference are timed for, at least
SURE = 0.03  # error of a ratio that is good enough; a busy machine is timed longer,
PATIENCE = 8  # up to so many times the seconds
PAIRS = 15  # of calls, at least
QUICK = 0.2  # quantile of the calls' times that counts
GROUPS = 5  # of successive pairs, whose disagreement tells the error


class Timing(NamedTuple):
    """An operation and the reference, timed in turn."""

    seconds: float  # of a call
    reference_seconds: float  # of a call of the reference
    ratio: float  # of the two
    error: float  # standard error of the ratio's logarithm
    pairs: int


class Turns:
    """Operations called one after the other, round by round; `times` are theirs so far. On a GPU each call is waited for.

    settle: calls of an operation that do not count, before each that does: one that needs much memory finds it laid out, and
    the caches filled, for the one before it.
    """

    def __init__(self, operations: Mapping[str, Operation], device: torch.device | None = None, settle: int = 0):
        self.operations, self.device, self.settle = operations, device, settle
        self.times: dict[str, list[float]] = {name: [] for name in operations}

    def warm_up(self, rounds: int) -> None:
        """Calls that do not count: the first ones allocate, and choose algorithms."""
        for _ in range(rounds):
            for operation in self.operations.values():
                operation()

    def run(self, seconds: float, rounds: int) -> None:
        """Whole rounds for so many seconds more, and until there are so many of them."""
        until = time.perf_counter() + seconds
        while time.perf_counter() < until or len(next(iter(self.times.values()))) < rounds:
            for name, operation in self.operations.items():
                for _ in range(self.settle):
                    operation()
                _wait(self.device)
                started = time.perf_counter()
                operation()
                _wait(self.device)
                self.times[name].append(time.perf_counter() - started)


def interleaved(
    operation: Operation, reference: Operation, *, seconds: float = SECONDS, pairs: int = PAIRS, device: torch.device | None = None
) -> Timing:
    """Time both in turn, a call each, for so many seconds and at least so many pairs, longer where the error is not yet SURE."""
    turns = Turns({"reference": reference, "own": operation}, device)
    turns.warm_up(2)
    spent = 0.0
    while True:
        more = max(seconds, spent)
        turns.run(more, pairs)
        spent += more
        timing = timing_of(turns.times["own"], turns.times["reference"])
        if timing.error <= SURE or spent >= PATIENCE * seconds:
            return timing


def timing_of(own: Sequence[float], others: Sequence[float]) -> Timing:
    """What times of calls, taken in turn, say together."""
    count = min(GROUPS, len(own) // 3)
    size = len(own) // max(1, count)
    logs = [math.log(quick(own[i * size :][:size]) / quick(others[i * size :][:size])) for i in range(count)]
    error = statistics.stdev(logs) / math.sqrt(count) if count > 1 else math.nan
    return Timing(quick(own), quick(others), quick(own) / quick(others), error, len(own))


def quick(seconds: Sequence[float]) -> float:
    """The QUICK quantile."""
    return sorted(seconds)[int(QUICK * (len(seconds) - 1))]


def reference_operation(device: torch.device) -> Operation:
    """Arithmetic that never changes: a convolution, a product, a copy, many small sums. Two milliseconds on a CPU core.

    Small sums are bound by the calls themselves, as assignment and losses are; a convolution by arithmetic, as a step is; a copy
    by memory. Each kind of trouble that a machine has slows some of it.
    """
    generator = torch.Generator().manual_seed(0)
    image, kernel, square, block, row = (
        torch.randn(shape, generator=generator).to(device)
        for shape in ((1, 32, 64, 64), (32, 32, 3, 3), (256, 256), (1 << 20,), (256,))
    )

    @torch.no_grad()
    def run() -> None:
        conv2d(image, kernel, padding=1)
        torch.mm(square, square)
        block.clone()
        total = row
        for _ in range(150):
            total = total * 0.5 + row

    return run


def _wait(device: torch.device | None) -> None:
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
