"""What an entry measures, in this process and without Ray, MLflow or a store: speed, parity, and accuracy for a bisection.

A part that raises has no figure, and a word why: that is a failure of the code under test, not of the night.
"""

import json
import math
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from pipeline.config import Experiment
from pipeline.data.cache import local_data
from pipeline.nightly.judge import Figure
from pipeline.nightly.suite import (
    DIFFERENCE,
    AccuracyEntry,
    Entry,
    ParityEntry,
    SpeedEntry,
    Suite,
    experiment_for,
    metric_names,
)
from pipeline.site import absolute
from tood.bench.parts import operations
from tood.bench.timing import interleaved, reference_operation
from tood.config import identity
from tood.errors import ConfigError, DataError, ToodError
from tood.evaluation import coco_figures, precision_recall, read_truth
from tood.results import Detections, read_results
from tood.training import train


class Measured(NamedTuple):
    """A metric of an entry; without a figure there is a reason."""

    metric: str  # ENTRY/METRIC
    figure: Figure | None
    missing: str = ""
    samples: tuple[float, ...] = ()  # accuracy: of each seed


def measure_here(
    suite: Suite, entry: Entry, settings: Sequence[str], metrics: Sequence[str] | None = None, say: Callable[[str], None] = print
) -> list[Measured]:
    """An entry's metrics, or some of them, measured in this process. Accuracy trains in one process, whatever ray.workers says."""
    if isinstance(entry, ParityEntry):
        return measure_parity(entry)
    wanted = metric_names(entry) if metrics is None else metrics
    experiment = absolute(experiment_for(suite, entry, settings))
    if isinstance(entry, SpeedEntry):
        return measure_speed(entry, experiment, wanted)
    by_seed, problems = {}, {}
    for seed in entry.seeds:
        seeded = with_seed(experiment, seed)
        say(f"{entry.name}: seed {seed}, {seeded.train.epochs} epochs")
        try:
            by_seed[seed] = train_here(seeded)
        except (ConfigError, DataError):
            raise
        except Exception as error:
            problems[seed] = in_a_line(error)
    return [m for m in accuracy_of(entry, by_seed, problems) if m.metric in wanted]


def accuracy_of(
    entry: AccuracyEntry, by_seed: Mapping[int, Mapping[str, float]], problems: Mapping[int, str] | None = None
) -> list[Measured]:
    """Means over seeds of the last epoch's figures. One seed without a figure leaves the metric without one."""
    found = []
    for metric, name in zip(metric_names(entry), entry.metrics, strict=True):
        values = [by_seed.get(seed, {}).get(name, math.nan) for seed in entry.seeds]
        if lost := [seed for seed, value in zip(entry.seeds, values, strict=True) if not math.isfinite(value)]:
            why = (problems or {}).get(lost[0], f"seed {lost[0]} has no {name}")
            found.append(Measured(metric, None, why, tuple(values)))
            continue
        noise = statistics.stdev(values) if len(values) > 1 else math.nan
        found.append(Measured(metric, Figure(statistics.fmean(values), noise, len(values)), "", tuple(values)))
    return found


def measure_speed(entry: SpeedEntry, experiment: Experiment, metrics: Sequence[str] | None = None) -> list[Measured]:
    """Each part of training as a ratio to the reference operation, with a training worker's share of the batch and of threads."""
    wanted = [m for m in entry.measures if metrics is None or f"{entry.name}/{m}" in metrics]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    share = replace(experiment.train, batch_size=experiment.train.batch_size // experiment.ray.workers)
    recipe = replace(experiment.recipe, train=share, data=local_data(experiment.recipe.data, experiment.cache))
    threads, found = torch.get_num_threads(), []
    if device.type == "cpu":
        torch.set_num_threads(experiment.ray.cpus_per_worker)
    try:
        reference = reference_operation(device)
        with operations(recipe, device, tuple(wanted)) as timed:
            for name, operation in timed.items():
                metric = f"{entry.name}/{name}"
                try:
                    timing = interleaved(operation, reference, seconds=entry.seconds, device=device)
                    found.append(Measured(metric, Figure(timing.ratio, timing.error, timing.pairs)))
                except Exception as error:
                    found.append(Measured(metric, None, in_a_line(error)))
    except (ConfigError, DataError):
        raise
    except Exception as error:  # already what is timed cannot be built
        found = [Measured(f"{entry.name}/{name}", None, in_a_line(error)) for name in wanted]
    finally:
        torch.set_num_threads(threads)
    return found


def measure_parity(entry: ParityEntry) -> list[Measured]:
    """The largest difference between the two evaluators, over all twelve figures, all classes, precision and recall."""
    metric = f"{entry.name}/{DIFFERENCE}"
    try:
        import hotcoco  # noqa: F401
        import pycocotools  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"entry {entry.name}: parity compares hotcoco with pycocotools; pip install {error.name}") from None
    with tempfile.TemporaryDirectory() as folder:
        if entry.annotations:
            annotations, detections = Path(entry.annotations), read_results(Path(entry.detections))
        else:
            annotations, detections = generated(Path(folder), entry.images, entry.seed)
        try:
            difference = largest_difference(annotations, detections)
        except (ConfigError, DataError):
            raise
        except Exception as error:
            return [Measured(metric, None, in_a_line(error))]
    return [Measured(metric, Figure(difference))]


