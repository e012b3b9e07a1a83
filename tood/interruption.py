"""When a run writes a checkpoint within an epoch, and when it has to stop: all ranks decide alike, and no step waits for it."""

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from enum import IntEnum

import torch
import torch.distributed as dist

from tood.ranks import place

COLLECTIVE_SECONDS = 600  # longest wait for another rank


class Ask(IntEnum):
    """What a rank wants after a step; of several wishes the highest counts."""

    GO_ON = 0
    SAVE = 1
    STOP = 2  # after a checkpoint


class Agreement:
    """After each step, what the ranks want: alone at once; of several ranks the highest wish of the step before.

    Each step's wishes travel between the hosts (gloo) while the next step is computed, and are read after it. So a wish is
    heard a step late, by all ranks at the same step, and neither device nor host waits for it.
    """

    def __init__(self, minutes: float, told: Callable[[], bool], collective_seconds: float = COLLECTIVE_SECONDS):
        """minutes: between two checkpoints, by rank 0's clock; 0: none by time. told: whether this process has to stop."""
        self.told, self._seconds = told, minutes * 60
        rank, world = place()
        self._keeps_time = rank == 0 and minutes > 0
        timeout = timedelta(seconds=collective_seconds)
        self._group = dist.new_group(backend="gloo", timeout=timeout) if world > 1 else None
        self._asked: tuple[dist.Work, torch.Tensor] | None = None
        self._since = time.monotonic()

    def after_step(self) -> Ask:
        answer = self._answer()
        due = self._keeps_time and answer is Ask.GO_ON and time.monotonic() - self._since >= self._seconds
        mine = Ask.STOP if self.told() else Ask.SAVE if due else Ask.GO_ON
        if self._group is None:
            return mine
        wish = torch.tensor([int(mine)])
        self._asked = dist.all_reduce(wish, dist.ReduceOp.MAX, self._group, async_op=True), wish
        return answer

    def saved(self) -> None:
        """A checkpoint was written: the time to the next one begins."""
        self._since = time.monotonic()

    def meet(self) -> None:
        """Wait for all ranks."""
        if self._group is not None:
            dist.barrier(self._group)

    def close(self) -> None:
        """At a run's regular end, on all ranks."""
        if self._group is not None:
            self._answer()
            dist.destroy_process_group(self._group)

    def _answer(self) -> Ask:
        if self._asked is None:
            return Ask.GO_ON
        (work, wish), self._asked = self._asked, None
        work.wait()
        return Ask(int(wish))


@contextlib.contextmanager
def sigterm_heeded() -> Iterator[Callable[[], bool]]:
    """Within, a SIGTERM is only remembered; a second one ends the process as ever. Gives whether there was one.

    For the main thread, which alone may do this.
    """
    received = []

    def remember(number: int, frame: object) -> None:
        received.append(number)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    before = signal.signal(signal.SIGTERM, remember)
    try:
        yield lambda: bool(received)
    finally:
        signal.signal(signal.SIGTERM, before)
