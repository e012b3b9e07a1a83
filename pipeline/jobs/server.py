"""The one place that talks to Ray's job server, over HTTP: jobs, their logs, and what they hold of their cluster."""

import logging
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient
from ray.util.state.api import StateApiClient
from ray.util.state.common import ListApiOptions, StateResource

from pipeline.errors import ClusterError
from pipeline.tracking.facts import redact

CONNECT_SECONDS = 5
REQUEST_SECONDS = 60  # without an answer; Ray's own client would wait for ever
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
_RAYS_OWN = ("TrainStateActor", "_AutoscalingCoordinatorActor")  # one a cluster, made by the first run and kept by Ray

for _name in ("dashboard.modules.dashboard_sdk", "dashboard.modules.job.sdk", "_private.runtime_env.packaging"):
    logging.getLogger(f"ray.{_name}").setLevel(logging.WARNING)  # they tell of every upload and every closed connection


@dataclass(frozen=True)
class Job:
    id: str
    status: str  # PENDING, RUNNING or one of ENDED
    message: str = ""
    started: float | None = None  # seconds since 1970
    ended: float | None = None
    exit_code: int | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    entrypoint: str = ""
    ray_job: str = ""  # the id under which Ray knows what it runs

    @property
    def over(self) -> bool:
        return self.status in ENDED

    def seconds(self) -> float:
        """That it ran, or has been running."""
        return max(0.0, (self.ended or time.time()) - self.started) if self.started else 0.0


class _Bounded:
    def _do_request(self, method: str, endpoint: str, **options: Any) -> requests.Response:
        options.setdefault("timeout", (CONNECT_SECONDS, REQUEST_SECONDS))
        return super()._do_request(method, endpoint, **options)


class _JobClient(_Bounded, JobSubmissionClient):
    pass


class _StateClient(_Bounded, StateApiClient):
    pass


class JobServer:
    """A cluster's job server. Every method raises ClusterError when it cannot be reached or refuses."""

    def __init__(self, address: str, token: str = ""):
        self.address = address.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._states: StateApiClient | None = None
        with self._errors("reach"), _without_rays_own_addresses():
            self._client = _JobClient(self.address, headers=dict(self._headers))
            self._client.list_jobs()  # the version is told to anybody; this shows whether the token is right

    @property
    def version(self) -> str:
        return self._client._server_ray_version or ""

    def jobs(self) -> list[Job]:
        """Every job that was submitted and not deleted, newest first."""
        with self._errors("list the jobs of"):
            found = [_job(details) for details in self._client.list_jobs() if details.submission_id]
        return sorted(found, key=lambda job: -(job.started or 0))

    def find(self, job_id: str) -> Job | None:
        return next((job for job in self.jobs() if job.id == job_id), None)

    def submit(self, job_id: str, entrypoint: str, runtime_env: dict[str, Any], metadata: dict[str, str]) -> bool:
        """Start a job. False if there is one of this id already."""
        with self._errors("submit to"):
            try:
                self._client.submit_job(
                    entrypoint=entrypoint, submission_id=job_id, runtime_env=runtime_env, metadata=dict(metadata)
                )
            except RuntimeError as error:
                if "already exists" in str(error):
                    return False
                raise
        return True

    def stop(self, job_id: str) -> None:
        with self._errors(f"stop {job_id} at"):
            self._client.stop_job(job_id)

    def logs(self, job_id: str) -> str:
        with self._errors(f"read the log of {job_id} at"):
            return self._client.get_job_logs(job_id)

    async def tail(self, job_id: str) -> AsyncIterator[str]:
        """Pieces of a job's log, from its beginning to the job's end or to the connection's."""
        stream = self._client.tail_job_logs(job_id)
        while True:
            with self._errors(f"read the log of {job_id} at"):
                try:
                    piece = await anext(stream)
                except StopAsyncIteration:
                    return
            yield piece

    def holdings(self, ray_job: str) -> list[str]:
        """What a job still has of its cluster: live actors and placement groups, in words."""
        mine = [("job_id", "=", ray_job)], [("creator_job_id", "=", ray_job)]
        held = [
            f"actor {actor.class_name} on process {actor.pid}"
            for actor in self._list(StateResource.ACTORS, mine[0])
            if actor.state != "DEAD" and actor.class_name not in _RAYS_OWN
        ]
        groups = self._list(StateResource.PLACEMENT_GROUPS, mine[1])
        return held + [f"placement group {g.placement_group_id[:8]}" for g in groups if g.state != "REMOVED"]

    def nodes(self) -> list[dict[str, Any]]:
        """The live nodes: {"name", "head", "resources"}."""
        live = [node for node in self._list(StateResource.NODES, []) if node.state == "ALIVE"]
        return [{"name": n.node_name, "head": n.is_head_node, "resources": dict(n.resources_total)} for n in live]

    def _list(self, resource: StateResource, filters: list) -> list:
        with self._errors("look into"):
            if self._states is None:
                with _without_rays_own_addresses():
                    self._states = _StateClient(self.address, headers={"Content-Type": "application/json"} | self._headers)
            options = ListApiOptions(filters=filters, limit=10_000, detail=True, timeout=30)
            return self._states.list(resource, options, raise_on_missing_output=False)

    @contextmanager
    def _errors(self, action: str) -> Iterator[None]:
        where = f"cannot {action} Ray's job server at {redact(self.address)}"
        try:
            yield
        except ClusterError:
            raise
        except AuthenticationError:
            advice = "the token is not this cluster's" if self._headers else "it asks for a token"
            raise ClusterError(
                f"{where}: {advice}; name the right one in cluster.yaml, such as token: {{file: ~/.ray/auth_token}}"
            ) from None
        except (requests.exceptions.Timeout, TimeoutError):
            raise ClusterError(f"{where}: no answer within {REQUEST_SECONDS} s; look at the cluster's head node") from None
        except (requests.exceptions.RequestException, ConnectionError, OSError) as error:
            raise ClusterError(
                f"{where}: no connection ({type(error).__name__}); start the cluster, or correct `jobs` in cluster.yaml"
            ) from None
        except (RuntimeError, ValueError) as error:
            raise ClusterError(f"{where}: {_reason(error)}") from None
        except Exception as error:  # a broken connection has its own class in each library below
            if type(error).__module__.partition(".")[0] not in ("aiohttp", "ray"):
                raise
            raise ClusterError(f"{where}: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    """The last line of a server's traceback says what went wrong."""
    lines = [line.strip() for line in redact(str(error)).splitlines() if line.strip()]
    said = lines[-1] if lines else type(error).__name__
    return said if len(said) <= 300 else f"{said[:300]}..."


def _job(details: Any) -> Job:
    return Job(
        id=details.submission_id,
        status=str(getattr(details.status, "value", details.status)),
        message=details.message or "",
        started=details.start_time and details.start_time / 1000,
        ended=details.end_time / 1000 if details.end_time else None,
        exit_code=details.driver_exit_code,
        metadata=details.metadata or {},
        entrypoint=details.entrypoint,
        ray_job=details.job_id or "",
    )


@contextmanager
def _without_rays_own_addresses() -> Iterator[None]:
    """Ray's clients prefer these variables to the address that they are given: a job would go to another cluster."""
    kept = {name: os.environ.pop(name) for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS") if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)
