"""What each worker of a run does under Ray Train.

It trains by `tood.training.train`. Rank 0 puts checkpoints into object storage, in the background; one is committed
when the run's pointer there has moved, with the run's progress in the same step. A restarted worker group and a restarted
driver go on from that pointer. Ray Train hears of an epoch after that; its own checkpoint is a small file, so weights are
stored once. Checkpoints within an epoch take the same road but are the store's alone: to Ray Tune a result is an epoch's.
"""

import json
import logging
import os
import posixpath
import shutil
import tempfile
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from ray import train as ray_train
from ray.train import collective
from ray.train.torch import get_device
from ray.train.v2._internal.execution import context as ray_train_context

from pipeline.config import Experiment
from pipeline.data.cache import local_data
from pipeline.data.source import is_remote
from pipeline.errors import StorageError
from pipeline.notice import confirm, hold_still, listen, told_to_stop
from pipeline.registry.models import pull
from pipeline.scratch import scratch_folder
from pipeline.storage.checkpoints import fetch, prefix_of, remove_others, remove_superseded, upload_checkpoint
from pipeline.storage.opening import open_store
from pipeline.storage.pointers import latest_of
from pipeline.storage.store import Store
from pipeline.tracking.notes import describe_run
from pipeline.tracking.runs import DETECTIONS, Run
from pipeline.uploads import Uploads
from tood.config import DataConfig, build, identity
from tood.data.coco import CocoData
from tood.errors import StoppedError
from tood.finetune import LoadReport
from tood.progress import CheckpointReport, EpochReport, StepReport
from tood.ranks import place
from tood.results import packed_results
from tood.samples import sample_sheet
from tood.training import train

SHEET = "detections"  # pictures of this name are leafed through on the run's page
POINTER = "pointer.json"  # the only file of Ray Train's checkpoint


@dataclass(frozen=True)
class Address:
    """Where one training run keeps things; plain strings, sent to every worker."""

    run: str  # its name in object storage and in Ray, unique
    store: str  # URL
    tracking: str  # MLflow's address
    mlflow_run: str  # id
    ray_storage: str  # folder or URI for Ray Train's own state
    label: str = ""  # put before progress lines, to tell trials apart


@dataclass(frozen=True)
class Progress:
    """What a run has reached; kept in the store's pointer and in Ray's, so that it survives a restart."""

    epoch: int = 0  # epochs done
    prefix: str = ""  # newest checkpoint in the store
    best_epoch: int = 0
    best_prefix: str = ""
    best_value: float = float("-inf")
    step: int = 0  # after the newest epoch
    metrics: dict[str, float] = field(default_factory=dict)  # of that epoch
    last: bool = False  # it was the last

    def advance(self, report: EpochReport, prefix: str, value: float | None) -> "Progress":
        done = {"epoch": report.epoch + 1, "step": report.step, "metrics": report.metrics, "last": report.last}
        reached = replace(self, prefix=prefix, **done)
        if value is not None and value > self.best_value:
            return replace(reached, best_epoch=reached.epoch, best_prefix=prefix, best_value=value)
        return reached

    def result(self) -> dict[str, Any]:
        """What Ray hears of the newest epoch."""
        reached = self.metrics | {"epoch": self.epoch, "last": self.last}
        if not self.best_epoch:  # no epoch of its own was evaluated yet
            return reached
        return reached | {"best": self.best_value, "best_epoch": self.best_epoch, "best_prefix": self.best_prefix}


def work(job: dict[str, Any]) -> None:
    """One worker of a run: train, and after each epoch store, report and track (rank 0)."""
    experiment = build(Experiment, job["experiment"])
    address = Address(**job["address"])
    rank = ray_train.get_context().get_world_rank()
    report_quietly()
    if not torch.cuda.is_available():
        torch.set_num_threads(experiment.ray.cpus_per_worker)
    with scratch_folder() as scratch:
        worker = Worker(experiment, address, job["metric"], rank, scratch)
        try:
            worker.run(job["stop_after"], job["handed_over"])
        except StoppedError:
            hold_still()
            raise
        finally:
            worker.uploads.close()


def report_quietly() -> None:
    """Ray is not to print each report whole; it does by a logger named after its file, which LoggingConfig does not reach."""
    logging.getLogger(ray_train_context.__file__).setLevel(logging.WARNING)


