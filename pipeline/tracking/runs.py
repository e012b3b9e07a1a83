"""The one place that talks to MLflow runs: find or create, log, finish.

A run is found by its identity, a tag that a retry or a resume computes again, so both land in the run they began. Runs
are flat: MLflow's charts hide runs nested under a parent, so trials and their sweep are tied by tags. Only an address
and ids travel between processes.

MLflow may be away for minutes. Metrics, and tags that describe a run, are kept on disk and sent in order, each point once
(`pipeline.tracking.outbox`); what must be known before work goes on (run, parameters, other tags, the end) is waited for.
Trouble with artifacts costs a warning and a tag, never the training. A run whose process was killed is told by a file that
only a living process keeps locked (`pipeline.tracking.leftovers`).
"""

import json
import logging
import posixpath
import re
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from pipeline.errors import TrackingError
from pipeline.tracking.access import bounded, explained, mlflow_client, one_line, patiently, sqlite_file
from pipeline.tracking.facts import redact
from pipeline.tracking.outbox import Outbox
from pipeline.tracking.spool import Journal

IDENTITY = "tood.identity"  # tag: what makes a run the same run again
SWEEP = "tood.sweep"  # tag: the sweep that a trial's run belongs to
CONFIGURATION = "tood.configuration"  # tag: the hash apart from the seed, which runs of one configuration share
CHECKPOINT = "tood.best_checkpoint"  # tag: where the best epoch's checkpoint lies
RANK = "tood.rank"  # tag: the place of a trial in its sweep's ranking, from 1; the seeds of one configuration share it
DETECTIONS = "best/detections.json.gz"  # artifact: what the best epoch found on the val split, in COCO's results form
INCOMPLETE = "tood.artifacts_missing"  # tag: artifacts that could not be stored
DRIVER = "tood.driver"  # tag: token of the process that drives the run

