"""What is wrong with wrong detections, and what each kind of error costs: TIDE (Bolya et al., ECCV 2020) at IoU .50.

A detection that finds no object is wrong in one way; an object that no correction of a detection can bring back is missed.
The cost of a kind is the AP50 that is gained when it alone is mended. D detections, A objects, K classes.
"""

from typing import NamedTuple

import numpy as np

from tood.matching import FOUND_IOU, TOUCHING_IOU, Found, Matches, Objects

KINDS = ("classification", "localisation", "both", "duplicate", "background", "missed")
CLASSIFICATION, LOCALISATION, BOTH, DUPLICATE, BACKGROUND, MISSED = range(len(KINDS))
RIGHT, NOT_COUNTED = -1, -2  # instead of a kind
RECALLS = np.linspace(0, 1, 101)  # COCO's R


class Cost(NamedTuple):
    count: int
    gain: float  # of AP50


class ErrorKinds(NamedTuple):
    ap50: float  # COCO's AP50; -1 without any object
    costs: dict[str, Cost]  # by KINDS


def error_kinds(found: Found, matches: Matches, objects: Objects, classes: int) -> ErrorKinds:
    """Count the errors of each kind, and what mending it gains."""
    kinds = kinds_of(found, matches)
    missed = missed_objects(kinds, matches, len(objects.label))
    objects_of_class = np.bincount(objects.label, minlength=classes)
    right = matches.object >= 0

    def ap50(label: np.ndarray, score: np.ndarray, right: np.ndarray, left: np.ndarray = objects_of_class) -> float:
        known = average_precision(label, score, right, left)[objects_of_class > 0]
        return float(known.mean()) if len(known) else -1.0

    counted = kinds != NOT_COUNTED
    base = ap50(found.label[counted], found.score[counted], right[counted])
    costs = {}
    for kind, name in enumerate(KINDS):
        if kind == MISSED:
            left = objects_of_class - np.bincount(objects.label[missed], minlength=classes)
            mended, count = ap50(found.label[counted], found.score[counted], right[counted], left), int(missed.sum())
        else:
            label, now_right = found.label, right
            if kind in (CLASSIFICATION, LOCALISATION):
                meant = matches.other if kind == CLASSIFICATION else matches.own
                best = _best_for_lost_objects(np.flatnonzero(kinds == kind), meant, found.score, matches.object)
                label, now_right = label.copy(), right.copy()
                label[best], now_right[best] = objects.label[meant[best]], True
            kept = counted & ((kinds != kind) | now_right)
            mended, count = ap50(label[kept], found.score[kept], now_right[kept]), int((kinds == kind).sum())
        costs[name] = Cost(count, mended - base)
    return ErrorKinds(base, costs)


def kinds_of(found: Found, matches: Matches) -> np.ndarray:
    """The kind of each detection, i64 [D]: RIGHT, NOT_COUNTED (in a crowd), or what is wrong with it.

    own, other: IoU with the objects of its class and of other classes. Of several that apply, the first:
    localisation   TOUCHING <= own < FOUND
    classification other >= FOUND
    duplicate      own >= FOUND: a surer detection has found the object
    background     neither overlaps by more than TOUCHING
    both           the rest: TOUCHING < other < FOUND
    """
    own, other = matches.own_iou, matches.other_iou
    conditions = {
        RIGHT: matches.object >= 0,
        NOT_COUNTED: found.in_crowd,
        LOCALISATION: (own >= TOUCHING_IOU) & (own < FOUND_IOU),
        CLASSIFICATION: other >= FOUND_IOU,
        DUPLICATE: own >= FOUND_IOU,
        BACKGROUND: np.maximum(own, other) <= TOUCHING_IOU,
    }
    return np.select(list(conditions.values()), list(conditions), default=BOTH)


def missed_objects(kinds: np.ndarray, matches: Matches, count: int) -> np.ndarray:
    """bool [A]: objects that were not found, and that no box or class to be mended belongs to."""
    missed = np.ones(count, dtype=bool)
    missed[matches.object[kinds == RIGHT]] = False
    missed[matches.own[kinds == LOCALISATION]] = False
    missed[matches.other[kinds == CLASSIFICATION]] = False
    return missed


def average_precision(label: np.ndarray, score: np.ndarray, right: np.ndarray, objects_of_class: np.ndarray) -> np.ndarray:
    """COCO's AP of each class f64 [K]; 0 for a class without objects. Equal scores keep the order they come in."""
    order = np.lexsort((-score, label))  # stable
    label, right = label[order], right[order]
    ap = np.zeros(len(objects_of_class))
    for k in np.flatnonzero(objects_of_class).tolist():
        hits = right[np.searchsorted(label, k) : np.searchsorted(label, k, side="right")].cumsum()
        precision = hits / (np.arange(1, len(hits) + 1) + np.spacing(1))
        best_from_here = np.maximum.accumulate(precision[::-1])[::-1]
        at = np.searchsorted(hits / objects_of_class[k], RECALLS)
        ap[k] = np.append(best_from_here, 0.0)[at].mean()
    return ap


def _best_for_lost_objects(rows: np.ndarray, meant: np.ndarray, score: np.ndarray, objects_found: np.ndarray) -> np.ndarray:
    """Of the detections `rows`, the surest for each object that they mean and that nobody found."""
    lost = rows[~np.isin(meant[rows], objects_found)]
    lost = lost[np.argsort(-score[lost], kind="stable")]
    return lost[np.unique(meant[lost], return_index=True)[1]]
