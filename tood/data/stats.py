"""What a data set is like, and what a recipe's resize and pyramid make of it. Objects are those to learn: crowds are counted apart.

Shapes: I images, A objects, K classes, L levels of the pyramid.
"""

from typing import Any, NamedTuple

import numpy as np

from tood.data.coco import CocoData
from tood.data.transforms import resize_shape
from tood.priors import STRIDES

SMALL, LARGE = 32**2, 96**2  # px of area: COCO's bounds between small, medium and large
SIZES = ("small", "medium", "large")
MARGIN = 0.01  # px that a point must lie inside a box: `tood.boxes.inside`
MULTIPLE = 32  # that images are padded to


class Statistics(NamedTuple):
    names: tuple[str, ...]  # [K]
    per_image: np.ndarray  # i64 [I] objects
    crowds: int
    image_sizes: np.ndarray  # i64 [I,2] (height, width) in the file
    scales: np.ndarray  # f64 [I] resized / original
    owners: np.ndarray  # i64 [A] index of the object's image
    labels: np.ndarray  # i64 [A]
    areas: np.ndarray  # f64 [A] px, as annotated
    sides: np.ndarray  # f64 [A,2] (width, height) px of the box in the file
    points: np.ndarray  # i64 [A,L] points of each level inside the box after the resize


def statistics(data: CocoData, *, long_side: int, short_side: int, centre_offset: float = 0.0) -> Statistics:
    """long_side, short_side: the recipe's resize (its nominal one; flips and other scales change points a little).

    centre_offset: where in its cell a point lies, in strides; see `tood.priors.PriorGrid`.
    """
    records = data.images
    originals = np.array([(r.height, r.width) for r in records], dtype=np.int64).reshape(-1, 2)
    resized = np.array([resize_shape(r.height, r.width, long_side, short_side) for r in records], dtype=np.int64).reshape(-1, 2)
    per_image = np.array([(~r.crowd).sum() for r in records], dtype=np.int64)
    owners = np.repeat(np.arange(len(records)), per_image)
    boxes = np.concatenate([np.zeros((0, 4), np.float32), *(r.boxes[~r.crowd] for r in records)]).astype(np.float64)
    factors = (resized / originals)[owners][:, ::-1]  # [A,2] of width and height
    return Statistics(
        names=data.names,
        per_image=per_image,
        crowds=int(sum(r.crowd.sum() for r in records)),
        image_sizes=originals,
        scales=np.sqrt((resized / originals).prod(axis=1)),
        owners=owners,
        labels=np.concatenate([np.zeros(0, np.int64), *(r.labels[~r.crowd] for r in records)]),
        areas=np.concatenate([np.zeros(0), *(r.areas[~r.crowd] for r in records)]),
        sides=boxes[:, 2:] - boxes[:, :2],
        points=points_inside(boxes * np.tile(factors, 2), resized[owners], centre_offset),
    )


def points_inside(boxes: np.ndarray, sizes: np.ndarray, centre_offset: float = 0.0) -> np.ndarray:
    """How many points of each level lie inside boxes [A,4] xyxy px of images of sizes [A,2] (height, width) -> i64 [A,L].

    A level of stride s has points at (k + centre_offset) s, k = 0, 1, ..., as far as the padded image goes: those between
    x1 and x2 are counted by their first and last k, without a list of them.
    """
    padded = -(-sizes[:, ::-1] // MULTIPLE) * MULTIPLE  # [A,2] (width, height)
    counts = []
    for stride in STRIDES:
        last_cell = -(-padded // stride) - 1
        first = np.floor((boxes[:, :2] + MARGIN) / stride - centre_offset) + 1
        last = np.ceil((boxes[:, 2:] - MARGIN) / stride - centre_offset) - 1
        along = np.minimum(last, last_cell) - np.maximum(first, 0) + 1
        counts.append(along.clip(min=0).prod(axis=1))
    return np.stack(counts, axis=1).astype(np.int64)


def size_classes(areas: np.ndarray) -> np.ndarray:
    """Index among SIZES of areas [A] in px; the figures AP_small, AP_medium and AP_large go by the same bounds."""
    return np.digitize(areas, (SMALL, LARGE))


def figures_of(s: Statistics, m: int) -> dict[str, Any]:
    """The figures as plain JSON values. m: candidates that task-aligned assignment looks for, an object."""
    totals, of_size = s.points.sum(axis=1), size_classes(s.areas)
    scaled = s.areas * s.scales[s.owners] ** 2
    objects = len(s.labels)
    with_class = [len(np.unique(s.owners[s.labels == k])) for k in range(len(s.names))]
    counts = np.bincount(s.labels, minlength=len(s.names)).tolist()
    ratios = s.sides[:, 0] / s.sides[:, 1]

    def by_size(chosen: np.ndarray) -> dict[str, int]:
        return {"all": int(chosen.sum())} | {name: int(chosen[of_size == i].sum()) for i, name in enumerate(SIZES)}

    return {
        "images": len(s.per_image),
        "images_without_objects": int((s.per_image == 0).sum()),
        "objects": objects,
        "crowds": s.crowds,
        "objects_an_image": _spread(s.per_image),
        "classes": {name: {"objects": n, "images": i} for name, n, i in zip(s.names, counts, with_class, strict=True)},
        "image_width": _spread(s.image_sizes[:, 1]),
        "image_height": _spread(s.image_sizes[:, 0]),
        "resize": _spread(s.scales),
        "sizes": by_size(np.ones(objects, dtype=bool)),
        "sizes_after_resize": {name: int((size_classes(scaled) == i).sum()) for i, name in enumerate(SIZES)},
        "side": _spread(np.sqrt(s.areas)),
        "aspect_ratio": _spread(ratios),
        "levels": {
            str(stride): {"objects_with_a_point": by_size(s.points[:, i] > 0), "points_an_object": _mean(s.points[:, i])}
            for i, stride in enumerate(STRIDES)
        },
        "objects_without_a_point": by_size(totals == 0),
        "objects_with_fewer_points_than_m": by_size(totals < m),
        "m": m,
    }


def _spread(values: np.ndarray) -> dict[str, float | None]:
    if not len(values):
        return dict.fromkeys(("mean", "p05", "median", "p95", "max"))
    low, middle, high = np.percentile(values, (5, 50, 95))
    found = {"mean": values.mean(), "p05": low, "median": middle, "p95": high, "max": values.max()}
    return {name: round(float(value), 4) for name, value in found.items()}


def _mean(values: np.ndarray) -> float | None:
    return round(float(values.mean()), 2) if len(values) else None
