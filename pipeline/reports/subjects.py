"""What `tood compare` sets side by side: names of models, files and runs, and the detections behind them.

A name is models:/NAME@alias, a model folder or .safetensors file, a file of detections, an MLflow run's id or identity (a trial's
is SWEEP/TRIAL), SWEEP/3 (third of the sweep's ranking, with all its seeds), a configuration's hash, or several of these with
commas between: the seeds of one configuration.
"""

import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.config import merge
from pipeline.data.cache import cache_of, local_data
from pipeline.detect import find_model, open_model, require_same_classes
from pipeline.repeats import configuration_of
from pipeline.storage.checkpoints import fetch_url
from pipeline.tracking.past_runs import PastRun, artifact, experiment_values, run_by_id, runs_tagged
from pipeline.tracking.runs import CHECKPOINT, CONFIGURATION, DETECTIONS, IDENTITY, RANK, SWEEP
from tood.config import DataConfig, build
from tood.data.coco import CocoData, read_split
from tood.errors import DataError
from tood.evaluation import Truth, read_truth
from tood.inference import detect_all
from tood.results import Detections, read_results

FORMS = (
    "models:/NAME@alias, a model folder, a file of detections, an MLflow run's id, SWEEP/RANK, a configuration's hash, "
    "or several with commas between"
)
FILES = (".json", ".gz")


class Member(NamedTuple):
    """One run of a subject."""

    name: str
    detections: Detections
    configuration: str | None  # hash of its configuration apart from the seed; None: not known


class Subject(NamedTuple):
    name: str
    members: tuple[Member, ...]

    @property
    def configuration(self) -> str | None:
        return self.members[0].configuration


class Place(NamedTuple):
    """Where names are looked up and what data detectors are run on."""

    tracking: str
    models: Path  # folder for pulled models
    values: Mapping[str, Any]  # an experiment's; its data and predict go before what a run or model says
    annotations: Path | None  # given by hand; without, those of the val split


def read_subjects(
    names: list[str], place: Place, say: Callable[[str], None], *, stored_only: bool = False
) -> tuple[Truth, list[Subject]]:
    """What is to be found and the subjects by name; stored_only: no detector is run, runs must have their detections in MLflow.

    Raises ToodError for names that lead nowhere and for data that differ.
    """
    reader = _Reader(place, say, stored_only)
    subjects = [Subject(name, tuple(reader.members(name))) for name in names]
    for subject in subjects:
        known = {member.configuration for member in subject.members if member.configuration}
        if len(known) > 1:
            raise DataError(f"{subject.name}: its runs are of {len(known)} configurations; a group is one configuration's seeds")
    if reader.annotations is None:
        raise DataError("files of detections do not say what they are about; give --annotations FILE, or an experiment's data")
    split = None if place.annotations else reader.split  # a file given by hand counts as it is
    return read_truth(reader.annotations, split.dropped_ids if split else ()), subjects


class _Reader:
    def __init__(self, place: Place, say: Callable[[str], None], stored_only: bool):
        self.place, self.say, self.stored_only = place, say, stored_only
        self.annotations = place.annotations
        self.split: CocoData | None = None
        if place.values.get("data") and not place.annotations:
            self._read_split(build(DataConfig, dict(place.values["data"]), "data"))

    def members(self, name: str) -> list[Member]:
        path = Path(name).expanduser()
        if name.startswith("models:/") or path.is_dir() or (path.is_file() and path.suffix not in FILES):
            model = find_model(name, self.place.tracking, self.place.models)
            return [self._of_model(name, model, {})]
        if path.is_file():
            return [Member(name, read_results(path), None)]
        if "," in name:
            return [member for part in name.split(",") if part for member in self.members(part)]
        if re.fullmatch(r"[0-9a-f]{32}", name):
            return [self._of_run(run_by_id(self.place.tracking, name))]
        found = self._runs(name)
        if not found:
            raise DataError(f"{name}: no such file, and no run of MLflow goes by this name; give {FORMS}")
        return [self._of_run(run) for run in found]

    def _runs(self, name: str) -> list[PastRun]:
        tracking = self.place.tracking
        if re.fullmatch(r"[0-9a-f]{12}", name):
            found = runs_tagged(tracking, CONFIGURATION, name) or runs_tagged(tracking, "config_hash", name)
            return _one_a_seed(run for run in found if run.status == "FINISHED" and run.tags.get("tood.kind") != "sweep")
        sweep, _, rank = name.rpartition("/")
        if sweep and rank.isdecimal():
            return [run for run in runs_tagged(tracking, SWEEP, sweep) if run.tags.get(RANK) == rank]
        return runs_tagged(tracking, IDENTITY, name)[:1]

    def _of_run(self, run: PastRun) -> Member:
        with tempfile.TemporaryDirectory() as folder:
            values = experiment_values(self.place.tracking, run.run_id, Path(folder)) or {}
            if self.annotations is None and values.get("data"):
                self._read_split(build(DataConfig, dict(values["data"]), "data"))
            measured_on = run.tags.get("data.validation.fingerprint")
            if self.split and measured_on and measured_on != self.split.fingerprint:
                raise DataError(
                    f"run {run.name}: was measured on other data than {self.split.annotations} holds now; give its model, "
                    "which is then run on these"
                )
            file = artifact(self.place.tracking, run.run_id, DETECTIONS, Path(folder))
            if file is not None and not self.place.values.get("predict"):
                return Member(run.name, read_results(file), run.tags.get(CONFIGURATION))
            if CHECKPOINT not in run.tags or self.stored_only:
                raise DataError(
                    f"run {run.name}: MLflow has neither detections of its best epoch ({DETECTIONS}) nor where its checkpoint "
                    "lies; give its model or checkpoint folder"
                )
            model = fetch_url(f"{run.tags[CHECKPOINT]}/model", Path(folder) / "model")
            return self._of_model(run.name, model, values)

    def _of_model(self, name: str, path: Path, known: Mapping[str, Any]) -> Member:
        """known: an experiment's values, for the data's place, which models do not keep."""
        data = merge({k: v for k, v in known.items() if k == "data"}, dict(self.place.values))
        model, recipe, detector = open_model(path, data)
        if self.split is None:
            self._read_split(recipe.data)
        require_same_classes(model, self.split)
        self.say(f"{name}: running it on {len(self.split.images)} images")
        found = detect_all(detector, self.split, recipe, next(detector.parameters()).device)
        return Member(name, found, configuration_of(model.info.config))

    def _read_split(self, data: DataConfig) -> None:
        self.split = read_split(local_data(data, cache_of(self.place.values), ["val"]), "val")
        self.annotations = self.annotations or self.split.annotations


def _one_a_seed(runs: Any) -> list[PastRun]:
    """The newest run of each seed: the same configuration and seed again says nothing new."""
    return list({run.params.get("seed", run.run_id): run for run in runs}.values())
