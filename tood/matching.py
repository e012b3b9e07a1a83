"""Which object each detection finds at IoU .50, by COCO's rules, and what it overlaps besides.

D detections, A objects (crowds apart), K classes. float64 and original pixels, as in COCO's evaluation.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

from tood.boxes import overlap_share, pairwise_iou
from tood.evaluation import Truth
from tood.results import Detections

FOUND_IOU = 0.5  # from here on a box has found its object
TOUCHING_IOU = 0.1  # up to here a box has nothing to do with an object (TOOD Table 6; TIDE's background)
MAX_DETECTIONS = 100  # COCO's, of an image and class


class Objects(NamedTuple):
    image: np.ndarray  # i64 [A] place among the sorted image ids; ascending
    label: np.ndarray  # i64 [A]
    boxes: np.ndarray  # f64 [A,4] xyxy
    areas: np.ndarray  # f64 [A] as annotated


class Found(NamedTuple):
    """Detections, sorted by image, then by falling score."""

    image: np.ndarray  # i64 [D]
    label: np.ndarray  # i64 [D]
    score: np.ndarray  # f64 [D]
    boxes: np.ndarray  # f64 [D,4] xyxy
    in_crowd: np.ndarray  # bool [D] at least half of it lies in a crowd of its class: neither right nor wrong, unless it finds


class Matches(NamedTuple):
    """What a detection has to do with objects of its own class and of others; -1 and IoU 0 where there are none."""

    object: np.ndarray  # i64 [D] the one that it found: no object is found twice, and the surer detection chooses first
    own: np.ndarray  # i64 [D] the one of its class that it overlaps most
    own_iou: np.ndarray  # f64 [D]
    other: np.ndarray  # i64 [D] the one of another class that it overlaps most
    other_iou: np.ndarray  # f64 [D]


def objects_of(truth: Truth) -> tuple[Objects, Objects]:
    """The objects and the crowds of an annotations file."""
    image, label, crowd = (
        np.array([a[key] for a in truth.annotations], dtype=np.int64) for key in ("image_id", "category_id", "iscrowd")
    )
    boxes = np.array([a["bbox"] for a in truth.annotations], dtype=np.float64).reshape(-1, 4)
    areas = np.array([a["area"] for a in truth.annotations], dtype=np.float64)
    order = np.argsort(image, kind="stable")  # Truth numbers images and categories from 1
    every = Objects(image[order] - 1, label[order] - 1, _corners(boxes)[order], areas[order])
    objects, crowds = (Objects(*(column[kind] for column in every)) for kind in (crowd[order] == 0, crowd[order] == 1))
    return objects, crowds


def found_of(truth: Truth, detections: Detections, crowds: Objects) -> Found:
    """The detections that COCO counts: the MAX_DETECTIONS surest of each image and class."""
    image = np.searchsorted(truth.image_ids, detections.image_ids)
    label = np.searchsorted(truth.category_ids, detections.category_ids)
    order = np.lexsort((-detections.scores, image))  # stable
    image, label = image[order], label[order]
    counted = _place_in_group(image * len(truth.category_ids) + label) < MAX_DETECTIONS
    order = order[counted]
    boxes, image, label = _corners(detections.boxes[order]), image[counted], label[counted]
    in_crowd = np.zeros(len(order), dtype=bool)
    for rows, columns in _images(image, crowds.image):
        share = overlap_share(torch.from_numpy(boxes[rows]), torch.from_numpy(crowds.boxes[columns])).numpy()
        same = label[rows, None] == crowds.label[None, columns]
        in_crowd[rows] = ((share >= FOUND_IOU) & same).any(axis=1)
    return Found(image, label, detections.scores[order], boxes, in_crowd)


def match(found: Found, objects: Objects) -> Matches:
    """Let every detection find its object, and look for what it overlaps most."""
    count = len(found.score)
    matches = Matches(*(np.full(count, fill) for fill in (-1, -1, 0.0, -1, 0.0)))
    for rows, columns in _images(found.image, objects.image):
        iou = pair_iou(found.boxes[rows], objects.boxes[columns])
        same = found.label[rows, None] == objects.label[None, columns]
        claimed = claim(np.where(same, iou, 0.0))
        matches.object[rows] = np.where(claimed >= 0, claimed + columns.start, -1)
        for best, best_iou, kind in ((matches.own, matches.own_iou, same), (matches.other, matches.other_iou, ~same)):
            of_kind = np.where(kind, iou, 0.0)
            best_iou[rows] = of_kind.max(axis=1)
            best[rows] = np.where(best_iou[rows] > 0, of_kind.argmax(axis=1) + columns.start, -1)
    return matches


def confusion_matrix(found: Found, objects: Objects, classes: int, threshold: float) -> np.ndarray:
    """Counts i64 [K+1,K+1]: rows are what is there, columns what is said to be there, the last of either is nothing.

    Detections from a score of `threshold` on. They find objects of their own class first; then objects that are left are
    given to detections that are left, the surest first, and these are the confusions.
    """
    matrix = np.zeros((classes + 1, classes + 1), dtype=np.int64)
    sure = Found(*(column[found.score >= threshold] for column in found))
    seen_as = np.full(len(objects.label), classes)
    stands_for = np.full(len(sure.label), classes)
    for rows, columns in _images(sure.image, objects.image):
        iou = pair_iou(sure.boxes[rows], objects.boxes[columns])
        own = claim(np.where(sure.label[rows, None] == objects.label[None, columns], iou, 0.0))
        iou[(own >= 0) | sure.in_crowd[rows]], iou[:, own[own >= 0]] = 0, 0
        partner = np.maximum(own, claim(iou))
        row, column = np.flatnonzero(partner >= 0), partner[partner >= 0]
        seen_as[columns][column] = sure.label[rows][row]
        stands_for[rows][row] = objects.label[columns][column]
    np.add.at(matrix, (objects.label, seen_as), 1)
    invented = (stands_for == classes) & ~sure.in_crowd
    np.add.at(matrix[classes], sure.label[invented], 1)
    return matrix


def claim(iou: np.ndarray) -> np.ndarray:
    """Each row, in turn, takes the free column that it overlaps most, from FOUND_IOU on; i64, -1 for none.

    Of equal ones the last, as in COCO's evaluation.
    """
    taken = np.full(len(iou), -1)
    free = iou.copy()
    for row in np.flatnonzero((iou >= FOUND_IOU).any(axis=1)).tolist():
        column = iou.shape[1] - 1 - int(free[row, ::-1].argmax())
        if free[row, column] >= FOUND_IOU:
            taken[row] = column
            free[:, column] = 0
    return taken


def pair_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU f64 [M,N] of boxes [M,4] with boxes [N,4]."""
    return pairwise_iou(torch.from_numpy(a), torch.from_numpy(b)).numpy()


def _images(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[slice, slice]]:
    """The rows of ascending a [M] and b [N] that hold the same image, for images that both have."""
    shared = np.intersect1d(a, b)
    ends = [np.searchsorted(rows, shared, side=side).tolist() for rows in (a, b) for side in ("left", "right")]
    for start_a, end_a, start_b, end_b in zip(*ends, strict=True):
        yield slice(start_a, end_a), slice(start_b, end_b)


def _place_in_group(group: np.ndarray) -> np.ndarray:
    """How many entries of the same group come before each entry."""
    order = np.argsort(group, kind="stable")
    grouped = group[order]
    place = np.empty(len(group), dtype=np.int64)
    place[order] = np.arange(len(group)) - np.searchsorted(grouped, grouped)
    return place


def _corners(boxes: np.ndarray) -> np.ndarray:
    """(x, y, width, height) -> (x1, y1, x2, y2)."""
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
