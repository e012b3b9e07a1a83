"""Being told that a worker has to go: by a SIGTERM to its process, by Ray's notice that its node is about to be taken away,
or by the run's driver, which got a SIGTERM itself and says so through Ray's key-value store.
"""

import contextlib
import signal
import threading
import time
from dataclasses import dataclass

from ray.experimental import internal_kv
from ray.train.torch import TorchConfig
from ray.train.v2._internal.execution.context import get_train_context

GRACE = 25  # seconds that a driver waits for its workers' checkpoint; what stops processes often gives them 30
UNKNOWN_DEADLINE = 60  # seconds until a node goes whose notice does not say when
TRAINING, ASKED, STORED = b"training", b"asked", b"stored"  # what a run's key says
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


# -- between a driver and its run's first worker ---------------------------------------------------------------------


def listen(run: str) -> None:
    """In rank 0: from now on the driver's word counts like a SIGTERM."""

    def watch() -> None:
        word = TRAINING
        while word != ASKED:
            time.sleep(0.5)
            with contextlib.suppress(Exception):  # Ray may be out of reach for a moment, or at its end
                word = _said(run)
        _received.append(signal.SIGTERM)

    _say(run, TRAINING)
    threading.Thread(target=watch, name="notice", daemon=True).start()


def confirm(run: str) -> None:
    """In rank 0: the checkpoint is stored."""
    _say(run, STORED)


def stop_workers(run: str) -> bool:
    """In the driver: ask a run's workers to store a checkpoint and stop. Whether they did; at once False if none train."""
    if _said(run) != TRAINING:
        return False
    _say(run, ASKED)
    end = time.monotonic() + GRACE
    while time.monotonic() < end:
        if _said(run) == STORED:
            return True
        time.sleep(0.1)
    return False


def _say(run: str, word: bytes) -> None:
    internal_kv._internal_kv_put(f"tood/run/{run}", word, overwrite=True)


def _said(run: str) -> bytes | None:
    return internal_kv._internal_kv_get(f"tood/run/{run}")


# -- SIGTERM and preemption ------------------------------------------------------------------------------------------


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
