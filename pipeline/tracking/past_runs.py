"""Runs that are over, read back from MLflow: by id, by a tag, with their artifacts. Few calls, whatever the number of runs."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import mlflow.artifacts
import yaml
from mlflow.entities import Run as MlflowRun

from pipeline.errors import TrackingError
from pipeline.tracking.access import explained, mlflow_client, patiently
from pipeline.tracking.facts import redact
from pipeline.tracking.runs import OUTAGE_SECONDS, RANK, metric_key

PAGE = 1000  # runs a call


class PastRun(NamedTuple):
    run_id: str
    experiment_id: str
    name: str
    status: str
    seconds: float | None  # None while it runs
    params: dict[str, str]
    metrics: dict[str, float]  # the newest value of each
    tags: dict[str, str]


def run_by_id(uri: str, run_id: str) -> PastRun:
    """Raises TrackingError where MLflow has no such run."""
    with explained(f"run {run_id} of MLflow at {redact(uri)}"):
        return _past(mlflow_client(uri).get_run(run_id))


def runs_tagged(uri: str, key: str, value: str) -> list[PastRun]:
    """Every run with a tag, oldest first, whatever experiment it belongs to."""
    if "'" in value:
        raise TrackingError(f"{value!r} names no run: a name has no quotes")
    with explained(f"runs of MLflow at {redact(uri)}"):
        return [_past(run) for run in _search(uri, f"tags.`{key}` = '{value}'")]


def set_ranks(uri: str, ranks: Mapping[str, int]) -> None:
    """Say on each run, by its id, which place it has in its sweep's ranking."""
    client = mlflow_client(uri)
    for run_id, rank in ranks.items():
        patiently(f"rank of run {run_id}", lambda run_id=run_id, rank=rank: client.set_tag(run_id, RANK, rank), OUTAGE_SECONDS)


def artifact(uri: str, run_id: str, path: str, folder: Path) -> Path | None:
    """An artifact of a run, downloaded into `folder`; None where the run has none of this name."""
    parent = path.rpartition("/")[0] or None
    with explained(f"artifacts of run {run_id}"):
        listed = mlflow_client(uri).list_artifacts(run_id, parent)
        if not any(file.path == path for file in listed):
            return None
        return Path(mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=path, dst_path=str(folder), tracking_uri=uri))


def experiment_values(uri: str, run_id: str, folder: Path) -> dict | None:
    """What the run's experiment.yaml says, if it has one."""
    file = artifact(uri, run_id, "experiment.yaml", folder)
    return None if file is None else yaml.safe_load(file.read_text())


def _search(uri: str, wanted: str) -> Iterator[MlflowRun]:
    client = mlflow_client(uri)
    experiments, token = [], None
    while True:
        page = client.search_experiments(max_results=PAGE, page_token=token)
        experiments += [experiment.experiment_id for experiment in page]
        token = page.token
        if not token:
            break
    while True:
        page = client.search_runs(experiments, wanted, max_results=PAGE, order_by=["attributes.start_time ASC"], page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _past(run: MlflowRun) -> PastRun:
    info = run.info
    seconds = (info.end_time - info.start_time) / 1000 if info.end_time else None
    name = info.run_name or info.run_id
    return PastRun(info.run_id, info.experiment_id, name, info.status, seconds, run.data.params, run.data.metrics, run.data.tags)


def history(uri: str, run_id: str, key: str) -> list[tuple[float, float]]:
    """(epoch, value) of a metric, in order; the epoch is the metric `epoch` that was logged with it."""
    client = mlflow_client(uri)
    with explained(f"history of {key} in run {run_id}"):
        epochs = {m.step: m.value for m in client.get_metric_history(run_id, "epoch")}
        points = {m.step: m.value for m in client.get_metric_history(run_id, metric_key(key))}
    return [(epochs.get(step, step), value) for step, value in sorted(points.items())]