ARTIFACT_SECONDS = 60  # longest time one artifact may hold up its caller
ARTIFACT_PAUSE_SECONDS = 120  # after a failure no artifact is tried again for so long
DATASET_ATTEMPTS = 5
OUTAGE_SECONDS = 300  # so long an outage of MLflow is waited for, where work cannot go on without it or is over
LAST_SECONDS = 20  # and so long by a process that ends because of something else

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
        self._outbox = Outbox(uri, run_id)
        self._alive: Journal | None = None  # of the process that drives the run: its lock says that it lives
        self._missing: list[str] = []  # artifacts given up
        self._artifacts_resume = 0.0  # monotonic seconds; none is tried before

    def __reduce__(self):
        return Run, (self.uri, self.run_id)

    @classmethod
    def open(cls, uri: str, experiment_id: str, identity: str, name: str, tags: Mapping[str, Any] | None = None) -> "Run":
        """The experiment's run with this identity, made if need be, in status RUNNING. `tags` are set either way."""

        def find_or_create() -> "Run":
            run, client = cls._find(uri, experiment_id, identity), mlflow_client(uri)
            if run:
                client.update_run(run.run_id, status="RUNNING")
                return run
            return cls(uri, client.create_run(experiment_id, tags={IDENTITY: identity}, run_name=name).info.run_id)

        run, token = patiently(f"run {name!r} of MLflow at {redact(uri)}", find_or_create, OUTAGE_SECONDS), uuid.uuid4().hex
        run.tags({DRIVER: token, **(tags or {})})
        try:
            run._alive = Journal.create(uri, run.run_id, token)
        except OSError as error:
            log.warning("run %s: nothing will tell if its process is killed (%s)", run.run_id, error)
        return run

    @classmethod
    def find(cls, uri: str, experiment_id: str, identity: str) -> "Run | None":
        """The experiment's run with this identity as it stands, if there is one. Waits for MLflow."""
        what = f"run {identity!r} of MLflow at {redact(uri)}"
        return patiently(what, lambda: cls._find(uri, experiment_id, identity), OUTAGE_SECONDS)

    @classmethod
    def _find(cls, uri: str, experiment_id: str, identity: str) -> "Run | None":
        if not re.fullmatch(r"[\w.:/@-]+", identity):
            raise TrackingError(f"run identity {identity!r}: use letters, digits and . _ - : / @ only")
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

        def log_new() -> None:
            logged = mlflow_client(self.uri).get_run(self.run_id).data.params
            for key, text in texts.items():
                if logged.get(key, text) != text:
                    raise TrackingError(
                        f"parameter {key} of run {self.run_id}: already logged as {logged[key]}, now {text}; a changed "
                        "experiment needs a new run: start it without resuming"
                    )
            new = [Param(key, text) for key, text in texts.items() if key not in logged]
            mlflow_client(self.uri).log_batch(self.run_id, params=new)

        patiently(f"parameters of run {self.run_id}", log_new, OUTAGE_SECONDS)

    def metrics(self, values: Mapping[str, float], step: int, epoch: float | None = None) -> None:
        """Log numbers at a step, and `epoch` as a metric of its own. Never raises, and soon returns.

        A key and step that the run already has is skipped, so steps repeated after a resume leave one point. Characters
        that MLflow does not allow in a key, such as @, become _.
        """
        if epoch is not None:
            values = {**values, "epoch": epoch}
        now = int(time.time() * 1000)
        self._outbox.put([Metric(metric_key(key), float(value), now, step) for key, value in values.items()])

    def last_step(self, key: str) -> int | None:
        """The last step at which this metric was logged, by this process or before it."""
        return self._outbox.last_step(metric_key(key))

    def tags(self, values: Mapping[str, Any]) -> None:
        """Set tags; a tag that exists gets the new value."""
        tags, client = _run_tags(values), mlflow_client(self.uri)
        patiently(f"tags of run {self.run_id}", lambda: client.log_batch(self.run_id, tags=tags), OUTAGE_SECONDS)

    def best(self, metric: str, value: float) -> None:
        """The best value of a metric so far, of val/AP as best_AP; one that is there is superseded. Waits for MLflow, as `tags`.

        All at step 0, as one figure of a run, which MLflow draws as a bar; of several it shows the latest.
        """
        key, client = metric_key(f"best_{metric.removeprefix('val/')}"), mlflow_client(self.uri)

        def log_new() -> None:
            if client.get_run(self.run_id).data.metrics.get(key) != value:
                client.log_metric(self.run_id, key, value, step=0)

        patiently(f"{key} of run {self.run_id}", log_new, OUTAGE_SECONDS)

    def note(self, values: Mapping[str, Any]) -> None:
        """Set tags as metrics are logged: now or later, without raising."""
        self._outbox.put(_run_tags(values))

    def description(self, markdown: str) -> None:
        """The text on top of the run's page."""
        self.note({"mlflow.note.content": markdown})

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

        def log_inputs() -> None:
            for attempt in range(1, DATASET_ATTEMPTS + 1):
                try:
                    return mlflow_client(self.uri).log_inputs(self.run_id, datasets=[used])
                except MlflowException:
                    # Two runs that name the same new data at once collide in MLflow's database; the later finds it there.
                    if attempt == DATASET_ATTEMPTS:
                        raise
                time.sleep(0.2 * attempt)

        if trouble := bounded(log_inputs, ARTIFACT_SECONDS):
            log.warning("dataset %r of run %s: %s; the run goes on, its tags name the data", name, self.run_id, one_line(trouble))
        self.note({f"data.{context}": name, f"data.{context}.fingerprint": fingerprint})

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

        A run that has ended so already keeps the time it ended at. Where MLflow stays away for OUTAGE_SECONDS (of a run
        that failed anyway LAST_SECONDS), both are left for `tood deliver`, and TrackingError is raised, except where the
        run failed: the reason for that must not be lost behind another.
        """
        ended, deadline = int(time.time() * 1000), time.monotonic() + (OUTAGE_SECONDS if status == "FINISHED" else LAST_SECONDS)
        try:
            if left := self._outbox.flush(deadline - time.monotonic()):
                raise TrackingError(left)
            what, seconds = f"end of run {self.run_id}", deadline - time.monotonic()
            patiently(what, lambda: end_run(self.uri, self.run_id, status, ended), seconds)
        except TrackingError as error:
            if self._alive:
                with suppress(OSError):
                    self._alive.append([{"status": status, "time": ended}])
                self._alive.release()
                self._alive = None
            if status == "FINISHED":
                raise
            log.warning("%s", error)
        if self._alive:
            self._alive.remove()
            self._alive = None

    def deliver(self, seconds: float = OUTAGE_SECONDS) -> bool:
        """Send what is kept back: the last act of a process that logs but does not `finish`. False: not in that time.

        Then a warning says what is left and where; `tood deliver` sends it, or the next process that goes on with the run.
        """
        if left := self._outbox.flush(seconds):
            log.warning("%s", left)
        return not left

    def _store(self, path: str, upload: Callable[[MlflowClient], None], seconds: float = ARTIFACT_SECONDS) -> None:
        """Wait for an upload to end, to fail or to use up its time; never raises. Clients have their own, longer limits."""
        if time.monotonic() >= self._artifacts_resume:
            trouble = bounded(lambda: upload(mlflow_client(self.uri)), seconds)
            if trouble is None:
                return
            self._artifacts_resume = time.monotonic() + ARTIFACT_PAUSE_SECONDS
            log.warning("artifact %s of run %s: %s; the run goes on without it", path, self.run_id, one_line(trouble))
        self._missing.append(path)
        self.note({INCOMPLETE: " ".join(self._missing)[:5000]})


def end_run(uri: str, run_id: str, status: str, ended: int) -> None:
    """Set how and when (milliseconds since 1970) a run ended, unless it says so already. Raises MLflow's errors."""
    client = mlflow_client(uri)
    if client.get_run(run_id).info.status != status:
        client.set_terminated(run_id, status, ended)


def _param_text(key: str, value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        value = int(value)  # 1.0 from a search space and 1 from a file are one value
    if not isinstance(value, int | float | str):
        raise TrackingError(f"parameter {key}: {value!r} is neither a number nor a word; flatten it first")
    return redact(str(value))


def _run_tags(values: Mapping[str, Any]) -> list[RunTag]:
    return [RunTag(key, redact(str(value))) for key, value in values.items()]


def metric_key(key: str) -> str:
    """The name that a metric has in MLflow."""
    return posixpath.normpath(re.sub(r"[^/\w.\- :]", "_", key)).lstrip("/.")
