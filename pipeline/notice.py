"""Being told that a worker has to go: a SIGTERM to its process, or Ray's notice that its node is about to be taken away."""

import signal
import time
from dataclasses import dataclass

from ray.train.torch import TorchConfig
from ray.train.v2._internal.execution.context import get_train_context

UNKNOWN_DEADLINE = 60  # seconds until a node goes whose notice does not say when
_received: list[int] = []


def told_to_stop() -> bool:
    """Whether this worker process has to go. Cheap enough to be asked after each step."""
    return bool(_received) or _preemption() is not None


def hold_still() -> None:
    """Keep a worker whose checkpoint is stored from failing before its node goes: Ray Train then counts a preemption, and
    restarts the run without a charge on ray.max_failures. Returns at once where it was no preemption.
    """
    if notice := _preemption():
        left = notice.deadline_ms / 1000 - time.time() if notice.deadline_ms else UNKNOWN_DEADLINE
        time.sleep(max(0, left) + UNKNOWN_DEADLINE)


@dataclass
class HeedingTorchConfig(TorchConfig):
    """Torch for Ray Train, in workers that remember a SIGTERM; a second one ends them as ever."""

    @property
    def backend_cls(self) -> type:
        return _Backend


class _Backend(TorchConfig().backend_cls):
    def on_start(self, worker_group, backend_config):
        super().on_start(worker_group, backend_config)
        worker_group.execute(_heed_sigterm)  # in each worker's main thread, which alone may set a handler


def _heed_sigterm() -> None:
    before = signal.getsignal(signal.SIGTERM)

    def remember(number: int, frame: object) -> None:
        _received.append(number)
        signal.signal(signal.SIGTERM, before)

    signal.signal(signal.SIGTERM, remember)


def _preemption():
    return get_train_context().preemption_context.preemption_info  # of this worker; Ray's public question is a collective one
