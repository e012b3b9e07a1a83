"""COCO evaluation: the twelve figures with maxDets 1 / 10 / 100, and AP of every class.

Road of the data: predictions -> Detections (`tood.results`) -> merge of the workers' shards -> coco_figures -> Figures.
hotcoco (compiled) fills the same precision and recall arrays as pycocotools, bit for bit; one function here turns
either into figures. As in COCO, a figure without any object of its class or size is -1 and left out of means.

Shapes: D detections, I images, K categories sorted by id, T=10 IoU thresholds, R=101 recalls, A=4 areas, M=3 maxDets.
"""

import contextlib
import importlib
import io
import reprlib
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from tood.errors import ConfigError, DataError
from tood.results import (
    Detections,
    is_box,
    is_id,
    is_number,
    merge,
    raise_all,
    read_json,
    read_results,
    results_from_predictions,
    write_results,
)

__all__ = [
    "Detections",
    "Figures",
    "coco_figures",
    "evaluate_files",
    "merge",
    "precision_recall",
    "read_results",
    "read_truth",
    "results_from_predictions",
    "write_results",
]

Backend = Literal["auto", "hotcoco", "pycocotools"]
ALL, SMALL, MEDIUM, LARGE = range(4)  # COCO's areas: any, < 32^2, 32^2..96^2, > 96^2 px


class Figures(NamedTuple):
    summary: dict[str, float]  # AP AP50 AP75 AP_small AP_medium AP_large AR_1 AR_10 AR_100 AR_small AR_medium AR_large
    per_class: dict[str, dict[str, float]]  # class name -> AP, AP50
    precision: np.ndarray  # f64 [T,R,K], all areas, the largest maxDets


class Truth(NamedTuple):
    """What evaluation needs of a COCO file. Annotations name images and categories by rank, from 1, in sorted ids."""

    path: Path
    image_ids: np.ndarray  # i64 [I], ascending
    category_ids: np.ndarray  # i64 [K], ascending
    names: tuple[str, ...]  # [K]
    annotations: list[dict[str, Any]]


# -- annotations -----------------------------------------------------------------------------------------------------


def read_truth(path: Path, without: Collection[int] = frozenset()) -> Truth:
    """Read and check a COCO annotations file. Raises DataError that lists every problem with image and annotation id.

    Missing `iscrowd` and `area` mean 0 and width * height. Annotations are numbered anew from 1: pycocotools takes an
    object with id 0 for never found. `without`: ids of annotations that do not count and are not checked, those that
    reading the split dropped (`CocoData.dropped_ids`): nobody is to find what training does not know.
    """
    data = read_json(path)
    parts = ("images", "categories", "annotations")
    if not isinstance(data, dict) or not all(isinstance(data.get(part), list) for part in parts):
        raise DataError(f"{path}: not a COCO annotations file: expected an object with the lists {', '.join(parts)}")
    raise_all(path, [problem for part in parts for problem in _id_problems(part, data[part])])
    names = {c["id"]: c.get("name") for c in sorted(data["categories"], key=lambda c: c["id"])}
    problems = [f"category {c}: its name is not text" for c, name in names.items() if not isinstance(name, str)]
    if not problems and len(set(names.values())) < len(names):
        problems = [f"category names are not unique: {', '.join(names.values())}"]
    image_rank = {image_id: rank for rank, image_id in enumerate(sorted(image["id"] for image in data["images"]), 1)}
    category_rank = {category_id: rank for rank, category_id in enumerate(names, 1)}
    objects = [a for a in data["annotations"] if a["id"] not in without]
    for a in objects:
        problems += _annotation_problems(a, image_rank, category_rank)
    raise_all(path, problems)
    annotations = [
        {
            "id": number,
            "image_id": image_rank[a["image_id"]],
            "category_id": category_rank[a["category_id"]],
            "bbox": a["bbox"],
            "area": a.get("area", a["bbox"][2] * a["bbox"][3]),
            "iscrowd": int(a.get("iscrowd", 0)),
        }
        for number, a in enumerate(objects, 1)
    ]
    ids = (np.array(list(ranks), dtype=np.int64) for ranks in (image_rank, category_rank))
    return Truth(Path(path), *ids, tuple(names.values()), annotations)


def _id_problems(part: str, entries: list) -> list[str]:
    problems, seen = [], set()
    for i, entry in enumerate(entries):
        identifier = entry.get("id") if isinstance(entry, dict) else None
        if not is_id(identifier):
            problems.append(f"{part}[{i}]: expected an object with an integer id, found {reprlib.repr(entry)}")
        elif identifier in seen:
            problems.append(f"{part}[{i}]: id {identifier} occurs twice")
        else:
            seen.add(identifier)
    return problems


def _annotation_problems(a: dict, images: dict[int, int], categories: dict[int, int]) -> list[str]:
    problems = []
    for key, known in (("image_id", images), ("category_id", categories)):
        if not is_id(a.get(key)) or a[key] not in known:
            problems.append(f"{key} {reprlib.repr(a.get(key))} is not in the file")
    if not is_box(a.get("bbox")):
        problems.append(f"bbox {reprlib.repr(a.get('bbox'))} is not four finite numbers (x, y, width, height)")
    if not is_number(area := a.get("area", 0)) or area < 0:
        problems.append(f"area {reprlib.repr(area)} is not a finite number from 0")
    if a.get("iscrowd", 0) not in (0, 1):
        problems.append(f"iscrowd {reprlib.repr(a['iscrowd'])} is not 0 or 1")
    return [f"image {reprlib.repr(a.get('image_id'))}, annotation {a['id']}: {problem}" for problem in problems]


# -- figures ---------------------------------------------------------------------------------------------------------


