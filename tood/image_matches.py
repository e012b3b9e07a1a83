"""What each image adds to COCO's figures, kept apart, so that figures of any weighting of the images are sums and not a new match.

The evaluator matches once (`tood.evaluation.evaluator`), class by class: its account of all of COCO would fill gigabytes. A
detection is then true, false or not counted, whatever other images there are; an image that counts w times gives each of its
detections and objects the weight w. With every weight 1 the figures are COCO's, and with whole weights they are those of the
data set in which each image occurs so often.

Shapes: W weightings, I images, K classes, T=10 IoU thresholds, D detections of one class and area, P of them true.
"""

import contextlib
import io
from typing import Any, NamedTuple

import numpy as np

from tood.evaluation import ALL, LARGE, MEDIUM, SMALL, Backend, Truth, evaluator
from tood.results import Detections

RECALLS = np.linspace(0.0, 1.0, 101)  # COCO's R
MAX_DETECTIONS = (1, 10, 100)
AREAS = {"": ALL, "_small": SMALL, "_medium": MEDIUM, "_large": LARGE}
NAMES = (
    *("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"),
    *("AR_1", "AR_10", "AR_100", "AR_small", "AR_medium", "AR_large"),
)
CELLS = 4_000_000  # most numbers in a temporary array


class ClassMatches(NamedTuple):
    """Of one class and area."""

    objects: np.ndarray  # f64 [I] objects that count
    image: np.ndarray  # i64 [D] place of the detection's image; detections by falling score, ties as COCO has them
    score: np.ndarray  # f64 [D]
    true: np.ndarray  # bool [T,D]
    counted: np.ndarray  # bool [T,D] true or false; the others are ignored
    found: np.ndarray  # f64 [M,T,I] objects found among the first 1, 10, 100 detections of an image


class ImageMatches(NamedTuple):
    names: tuple[str, ...]  # [K]
    images: int
    classes: tuple[tuple[ClassMatches | None, ...], ...]  # [K][4 areas]; None where a class has no object of this size


class WeightedFigures(NamedTuple):
    """NaN where nothing is defined, as with a class that no image of weight has."""

    summary: dict[str, np.ndarray]  # COCO's twelve figures, f64 [W]
    per_class: np.ndarray  # f64 [K,W] AP


def image_matches(truth: Truth, detections: Detections, *, backend: Backend = "auto") -> ImageMatches:
    """Match detections as COCO does and keep what every image has to say. Raises DataError like `coco_figures`."""
    run = evaluator(truth, detections, backend=backend, max_dets=MAX_DETECTIONS)
    areas = [tuple(float(end) for end in area) for area in run.params.areaRng]
    images, classes = len(truth.image_ids), []
    for category in range(1, len(truth.names) + 1):
        run.params.catIds = [category]
        with contextlib.redirect_stdout(io.StringIO()):
            run.evaluate()
        cells: list[list[dict[str, Any]]] = [[] for _ in areas]
        for cell in run.evalImgs:
            if cell is not None:
                cells[areas.index(tuple(float(end) for end in cell["aRng"]))].append(cell)
        classes.append(tuple(_class_matches(of_area, images) for of_area in cells))
    return ImageMatches(truth.names, images, tuple(classes))


def weighted_figures(matches: ImageMatches, weights: np.ndarray) -> WeightedFigures:
    """COCO's figures for each weighting of the images. weights: whole numbers >= 0, [W,I]."""
    weights = np.asarray(weights, dtype=np.float64)
    count, classes, every = len(weights), len(matches.classes), len(MAX_DETECTIONS) - 1
    precision = {name: np.full((classes, count), np.nan) for name in NAMES[:6]}
    recall = {name: np.full((classes, count), np.nan) for name in NAMES[6:]}
    for k, areas in enumerate(matches.classes):
        for end, area in AREAS.items():
            of_class = areas[area]
            if of_class is None:
                continue
            objects = weights @ of_class.objects
            some = objects > 0
            ap = average_precision(of_class, weights, objects)
            precision[f"AP{end}"][k, some] = ap.mean(axis=0)[some]
            found = np.einsum("mti,wi->mw", of_class.found, weights) / len(of_class.true)
            share = np.divide(found, objects, out=np.full_like(found, np.nan), where=some)
            if end:
                recall[f"AR{end}"][k] = share[every]
                continue
            for limit, of_limit in zip(MAX_DETECTIONS, share, strict=True):
                recall[f"AR_{limit}"][k] = of_limit
            for name, t in (("AP50", 0), ("AP75", 5)):
                precision[name][k, some] = ap[min(t, len(ap) - 1)][some]
    summary = {name: _mean_of_defined(values) for name, values in (precision | recall).items()}
    return WeightedFigures(summary, precision["AP"])


