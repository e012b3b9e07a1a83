"""What a detector does well and where it fails: task alignment, objects that nothing learns, kinds of error, confusions.

Road of the data: one pass over the images gives a few numbers an object and the detections; everything else is counted from
these. Neither predictions nor IoUs of more than a batch are ever held.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from tood.data.coco import CocoData
from tood.data.loaders import eval_loader
from tood.detector import Detector
from tood.error_kinds import NOT_COUNTED, ErrorKinds, error_kinds, kinds_of
from tood.evaluation import read_truth
from tood.matching import FOUND_IOU, TOUCHING_IOU, Found, Matches, confusion_matrix, found_of, match, objects_of
from tood.postprocess import detections
from tood.precision import mixed_precision
from tood.priors import inside_image
from tood.recipe import Recipe
from tood.results import Detections, merge, results_from_predictions
from tood.task_alignment import agreement, confidence, dense_predictions, points_of_objects

SIZES = {"all": (0.0, np.inf), "small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, np.inf)}  # px^2


class ObjectFigures(NamedTuple):
    """Of every object that is no crowd. [A]"""

    areas: np.ndarray  # f64, as annotated
    pcc: np.ndarray  # f64, between the rankings of its predictions; NaN where they are too few
    iou: np.ndarray  # f64, mean of its most confident predictions; NaN where it has none
    points: np.ndarray  # i64, that learn it


class Boxes(NamedTuple):
    """TOOD's Table 6, after NMS; IoU is with objects of the box's class."""

    correct: int  # IoU >= 0.5
    redundant: int  # IoU >= 0.5 with an object that a surer box has found
    error: int  # 0.1 < IoU < 0.5


class Analysis(NamedTuple):
    names: tuple[str, ...]  # [K]
    images: int
    objects: ObjectFigures
    boxes: Boxes
    errors: ErrorKinds
    threshold: float  # lowest score in `confusion`
    confusion: np.ndarray  # i64 [K+1,K+1]: rows are what is there, columns what is said to be there, the last is nothing


def analyse(
    detector: Detector,
    data: CocoData,
    recipe: Recipe,
    *,
    threshold: float = 0.3,
    on_batch: Callable[[int, int], None] = lambda done, total: None,
) -> Analysis:
    """Analyse a detector on a data set with its classes; on_batch(images done, images in all) tells how far it is."""
    objects, found = run(detector, data, recipe, on_batch)
    truth = read_truth(data.annotations, data.dropped_ids)
    known, crowds = objects_of(truth)
    counted = found_of(truth, found, crowds)
    matches = match(counted, known)
    return Analysis(
        names=data.names,
        images=len(data.images),
        objects=objects,
        boxes=count_boxes(counted, matches),
        errors=error_kinds(counted, matches, known, len(data.names)),
        threshold=threshold,
        confusion=confusion_matrix(counted, known, len(data.names), threshold),
    )


@torch.no_grad()
def run(
    detector: Detector, data: CocoData, recipe: Recipe, on_batch: Callable[[int, int], None]
) -> tuple[ObjectFigures, Detections]:
    """The detector on every image: figures of the objects, and the detections as `tood evaluate` has them without predict.tta."""
    device = next(detector.parameters()).device
    areas_of = {record.image_id: record.areas[~record.crowd] for record in data.images}
    was_training = detector.training
    detector.eval()
    parts, found, done = [], [], 0
    batch_size = max(1, recipe.train.batch_size // recipe.train.accumulate)
    for batch in eval_loader(data, recipe.data, batch_size=batch_size):
        image_ids, batch = batch.image_ids.tolist(), batch.to(device, non_blocking=True)
        with mixed_precision(recipe.train.precision, device.type):
            predictions = dense_predictions(detector, batch.images, batch.sizes)
        answers = detections(predictions, batch.sizes, batch.scales, detector.predict_config, detector.objective.FUSION)
        found.append(results_from_predictions(batch.image_ids, answers, data.category_ids))

        inside, targets = inside_image(predictions.priors, batch.sizes), batch.targets
        points = points_of_objects(detector, predictions, targets, inside)
        log_confidence = confidence(detector, predictions)
        for i, image_id in enumerate(image_ids):
            here = targets.valid[i]
            pcc, iou = agreement(
                log_confidence[i],
                predictions.boxes[i],
                predictions.priors.centres,
                inside[i],
                targets.boxes[i, here],
                targets.labels[i, here],
            )
            figures = (areas_of[image_id], *(x.cpu().numpy() for x in (pcc, iou, points[i, here])))
            parts.append(ObjectFigures(*figures))
        done += len(image_ids)
        on_batch(done, len(data.images))
    detector.train(was_training)
    return ObjectFigures(*(np.concatenate(column) for column in zip(*parts, strict=True))), merge(found)


def count_boxes(found: Found, matches: Matches) -> Boxes:
    counted = kinds_of(found, matches) != NOT_COUNTED
    wrong, own = counted & (matches.object < 0), matches.own_iou
    return Boxes(
        correct=int((matches.object >= 0).sum()),
        redundant=int((wrong & (own >= FOUND_IOU)).sum()),
        error=int((wrong & (own > TOUCHING_IOU) & (own < FOUND_IOU)).sum()),
    )


def by_size(objects: ObjectFigures) -> dict[str, dict[str, float | int | None]]:
    """Means over the objects of each size; None where there is no object to average over."""
    figures = {}
    for size, (low, high) in SIZES.items():
        of_size = (objects.areas >= low) & (objects.areas < high)
        points = objects.points[of_size]
        figures[size] = {
            "objects": int(of_size.sum()),
            "pcc_top50": _mean(objects.pcc[of_size]),
            "iou_top10": _mean(objects.iou[of_size]),
            "without_positive": int((points == 0).sum()),
            "share_without_positive": _mean(points == 0),
            "positives": _mean(points),
        }
    return figures


def figures_of(analysis: Analysis) -> dict[str, Any]:
    """Everything as plain JSON values."""
    return {
        "images": analysis.images,
        "objects": by_size(analysis.objects),
        "boxes": analysis.boxes._asdict(),
        "AP50": analysis.errors.ap50,
        "errors": {kind: {"count": cost.count, "AP50_gain": cost.gain} for kind, cost in analysis.errors.costs.items()},
        "confusion": {
            "threshold": analysis.threshold,
            "names": [*analysis.names, "nothing"],
            "matrix": analysis.confusion.tolist(),
        },
    }


def _mean(values: np.ndarray) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None
