"""The one place that talks to MLflow runs: find or create, log, finish.

A run is found by its identity, a tag that a retry or a resume computes again, so both land in the run they began. Runs
are flat: MLflow's charts hide runs nested under a parent, so trials and their sweep are tied by tags. Only an address
and ids travel between processes. Parameters must arrive; metrics that cannot be delivered are kept and sent with later
ones; trouble with artifacts costs a warning and a tag, never the training.
"""

import json
import logging
import posixpath
import re
import threading
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from pipeline.errors import TrackingError
from pipeline.tracking.access import explained, mlflow_client, one_line, sqlite_file
from pipeline.tracking.facts import redact

IDENTITY = "tood.identity"  # tag: what makes a run the same run again
SWEEP = "tood.sweep"  # tag: the sweep that a trial's run belongs to
CONFIGURATION = "tood.configuration"  # tag: the hash apart from the seed, which runs of one configuration share
CHECKPOINT = "tood.best_checkpoint"  # tag: where the best epoch's checkpoint lies
DETECTIONS = "best/detections.json.gz"  # artifact: what the best epoch found on the val split, in COCO's results form
INCOMPLETE = "tood.artifacts_missing"  # tag: artifacts that could not be stored

ARTIFACT_SECONDS = 60  # longest time one artifact may hold up its caller
DATASET_ATTEMPTS = 5
PAUSE_SECONDS = 120  # after a failure nothing of that kind is tried again for so long

log = logging.getLogger(__name__)


def experiment_id(uri: str, name: str, artifact_location: str | None = None) -> str:
    """Find or create the experiment `name`; safe where several processes do so at once.

    artifact_location: where a new experiment keeps artifacts. By default a server decides, and an SQLite file has the
    folder `artifacts` beside it.
    """
    client = mlflow_client(uri)
    if artifact_location is None and uri.startswith("sqlite"):
        artifact_location = (sqlite_file(uri).parent / "artifacts").as_uri()
    with explained(f"experiment {name!r} of MLflow at {redact(uri)}"):
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            tags = {"mlflow.experimentKind": "custom_model_development"}
            try:
                return client.create_experiment(name, artifact_location, tags)
            except MlflowException as error:
                experiment = client.get_experiment_by_name(name)  # another process was first
                if experiment is None:
                    raise error from None
    if experiment.lifecycle_stage != "active":
        raise TrackingError(
            f"experiment {name!r} of MLflow at {redact(uri)} is deleted; restore it "
            f"(mlflow experiments restore --experiment-id {experiment.experiment_id}) or choose another name"
        )
    return experiment.experiment_id


