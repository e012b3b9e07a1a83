"""What becomes of a run whose workers failed: which failures are tried again, and what a person is told."""

import time
from collections.abc import Iterator

import ray
from ray._private.state import actors  # the cluster's own word; the public one asks the dashboard
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision

from pipeline.cleaner import watching_at_once
from pipeline.errors import ClusterError
from tood.errors import ConfigError, DivergedError, OutOfMemoryError, ToodError

LINGER = 1.0  # seconds between Ray's giving a run up and the last of its processes' end
FINAL = (ConfigError, DivergedError, OutOfMemoryError)  # the next try, to the same bits, would end the same way


class Trainer(TorchTrainer):
    """Ray's, but that what a person has to put right is not tried again, that nothing of a killed run stays on the cluster, and
    that Ctrl-C is Python's own.
    """

    def _register_sigint_handler(self, controller) -> None:
        """Ray's would stay when the run is over, and end the process as if nothing had been left undone."""

    def _create_default_callbacks(self) -> list:
        return watching_at_once(super()._create_default_callbacks())

    def _initialize_and_run_controller(self, **parts):
        return super()._initialize_and_run_controller(**parts | {"failure_policy": _Policy(self.run_config.failure_config)})


class _Policy(DefaultFailurePolicy):
    def make_decision(self, training_failed_error: Exception) -> FailureDecision:
        if any(isinstance(failure, FINAL) for failure in _failures(training_failed_error)):
            return FailureDecision.RAISE
        if _is_given_up():
            return FailureDecision.RAISE
        return super().make_decision(training_failed_error)


def _is_given_up() -> bool:
    """Whether Ray is ending this very process, the controller of a run, as when Tune stops a trial.

    Its workers are killed a moment before it. What it would reserve in that moment for others is never freed, not even when
    the job ends: Ray has by then done away with all that it knew to be the controller's.
    """
    controller = ray.get_runtime_context().get_actor_id() if ray.is_initialized() else None  # to ask would start a Ray
    if controller is None:
        return False
    time.sleep(LINGER)
    return actors(controller).get("State") == "DEAD"


def cause(error: Exception, run: str) -> ToodError:
    """The error that a worker meant, or a ClusterError with the last line of what it said."""
    meant = next((failure for failure in _failures(error) if isinstance(failure, ToodError)), None)
    if meant is not None:
        return meant
    return ClusterError(
        f"run {run}: failed on the cluster ({_last_line(error)}); its workers' logs are in Ray's dashboard and under the "
        "session's logs folder"
    )


def why(error: BaseException | None) -> str:
    """What a trial's own error says, without Ray's layers around it; "" for none."""
    if error is None:
        return ""
    layers = list(_unwrapped(error))
    meant = next((layer for layer in layers if isinstance(layer, ToodError) and not isinstance(layer, ClusterError)), None)
    if meant is not None:
        return str(meant) or type(meant).__name__
    return _last_line(layers[-1])


def _last_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__


def _failures(error: Exception) -> Iterator[BaseException]:
    """What the workers raised, each with what it wraps."""
    for failure in (getattr(error, "worker_failures", None) or {}).values():
        yield from _unwrapped(failure)


def _unwrapped(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = getattr(error, "cause", None) or error.__cause__
