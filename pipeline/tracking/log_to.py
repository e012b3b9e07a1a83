"""Where a verb that uses a finished model logs to: the run that a person names, a run of its own, or nowhere."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pipeline.tracking.access import connect
from pipeline.tracking.facts import environment_tags
from pipeline.tracking.runs import Run, experiment_id
from tood.config import hash_of


@contextmanager
def log_to(
    tracking: str, values: Mapping[str, Any], run_id: str | None, *, kind: str, name: str, identity: Any
) -> Iterator[Run | None]:
    """The run to log to. None where neither `run_id` nor an address or an experiment of MLflow's is given.

    tracking: resolved address; values: an experiment's, as given; kind: the verb; name: of a run of its own. The same
    `identity`, plain values, finds the run that it made before. Raises TrackingError, before any work, where MLflow
    refuses.
    """
    section = values.get("tracking") or {}
    if run_id:
        connect(tracking)
        run = Run.attach(tracking, run_id)
        run.tags({f"tood.{kind}": name})  # a run that is not there must not be found out at the end
        yield run
        run.deliver()
        return
    if not (section.get("uri") or section.get("experiment") or os.environ.get("MLFLOW_TRACKING_URI")):
        yield None
        return
    connect(tracking)
    run = Run.open(
        tracking,
        experiment_id(tracking, section.get("experiment") or values.get("name") or "tood"),
        identity=f"{kind}-{hash_of(identity)}",
        name=f"{kind} {name}",
        tags={"tood.kind": kind} | environment_tags(),
    )
    try:
        yield run
    except KeyboardInterrupt:
        run.finish("KILLED")
        raise
    except BaseException:
        run.finish("FAILED")
        raise
    run.finish()