class Run:
    """One MLflow run. `open` in the process that drives it, `attach` (or a pickled copy) where it is logged to."""

    def __init__(self, uri: str, run_id: str):
        self.uri, self.run_id = uri, run_id
        self._steps: dict[str, set[int]] = {}  # steps already logged, by metric; looked up at a metric's first use
        self._pending: list[Metric] = []  # metrics that could not be delivered yet
        self._missing: list[str] = []  # artifacts given up
        self._metrics_resume = self._artifacts_resume = 0.0  # monotonic seconds; nothing is tried before

    def __reduce__(self):
        return Run, (self.uri, self.run_id)

    @classmethod
    def open(cls, uri: str, experiment_id: str, identity: str, name: str, tags: Mapping[str, Any] | None = None) -> "Run":
        """The experiment's run with this identity, made if need be, in status RUNNING. `tags` are set either way."""
        run = cls.find(uri, experiment_id, identity)
        client = mlflow_client(uri)
        with explained(f"run {name!r} of MLflow at {redact(uri)}"):
            if run:
                client.update_run(run.run_id, status="RUNNING")
            else:
                run = cls(uri, client.create_run(experiment_id, tags={IDENTITY: identity}, run_name=name).info.run_id)
        run.tags(tags or {})
        return run

    @classmethod
    def find(cls, uri: str, experiment_id: str, identity: str) -> "Run | None":
        """The experiment's run with this identity as it stands, if there is one."""
        if not re.fullmatch(r"[\w.:/@-]+", identity):
            raise TrackingError(f"run identity {identity!r}: use letters, digits and . _ - : / @ only")
        with explained(f"run {identity!r} of MLflow at {redact(uri)}"):
            found = mlflow_client(uri).search_runs(
                [experiment_id],
                f"tags.`{IDENTITY}` = '{identity}'",
                max_results=1,
                order_by=["attributes.start_time ASC"],
            )
        return cls(uri, found[0].info.run_id) if found else None

    @classmethod
    def attach(cls, uri: str, run_id: str) -> "Run":
        """A run by its id. Talks to nobody until something is logged."""
        return cls(uri, run_id)

    def params(self, values: Mapping[str, bool | int | float | str | None]) -> None:
        """Log flat parameters, numbers and words; None is left out.

        What the run already has may come again. Raises TrackingError where it comes with another value, for then this
        is not the same experiment.
        """
        texts = {key: _param_text(key, value) for key, value in values.items() if value is not None}
        with explained(f"parameters of run {self.run_id}"):
            logged = mlflow_client(self.uri).get_run(self.run_id).data.params
            for key, text in texts.items():
                if logged.get(key, text) != text:
                    raise TrackingError(
                        f"parameter {key} of run {self.run_id}: already logged as {logged[key]}, now {text}; a changed "
                        "experiment needs a new run: start it without resuming"
                    )
            new = [Param(key, text) for key, text in texts.items() if key not in logged]
            mlflow_client(self.uri).log_batch(self.run_id, params=new)

    def metrics(self, values: Mapping[str, float], step: int, epoch: float | None = None) -> None:
        """Log numbers at a step, and `epoch` as a metric of its own.

        A key and step that the run already has is skipped, so steps repeated after a resume leave one point. Characters
        that MLflow does not allow in a key, such as @, become _.
        """
        if epoch is not None:
            values = {**values, "epoch": epoch}
        now = int(time.time() * 1000)
        self._pending += [Metric(_metric_key(key), float(value), now, step) for key, value in values.items()]
        if time.monotonic() < self._metrics_resume:
            return
        try:
            self.deliver()
        except TrackingError as error:
            self._metrics_resume = time.monotonic() + PAUSE_SECONDS
            log.warning("%s; %d metrics are kept and sent later", error, len(self._pending))

    def last_step(self, key: str) -> int | None:
        """The last step at which this metric was logged, by this process or before it."""
        key = _metric_key(key)
        return max([*self._logged_steps(key), *(m.step for m in self._pending if m.key == key)], default=None)

    def tags(self, values: Mapping[str, Any]) -> None:
        """Set tags; a tag that exists gets the new value."""
        tags = [RunTag(key, redact(str(value))) for key, value in values.items()]
        with explained(f"tags of run {self.run_id}"):
            mlflow_client(self.uri).log_batch(self.run_id, tags=tags)

    def description(self, markdown: str) -> None:
        """The text on top of the run's page."""
        self.tags({"mlflow.note.content": markdown})

    def dataset(self, name: str, fingerprint: str, context: str, images: int) -> None:
        """Name the data of a context (training, validation). MLflow's digests are short; a tag has the whole one."""
        data = Dataset(
            name=name,
            digest=fingerprint[:36],
            source_type="coco",
            source=json.dumps({"fingerprint": fingerprint}),
            profile=json.dumps({"images": images}),
        )
        used = DatasetInput(data, [InputTag("mlflow.data.context", context)])
        for attempt in range(DATASET_ATTEMPTS):
            try:
                with explained(f"dataset {name!r} of run {self.run_id}"):
                    mlflow_client(self.uri).log_inputs(self.run_id, datasets=[used])
                break
            except TrackingError as error:
                # Two runs that name the same new data at once collide in MLflow's database; the later finds it there.
                if attempt + 1 == DATASET_ATTEMPTS:
                    log.warning("%s; the run goes on, its tags name the data", error)
                time.sleep(0.2 * (attempt + 1))
        self.tags({f"data.{context}": name, f"data.{context}.fingerprint": fingerprint})

    def text(self, content: str, path: str) -> None:
        """Store a text as the artifact `path`."""
        self._store(path, lambda client: client.log_text(self.run_id, redact(content), path))

    def document(self, content: Any, path: str) -> None:
        """Store plain values as the artifact `path`, JSON or YAML by its ending."""
        as_json = path.endswith(".json")
        self.text(json.dumps(content, indent=2) if as_json else yaml.safe_dump(content, sort_keys=False), path)

    def figure(self, figure: Any, path: str) -> None:
        """Store a matplotlib Figure as the artifact `path` (.png)."""
        self._store(path, lambda client: client.log_figure(self.run_id, figure, path))

    def image(self, image: Any, path: str) -> None:
        """Store a PIL image as the artifact `path`."""
        self._store(path, lambda client: client.log_image(self.run_id, image, artifact_file=path))

    def picture(self, image: Any, name: str, step: int) -> None:
        """Store a PIL image as the picture `name` at a step; MLflow's page shows all steps of a name behind a slider."""
        self._store(f"images/{name}", lambda client: client.log_image(self.run_id, image, key=name, step=step, synchronous=True))

    def file(self, file: str | Path, folder: str = "", seconds: float = ARTIFACT_SECONDS) -> None:
        """Store a file under its own name in the artifact folder `folder`."""
        path = posixpath.join(folder, Path(file).name)
        self._store(path, lambda client: client.log_artifact(self.run_id, str(file), folder or None), seconds)

    def finish(self, status: str = "FINISHED") -> None:
        """Deliver what is kept back and end the run: FINISHED, FAILED or KILLED.

        A run that has ended so already keeps the time it ended at. Raises TrackingError, except where the run failed
        anyway: the reason for that must not be lost behind another.
        """
        try:
            self.deliver()
            with explained(f"end of run {self.run_id}"):
                client = mlflow_client(self.uri)
                if client.get_run(self.run_id).info.status != status:
                    client.set_terminated(self.run_id, status)
        except TrackingError as error:
            if status == "FINISHED":
                raise
            log.warning("%s", error)

    def deliver(self) -> None:
        """Send the metrics that are kept back: the last act of a process that logs but does not `finish`.

        A batch whose receipt was lost may go again: MLflow keeps equal points once. Raises TrackingError.
        """
        if not self._pending:
            return
        with explained(f"metrics of run {self.run_id}"):
            # of points with one key and step the first stays
            new = {(m.key, m.step): m for m in reversed(self._pending) if m.step not in self._logged_steps(m.key)}
            mlflow_client(self.uri).log_batch(self.run_id, metrics=list(reversed(new.values())))
        for key, step in new:
            self._steps[key].add(step)
        self._pending = []

    def _logged_steps(self, key: str) -> set[int]:
        if key not in self._steps:
            with explained(f"history of {key} in run {self.run_id}"):
                self._steps[key] = {m.step for m in mlflow_client(self.uri).get_metric_history(self.run_id, key)}
        return self._steps[key]

    def _store(self, path: str, upload: Callable[[MlflowClient], None], seconds: float = ARTIFACT_SECONDS) -> None:
        """Wait for an upload to end, to fail or to use up its time; never raises.

        The daemon thread bounds every store alike: their clients have their own, longer limits.
        """
        outcome: Exception | None = TimeoutError(f"not stored within {seconds:.0f} s")

        def run() -> None:
            nonlocal outcome
            try:
                upload(mlflow_client(self.uri))
                outcome = None
            except Exception as error:
                outcome = error

        if time.monotonic() >= self._artifacts_resume:
            thread = threading.Thread(target=run, daemon=True)
            thread.start()
            thread.join(seconds)
            if outcome is None:
                return
            self._artifacts_resume = time.monotonic() + PAUSE_SECONDS
            log.warning("artifact %s of run %s: %s; the run goes on without it", path, self.run_id, one_line(outcome))
        self._missing.append(path)
        with suppress(TrackingError):
            self.tags({INCOMPLETE: " ".join(self._missing)[:5000]})


