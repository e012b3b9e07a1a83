"""What dead processes left in MLflow and beside it: runs that say RUNNING, points that never arrived. Both are put right here.

A process that opens a run keeps a journal locked until the run has ended (`pipeline.tracking.spool`). A journal that nobody
locks is a dead process's: where it says how the run ended, MLflow had been away, and is told now; where it says nothing, the
process was killed, and so is the run. A tag names the journal of the run's newest driver; what an older one says is void.
"""

import time
from collections.abc import Collection
from contextlib import suppress
from typing import NamedTuple

from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from pipeline.errors import TrackingError
from pipeline.tracking.access import explained, mlflow_client, patiently
from pipeline.tracking.facts import redact
from pipeline.tracking.outbox import Outbox
from pipeline.tracking.runs import DRIVER, OUTAGE_SECONDS, SWEEP, end_run
from pipeline.tracking.spool import Journal, abandoned

RUN_SECONDS = 60.0  # longest time that one run's leavings may take


class Delivered(NamedTuple):
    """What became of one run's leavings."""

    run_id: str
    points: int  # lines that were waiting: metrics and tags
    status: str  # that the run was given; "" if it was left as it is
    problem: str  # "" if nothing is left


def deliver_left(uri: str, seconds: float, run_seconds: float = RUN_SECONDS) -> list[Delivered]:
    """Send what dead processes of this machine left for a resolved address, and end the runs that they left RUNNING.

    Stops after about `seconds`; runs that there was no time for come back with that as their problem. Never raises.
    """
    deadline, waiting = time.monotonic() + seconds, dict[str, int]()
    for journal in abandoned(uri):
        waiting[journal.head.run_id] = waiting.get(journal.head.run_id, 0) + (0 if journal.head.driver else len(journal.lines))
        journal.release()
    found = []
    for run_id, points in waiting.items():
        left = min(run_seconds, deadline - time.monotonic())
        if left <= 0:
            found.append(Delivered(run_id, points, "", "there was no time left for it; `tood deliver` sends it"))
            continue
        status, problem = "", Outbox(uri, run_id).flush(left) if points else ""
        try:
            status = _settle(uri, run_id) if not problem else ""
        except TrackingError as error:
            problem = str(error)
        found.append(Delivered(run_id, points, status, problem))
    return found


def reconcile(uri: str, experiment_id: str, sweep: str, alive: Collection[str], seconds: float = OUTAGE_SECONDS) -> list[str]:
    """Set a sweep's runs that a dead process left RUNNING to KILLED, but for the ids in `alive`. Returns their ids.

    Waits for MLflow for up to `seconds`. Raises TrackingError.
    """
    client, killed = mlflow_client(uri), []

    def kill() -> None:
        running = f"attributes.status = 'RUNNING' and tags.`{SWEEP}` = '{sweep}'"
        for run in client.search_runs([experiment_id], running, max_results=10_000):
            if run.info.run_id not in alive:
                client.set_terminated(run.info.run_id, "KILLED")
                killed.append(run.info.run_id)

    patiently(f"runs of sweep {sweep!r} of MLflow at {redact(uri)}", kill, seconds)
    return killed


def _settle(uri: str, run_id: str) -> str:
    """End the run as its dead driver's journal says; the status that it was given. Raises TrackingError."""
    given = ""
    for journal in abandoned(uri, run_id):
        if not journal.head.driver:
            journal.release()  # of a process that died meanwhile: for the next time
            continue
        try:
            with explained(f"end of run {run_id}"):
                run = _run(uri, run_id)  # None: it was removed for good, and there is nothing left to tell
                if run and run.data.tags.get(DRIVER) == journal.head.driver and run.info.status == "RUNNING":
                    status, ended = _end(journal)
                    end_run(uri, run_id, status, ended)
                    given = status
        except TrackingError:
            journal.release()
            raise
        journal.remove()
    return given


def _run(uri: str, run_id: str) -> Run | None:
    try:
        return mlflow_client(uri).get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
    return None


def _end(journal: Journal) -> tuple[str, int]:
    """How and when (milliseconds since 1970) the run ended: as its process said, else killed, and found so now."""
    for line in reversed(journal.lines):
        with suppress(KeyError, TypeError, ValueError):
            return str(line["status"]), int(line["time"])
    return "KILLED", int(time.time() * 1000)
