"""Which failures of workers are tried again, and what a person is told of them."""

import os
import threading
from types import SimpleNamespace

import pytest
import ray
from ray.train import FailureConfig
from ray.train.v2._internal.callbacks import placement_group_callback
from ray.train.v2._internal.execution.controller import placement_group_cleaner
from ray.train.v2._internal.execution.controller.placement_group_cleaner import PlacementGroupCleaner
from ray.train.v2._internal.execution.failure_handling import FailureDecision
from ray.train.v2.api.exceptions import WorkerGroupError

from pipeline import cleaner, failures
from pipeline.cleaner import Cleaner, CleanerCallback, watching_at_once
from pipeline.errors import ClusterError, StorageError
from pipeline.failures import _Policy, cause, why
from tood.errors import ConfigError, DataError, DivergedError, OutOfMemoryError, StoppedError


def failed(*failures: BaseException) -> WorkerGroupError:
    return WorkerGroupError("workers failed", dict(enumerate(failures)))


def wrapped(error: BaseException) -> RuntimeError:
    """As Ray hands on what a worker raised."""
    outer = RuntimeError("layer of Ray\nits last line")
    outer.cause = error
    return outer


@pytest.mark.parametrize("error", [ConfigError("x"), DivergedError("x"), OutOfMemoryError("x")])
def test_what_would_fail_again_is_not_tried_again(error):
    policy = _Policy(FailureConfig(max_failures=-1))
    assert policy.make_decision(failed(ValueError(), wrapped(error))) is FailureDecision.RAISE


@pytest.mark.parametrize("error", [DataError("x"), StorageError("x"), StoppedError("x"), ConnectionError(), SystemExit(1)])
def test_what_may_pass_is_tried_again_as_often_as_allowed(error):
    policy, had_ray = _Policy(FailureConfig(max_failures=2)), ray.is_initialized()
    decisions = [policy.make_decision(failed(wrapped(error))) for _ in range(3)]
    assert decisions == [FailureDecision.RETRY] * 2 + [FailureDecision.RAISE]
    assert ray.is_initialized() == had_ray  # it takes none to decide that


def test_a_person_is_told_what_a_worker_meant():
    meant = DataError("a.png: cannot be decoded")
    assert cause(failed(ValueError(), wrapped(wrapped(meant))), "run") is meant
    other = cause(failed(ValueError("no")), "run")
    assert isinstance(other, ClusterError)
    assert str(other).startswith("run run: failed on the cluster (")
    assert why(None) == ""
    assert why(wrapped(meant)) == "a.png: cannot be decoded"
    assert why(wrapped(ClusterError("first\nlast"))) == "last"
    assert why(wrapped(KeyError())) == "KeyError"


def test_what_frees_a_dead_runs_places_watches_from_its_first_moment_on(monkeypatch):
    """Ray's waits for a call that never comes where the controller died while the cleaner's process was starting."""
    gone, asked_at = threading.Event(), []
    monkeypatch.setenv("RAY_ADDRESS", "another:6379")
    monkeypatch.setattr(cleaner.ray, "get_runtime_context", lambda: SimpleNamespace(gcs_address="own:6379"))
    monkeypatch.setattr(placement_group_cleaner, "is_actor_alive", lambda **asked: asked_at.append(os.environ["RAY_ADDRESS"]))
    monkeypatch.setattr(PlacementGroupCleaner, "_exit", lambda self: gone.set())
    Cleaner(controller_actor_id="dead", check_interval_s=0.01, get_actor_timeout_s=1, stop_timeout=1)
    assert gone.wait(10)
    assert asked_at == ["own:6379"]  # not at whatever cluster is found on the machine: there may be two
    rays_own = placement_group_callback.PlacementGroupCleanerCallback()
    other = object()
    own, kept = watching_at_once([rays_own, other])
    assert type(own) is CleanerCallback
    assert kept is other


@pytest.mark.parametrize(("state", "decision"), [("ALIVE", FailureDecision.RETRY), ("DEAD", FailureDecision.RAISE)])
def test_a_controller_that_ray_has_given_up_reserves_nothing_more(monkeypatch, state, decision):
    """Ray stops a trial by killing its workers a moment before their controller, whose new ones' place would stay reserved."""
    monkeypatch.setattr(failures.ray, "is_initialized", lambda: True)
    monkeypatch.setattr(failures.ray, "get_runtime_context", lambda: SimpleNamespace(get_actor_id=lambda: "mine"))
    monkeypatch.setattr(failures, "actors", lambda actor_id: {"mine": {"State": state}}[actor_id])
    monkeypatch.setattr(failures, "LINGER", 0.0)
    assert _Policy(FailureConfig(max_failures=-1)).make_decision(failed(ConnectionError())) is decision