def reconcile(uri: str, experiment_id: str, sweep: str, alive: Collection[str]) -> list[str]:
    """Set a sweep's runs that a dead process left RUNNING to KILLED, but for the ids in `alive`. Returns their ids."""
    client = mlflow_client(uri)
    killed = []
    with explained(f"runs of sweep {sweep!r} of MLflow at {redact(uri)}"):
        running = f"attributes.status = 'RUNNING' and tags.`{SWEEP}` = '{sweep}'"
        for run in client.search_runs([experiment_id], running, max_results=10_000):
            if run.info.run_id not in alive:
                client.set_terminated(run.info.run_id, "KILLED")
                killed.append(run.info.run_id)
    return killed


def history(uri: str, run_id: str, key: str) -> list[tuple[float, float]]:
    """(epoch, value) of a metric, in order; the epoch is the metric `epoch` that was logged with it."""
    client = mlflow_client(uri)
    with explained(f"history of {key} in run {run_id}"):
        epochs = {m.step: m.value for m in client.get_metric_history(run_id, "epoch")}
        points = {m.step: m.value for m in client.get_metric_history(run_id, _metric_key(key))}
    return [(epochs.get(step, step), value) for step, value in sorted(points.items())]


def _param_text(key: str, value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        value = int(value)  # 1.0 from a search space and 1 from a file are one value
    if not isinstance(value, int | float | str):
        raise TrackingError(f"parameter {key}: {value!r} is neither a number nor a word; flatten it first")
    return redact(str(value))


def _metric_key(key: str) -> str:
    return posixpath.normpath(re.sub(r"[^/\w.\- :]", "_", key)).lstrip("/.")