def largest_difference(annotations: Path, detections: Detections) -> float:
    """Between hotcoco and pycocotools; infinite where one of them has a number and the other none."""
    ours, theirs = (_numbers(annotations, detections, backend) for backend in ("hotcoco", "pycocotools"))
    if ours.shape != theirs.shape:
        return math.inf
    apart = np.abs(ours - theirs)
    return float(apart.max()) if np.isfinite(apart).all() else math.inf


def generated(folder: Path, images: int, seed: int) -> tuple[Path, Detections]:
    """Objects of all sizes, crowds among them, and detections near them and elsewhere; the same for the same seed."""
    draw = np.random.default_rng(seed)
    width, height, classes = 640, 480, 5
    objects, found = [], []
    for image in range(1, images + 1):
        for _ in range(int(draw.integers(0, 8))):
            size = np.exp(draw.uniform(np.log(6), np.log(320), 2)).clip(max=(width - 1, height - 1))
            corner = draw.uniform(0, 1, 2) * (np.array([width, height]) - size)
            box, category = [*corner, *size], int(draw.integers(1, classes + 1))
            crowd = int(draw.random() < 0.05)
            more = {"area": float(size.prod() * draw.uniform(0.5, 1)), "iscrowd": crowd, "bbox": [float(side) for side in box]}
            objects.append({"id": len(objects) + 1, "image_id": image, "category_id": category, **more})
            for _ in range(int(draw.integers(0, 5))):
                near = np.array(box) + draw.normal(0, 0.12, 4) * np.tile(size, 2)
                near[2:] = near[2:].clip(min=1)
                guess = category if draw.random() < 0.85 else int(draw.integers(1, classes + 1))
                found.append((image, near, round(float(draw.random()), 2), guess))  # rounded: equal scores are the hard case
        for _ in range(int(draw.integers(0, 6))):
            found.append((image, draw.uniform(1, 200, 4), float(draw.random()) * 0.5, int(draw.integers(1, classes + 1))))
    document = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": width, "height": height} for i in range(1, images + 1)],
        "annotations": objects,
        "categories": [{"id": i, "name": f"class {i}"} for i in range(1, classes + 1)],
    }
    path = folder / "annotations.json"
    path.write_text(json.dumps(document))
    ids, boxes, scores, categories = zip(*found, strict=True) if found else ((), np.zeros((0, 4)), (), ())
    return path, Detections(np.array(ids, np.int64), np.array(boxes, float), np.array(scores), np.array(categories, np.int64))


def with_seed(experiment: Experiment, seed: int) -> Experiment:
    return replace(experiment, train=replace(experiment.train, seed=seed), sweep=None)


def train_here(experiment: Experiment) -> dict[str, float]:
    """The last epoch's figures of a training in this process, whose checkpoints are thrown away."""
    figures: dict[str, float] = {}

    def done(report: Any) -> None:
        figures.clear()
        figures.update(report.metrics)

    recipe = replace(experiment.recipe, data=local_data(experiment.recipe.data, experiment.cache))
    if recipe.init.startswith("models:/"):
        raise ConfigError(f"init: {recipe.init} is looked up by `tood train` alone; give a model's folder")
    threads = torch.get_num_threads()
    if not torch.cuda.is_available():
        torch.set_num_threads(experiment.ray.cpus_per_worker)
    try:
        with tempfile.TemporaryDirectory(prefix="tood-night-") as folder:
            train(recipe, Path(folder), config=identity(experiment), on_epoch=done)
    finally:
        torch.set_num_threads(threads)
    return figures


def in_a_line(error: Exception) -> str:
    said = " ".join(str(error).split())[:300]
    return said if isinstance(error, ToodError) and said else f"{type(error).__name__}: {said}".rstrip(": ")


def _numbers(annotations: Path, detections: Detections, backend: Any) -> np.ndarray:
    figures = coco_figures(annotations, detections, backend=backend)
    own = [*figures.summary.values(), *(value for figure in figures.per_class.values() for value in figure.values())]
    arrays = precision_recall(read_truth(annotations), detections, backend=backend)
    return np.concatenate([np.array(own, float), *(np.asarray(array, float).ravel() for array in arrays)])