def evaluate_files(annotations: Path, predictions: Path, backend: Backend = "auto") -> Figures:
    """Figures of a COCO results file against a COCO annotations file."""
    return coco_figures(annotations, read_results(predictions), backend=backend)


def coco_figures(
    annotations: Path | Truth,
    detections: Detections,
    *,
    backend: Backend = "auto",
    max_dets: tuple[int, int, int] = (1, 10, 100),
) -> Figures:
    """COCO's twelve figures, in [0, 1] or -1 where undefined, and AP, AP50 of every class; annotations in a file, or read before.

    `max_dets` names the AR_* figures and its last limits all others, except that mmdetection's (100, 300, 1000) takes
    AP alone at 100. Raises DataError for a file that is not COCO's and for detections of unknown images or classes.
    """
    truth = annotations if isinstance(annotations, Truth) else read_truth(annotations)
    precision, recall = precision_recall(truth, detections, backend=backend, max_dets=max_dets)
    at_100 = max_dets.index(100) if 100 in max_dets else -1
    last, overall = precision[..., -1], precision[:, :, :, ALL, -1]
    summary = {
        "AP": _mean(precision[:, :, :, ALL, at_100]),
        "AP50": _mean(overall[0]),
        "AP75": _mean(overall[5]),
        "AP_small": _mean(last[..., SMALL]),
        "AP_medium": _mean(last[..., MEDIUM]),
        "AP_large": _mean(last[..., LARGE]),
        **{f"AR_{count}": _mean(recall[:, :, ALL, i]) for i, count in enumerate(max_dets)},
        "AR_small": _mean(recall[:, :, SMALL, -1]),
        "AR_medium": _mean(recall[:, :, MEDIUM, -1]),
        "AR_large": _mean(recall[:, :, LARGE, -1]),
    }
    per_class = {
        name: {"AP": _mean(precision[:, :, k, ALL, at_100]), "AP50": _mean(overall[0, :, k])} for k, name in enumerate(truth.names)
    }
    return Figures(summary, per_class, np.ascontiguousarray(overall))


def precision_recall(
    truth: Truth, detections: Detections, *, backend: Backend = "auto", max_dets: tuple[int, int, int] = (1, 10, 100)
) -> tuple[np.ndarray, np.ndarray]:
    """COCO's accumulated precision f64 [T,R,K,A,M] and recall f64 [T,K,A,M]; -1 where a class or size has no object."""
    run = evaluator(truth, detections, backend=backend, max_dets=max_dets)
    with contextlib.redirect_stdout(io.StringIO()):
        run.evaluate()
        run.accumulate()
    return np.asarray(run.eval["precision"]), np.asarray(run.eval["recall"])


def evaluator(
    truth: Truth, detections: Detections, *, backend: Backend = "auto", max_dets: tuple[int, int, int] = (1, 10, 100)
) -> Any:
    """pycocotools' COCOeval or its like, ready to match; images and categories by rank, as in `Truth`."""
    image_ranks = _ranks("image", detections.image_ids, truth.image_ids, truth.path)
    category_ranks = _ranks("category", detections.category_ids, truth.category_ids, truth.path)
    if not (np.isfinite(detections.boxes).all() and np.isfinite(detections.scores).all()):
        raise DataError("detections hold boxes or scores that are not finite; did the training diverge?")
    rows = np.column_stack([image_ranks, detections.boxes, detections.scores, category_ranks]).astype(np.float64)
    dataset = {
        "info": {},
        "images": [{"id": rank} for rank in range(1, len(truth.image_ids) + 1)],
        "categories": [{"id": rank, "name": name} for rank, name in enumerate(truth.names, 1)],
        "annotations": [dict(a) for a in truth.annotations],  # pycocotools writes into them
    }
    evaluate = {"hotcoco": _hotcoco, "pycocotools": _pycocotools}[_available(backend)]
    with contextlib.redirect_stdout(io.StringIO()):
        run = evaluate(dataset, rows)
    run.params.maxDets = list(max_dets)
    return run


def _available(backend: Backend) -> str:
    if backend not in ("auto", "hotcoco", "pycocotools"):
        raise ConfigError(f"evaluation backend {backend!r} is not one of auto, hotcoco, pycocotools")
    for name in ("hotcoco", "pycocotools") if backend == "auto" else (backend,):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
            return name
    raise ConfigError(f"evaluation needs {'hotcoco or pycocotools' if backend == 'auto' else backend}: pip install it")


def _hotcoco(dataset: dict, rows: np.ndarray) -> Any:
    from hotcoco import COCO, COCOeval

    truth = COCO(dataset)
    return COCOeval(truth, truth.load_res(rows), "bbox")


def _pycocotools(dataset: dict, rows: np.ndarray) -> Any:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth, found = COCO(), COCO()
    truth.dataset = dataset
    truth.createIndex()
    if len(rows):
        found = truth.loadRes(rows)
    else:  # loadRes looks at the first detection
        found.dataset = dataset | {"annotations": []}
        found.createIndex()
    return COCOeval(truth, found, "bbox")


def _ranks(what: str, ids: np.ndarray, known: np.ndarray, path: Path) -> np.ndarray:
    unknown = np.setdiff1d(ids, known)
    if len(unknown):
        shown = ", ".join(map(str, unknown[:5])) + (", ..." if len(unknown) > 5 else "")
        raise DataError(
            f"detections name {what} ids that {path} does not have: {shown}; give the annotations that they belong to",
            [f"{what} id {i} is unknown" for i in unknown],
        )
    return np.searchsorted(known, ids) + 1


def _mean(values: np.ndarray) -> float:
    """Mean over what is defined, in pycocotools' order of addition."""
    defined = values[values > -1]
    return float(np.mean(defined)) if defined.size else -1.0