class Worker:
    def __init__(self, experiment: Experiment, address: Address, metric: str, rank: int, scratch: Path):
        self.experiment, self.address, self.metric, self.rank, self.scratch = experiment, address, metric, rank, scratch
        self.store: Store = open_store(address.store)
        self.tracked = Run.attach(address.tracking, address.mlflow_run) if rank == 0 else None
        self.progress = Progress()
        self.within = ""  # the newest checkpoint within an epoch, while it is in the store
        self.uploads = Uploads()
        self.stored: Future | None = None  # once the last epoch's checkpoint is
        self.val_data: CocoData | None = None

    def run(self, stop_after: int | None, handed_over: str = "") -> None:
        recipe, resume = self.experiment.recipe, self.fetch_newest()
        if resume is None and recipe.init.startswith("models:/"):
            recipe = replace(recipe, init=str(pull(recipe.init, self.address.tracking, self.scratch / "init")))
        elif resume is None and recipe.init not in ("none", "imagenet"):
            recipe = replace(recipe, init=os.path.expanduser(recipe.init))
        recipe = replace(recipe, data=self.local_data())
        if self.rank == 0:
            listen(self.address.run)
        train(
            recipe,
            self.scratch,
            config=identity(self.experiment),
            device=get_device(),
            resume=resume,
            handed_over=handed_over,
            stop_after=stop_after,
            metric=self.metric,
            told_to_stop=told_to_stop,
            collective_seconds=self.experiment.ray.collective_seconds,
            on_start=self.started,
            on_step=self.stepped,
            on_checkpoint=self.checkpoint_written,
            on_epoch=self.epoch_done,
        )
        self.uploads.wait()
        if self.rank == 0:
            self.tracked.deliver()
            if self.progress.last:
                remove_others(self.store, self.address.run, {self.progress.prefix, self.progress.best_prefix})

    def fetch_newest(self) -> Path | None:
        """The checkpoint to go on from, if there is one, and progress with it, of which Ray is told.

        Ray Train may have heard of it and Ray Tune not, whose state of a sweep is saved at other times.
        """
        checkpoint = ray_train.get_checkpoint()
        told = read_pointer(checkpoint) if checkpoint else Progress()
        newest = collective.broadcast_from_rank_zero(latest_of(self.store, self.address.run) if self.rank == 0 else None)
        self.progress, prefix = told, told.prefix
        if newest and newest.note and newest.step >= told.step:
            self.progress, prefix = Progress(**newest.note), newest.prefix
        if self.progress.epoch > told.epoch:
            self.report(self.progress)
        elif told.epoch:
            ray_train.report({} if self.rank else told.result())
        if not prefix:
            return None
        self.within = prefix if prefix != self.progress.prefix else ""
        if self.tracked and self.progress.epoch:  # a worker may have died before it tracked; what is there is not doubled
            self.tracked.metrics(self.progress.metrics, self.progress.step, epoch=self.progress.epoch)
        return fetch(self.store, prefix, self.scratch / "resume")

    def local_data(self) -> DataConfig:
        """The data on this node, fetched once for all its workers if data.root is an address."""
        data, label = self.experiment.data, self.address.label
        local = local_data(data, self.experiment.cache, say=lambda line: print(f"{label}{line}", flush=True))
        if is_remote(data.root):
            collective.barrier()  # Ray's, without a time limit: a slow node's fetch may outlast that of the process group
        return local

    def started(self, train_data: CocoData, val_data: CocoData, loaded: LoadReport | None) -> None:
        self.val_data = val_data
        if self.tracked:
            if self.experiment.ray.workers_min:
                print(f"{self.address.label}training on {place()[1]} of {self.experiment.ray.workers} workers", flush=True)
            if loaded:
                print(f"{self.address.label}init: {loaded.line()}", flush=True)
            for context, data in (("training", train_data), ("validation", val_data)):
                self.tracked.dataset(data.annotations.stem, data.fingerprint, context, len(data.images))
            counts = {"train": len(train_data.images), "val": len(val_data.images)}
            self.tracked.description(describe_run(self.experiment, self.address.label.strip("[] "), val_data.names, counts))
            if not self.progress.epoch:
                self.tracked.picture(sample_sheet(val_data), SHEET, step=0)  # the truth alone: MLflow's slider begins at 0

    def stepped(self, report: StepReport) -> None:
        print(f"{self.address.label}{report.line(self.experiment.train.epochs)}", flush=True)
        size = {"perf/workers": place()[1]} if self.experiment.ray.workers_min else {}
        self.tracked.metrics(report.metrics | size, report.step, epoch=report.step / report.steps_per_epoch)

    def checkpoint_written(self, report: CheckpointReport) -> None:
        """Within an epoch: stored in the background, except where the process has to go."""
        if self.rank == 0:
            progress, folder = self.progress, report.checkpoint

            def store() -> None:
                superseded = self.within
                try:
                    self.within = upload_checkpoint(self.store, folder, self.address.run, asdict(progress))
                    if superseded not in ("", self.within):
                        remove_superseded(self.store, superseded)
                except StorageError as error:  # it is a precaution, where the run does not end behind it
                    if report.stops:
                        raise
                    print(f"{self.address.label}checkpoint of step {report.step} is not stored: {error}", flush=True)
                shutil.rmtree(folder)

            self.uploads.offer(store, dropped=lambda: shutil.rmtree(folder))
            if report.stops:
                self.uploads.wait()
                confirm(self.address.run)

    def epoch_done(self, report: EpochReport) -> None:
        if self.rank:
            self.report(self.progress)
            return
        if self.stored:
            self.stored.result()  # at most one epoch's checkpoint is on its way
        before, value = self.progress, report.metrics.get(self.metric)
        prefix = prefix_of(report.checkpoint, self.address.run)
        self.progress = progress = before.advance(report, prefix, value)

        def store() -> None:
            upload_checkpoint(self.store, report.checkpoint, self.address.run, asdict(progress))
            for superseded in {before.prefix, before.best_prefix, self.within} - {prefix, progress.best_prefix, ""}:
                remove_superseded(self.store, superseded)
            self.within = ""
            shutil.rmtree(report.checkpoint)

        self.stored = self.uploads.put(store)
        self.report(progress, self.stored)
        # An epoch that is not committed is done again, with the same figures; what is tracked already is not doubled.
        self.tracked.metrics(report.metrics, report.step, epoch=report.epoch + 1)
        shown = " ".join(f"{k} {v:.4f}" for k, v in report.metrics.items() if k in ("val/AP", "val/AP50", "val/AP75"))
        seconds = report.metrics["perf/epoch_seconds"]
        print(f"{self.address.label}epoch {report.epoch + 1} done in {seconds:.1f} s {shown}", flush=True)
        if report.ends_early:
            print(f"{self.address.label}{report.ends_early}", flush=True)
        if report.figures and (report.last or self.progress.best_epoch == report.epoch + 1):
            self.track_pictures(report)
        if report.figures and self.progress.best_epoch == report.epoch + 1:
            self.tracked.file(packed_results(self.scratch / DETECTIONS, report.detections), posixpath.dirname(DETECTIONS))

    def report(self, progress: Progress, stored: Future | None = None) -> None:
        """Tell Ray of an epoch, on all ranks; it counts there once it is `stored`, and training does not wait for that."""
        if self.rank:
            ray_train.report({})
            return
        pointer = Path(tempfile.mkdtemp(prefix="tood-pointer-"))  # Ray removes it
        (pointer / POINTER).write_text(json.dumps(asdict(progress)))

        def persist(checkpoint: ray_train.Checkpoint, name: str) -> ray_train.Checkpoint:
            if stored:
                stored.result()
            return ray_train.get_context().get_storage().persist_current_checkpoint(checkpoint, name)

        ray_train.report(
            progress.result(),
            checkpoint=ray_train.Checkpoint.from_directory(pointer),
            checkpoint_dir_name=f"epoch_{progress.epoch:04d}",
            checkpoint_upload_mode=ray_train.CheckpointUploadMode.ASYNC,
            checkpoint_upload_fn=persist,
        )

    def track_pictures(self, report: EpochReport) -> None:
        """Precision-recall curves, sample detections and figures per class, of the best epoch and of the last.

        The detections of every epoch that was the best are kept beside them, to be leafed through in MLflow.
        """
        from pipeline.plots import runs as plots  # here, as a trial's driver and the other ranks never draw

        when = "last" if report.last else "best"
        self.tracked.figure(plots.precision_recall(report.figures.precision, self.val_data.names), f"{when}/precision_recall.png")
        sheet = sample_sheet(self.val_data, report.detections)
        self.tracked.image(sheet, f"{when}/detections.png")
        self.tracked.picture(sheet, SHEET, step=report.epoch + 1)
        self.tracked.document(report.figures.per_class, f"{when}/per_class.json")


def read_pointer(checkpoint: ray_train.Checkpoint) -> Progress:
    with checkpoint.as_directory() as folder:
        return Progress(**json.loads((Path(folder) / POINTER).read_text()))