def side_by_side(a: ImageMatches, b: ImageMatches) -> ImageMatches:
    """Two detectors' matches on the same I images as 2 I images: with weight 1 for either of i and I + i, and 0 for the other,
    the figures are those of a detector that is the one on some images and the other on the rest."""
    pairs = zip(a.classes, b.classes, strict=True)
    classes = (tuple(_merged(*both, a.images) for both in zip(*of_class, strict=True)) for of_class in pairs)
    return ImageMatches(a.names, 2 * a.images, tuple(classes))


def average_precision(matches: ClassMatches, weights: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """AP f64 [T,W] of one class and area: the mean over COCO's 101 recalls of the best precision from there on.

    Recall grows at true detections alone, so each of these stands for the recalls between the one before it and itself.
    objects [W]: the sum of the weights of the objects. Where it is 0 the result means nothing.
    """
    step = max(1, CELLS // max(1, len(matches.image)))
    out = np.zeros((len(matches.true), len(weights)))
    for start in range(0, len(weights), step):
        rows = slice(start, start + step)
        weight = weights[rows][:, matches.image]  # [w,D]
        total = np.maximum(objects[rows], 1)[:, None]
        seen = None
        for t, (true, counted) in enumerate(zip(matches.true, matches.counted, strict=True)):
            (at,) = np.nonzero(true)
            if not len(at):
                continue
            if seen is None or (counted != matches.counted[t - 1]).any():
                seen = np.cumsum(weight if counted.all() else weight * counted, axis=1)
            hits = np.cumsum(weight[:, at], axis=1)  # [w,P]
            sure = hits / (seen[:, at] + np.spacing(1))  # COCO's guard against 0 / 0
            best = np.maximum.accumulate(sure[:, ::-1], axis=1)[:, ::-1]
            reached = np.searchsorted(RECALLS, hits / total, side="right")
            out[t, rows] = (best * np.diff(reached, axis=1, prepend=0)).sum(axis=1) / len(RECALLS)
    return out


def _class_matches(cells: list[dict[str, Any]], images: int) -> ClassMatches | None:
    """cells: the evaluator's account of every image with objects or detections of the class."""
    objects = np.zeros(images)
    cells = sorted(cells, key=lambda cell: cell["image_id"])
    for cell in cells:
        objects[cell["image_id"] - 1] = len(cell["gtIgnore"]) - np.count_nonzero(cell["gtIgnore"])
    if not objects.any():
        return None
    cells = [cell for cell in cells if len(cell["dtScores"])]
    counts = [len(cell["dtScores"]) for cell in cells]
    image = np.repeat(np.array([cell["image_id"] - 1 for cell in cells], dtype=np.int64), counts)
    place = np.concatenate([np.zeros(0, np.int64), *(np.arange(count) for count in counts)])
    scores = np.concatenate([np.zeros(0), *(np.asarray(cell["dtScores"], dtype=np.float64) for cell in cells)])
    thresholds = len(cells[0]["dtIgnore"]) if cells else 10
    none = np.zeros((thresholds, 0), dtype=bool)
    hit = np.concatenate([none, *(np.asarray(cell["dtMatches"]) > 0 for cell in cells)], axis=1)
    counted = ~np.concatenate([none, *(np.asarray(cell["dtIgnore"], dtype=bool) for cell in cells)], axis=1)
    true = hit & counted
    found = np.zeros((len(MAX_DETECTIONS), thresholds, images))
    for m, limit in enumerate(MAX_DETECTIONS):
        within = place < limit
        for t in range(thresholds):
            found[m, t] = np.bincount(image[within], weights=true[t, within], minlength=images)
    order = np.argsort(-scores, kind="stable")
    return ClassMatches(objects, image[order], scores[order], true[:, order], counted[:, order], found)


def _merged(a: ClassMatches | None, b: ClassMatches | None, images: int) -> ClassMatches | None:
    if a is None or b is None:  # the objects are the same, so the other is None too
        return None
    score = np.concatenate([a.score, b.score])
    order = np.argsort(-score, kind="stable")
    return ClassMatches(
        np.concatenate([a.objects, b.objects]),
        np.concatenate([a.image, b.image + images])[order],
        score[order],
        np.concatenate([a.true, b.true], axis=1)[:, order],
        np.concatenate([a.counted, b.counted], axis=1)[:, order],
        np.concatenate([a.found, b.found], axis=2),
    )


def _mean_of_defined(values: np.ndarray) -> np.ndarray:
    """Mean f64 [W] over the classes [K,W] that are defined."""
    defined = ~np.isnan(values)
    some = defined.any(axis=0)
    sums = np.where(defined, values, 0).sum(axis=0)
    return np.where(some, sums / np.maximum(defined.sum(axis=0), 1), np.nan)
