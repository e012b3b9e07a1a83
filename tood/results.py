"""Detections as arrays: from predictions, from the workers' shards, from and to COCO results files.

Also the checks of JSON that others wrote, which `tood.evaluation` shares. Shapes: D detections.
"""

import gzip
import io
import json
import reprlib
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from tood.atomic import write_file
from tood.errors import DataError

GZIP = b"\x1f\x8b"  # how what is packed begins
UNPACKED, RATIO = 1 << 26, 100  # of a packed file: bytes that are always read, and how many times its own size


class Detections(NamedTuple):
    image_ids: np.ndarray  # i64 [D]
    boxes: np.ndarray  # f64 [D,4] (x, y, width, height), original pixels
    scores: np.ndarray  # f64 [D]
    category_ids: np.ndarray  # i64 [D], the data set's own ids


def results_from_predictions(
    image_ids: Sequence[int] | torch.Tensor,
    predictions: Sequence[dict[str, torch.Tensor]],
    category_ids: Sequence[int],
) -> Detections:
    """Predictions of a batch, a dict(boxes f32 [D,4] xyxy original px, scores [D], labels [D]) an image, as Detections.

    `category_ids[label]` is the data set's id of a label. Three transfers from the device, whatever the batch.
    """
    ids = np.asarray(torch.as_tensor(image_ids).cpu(), dtype=np.int64)
    if len(ids) != len(predictions):
        raise ValueError(f"{len(ids)} image ids for {len(predictions)} predictions")
    if not predictions:
        return merge([])
    boxes = torch.cat([p["boxes"].detach().reshape(-1, 4) for p in predictions]).double().cpu().numpy()
    scores = torch.cat([p["scores"].detach() for p in predictions]).double().cpu().numpy()
    labels = torch.cat([p["labels"].detach() for p in predictions]).cpu().numpy()
    xywh = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
    counts = [len(p["scores"]) for p in predictions]
    return Detections(np.repeat(ids, counts), xywh, scores, np.asarray(category_ids, dtype=np.int64)[labels])


def merge(parts: Sequence[Detections]) -> Detections:
    """The workers' shards as one, sorted by image id, then by falling score; ties keep the order within their image.

    So the order does not depend on the number of workers. Raises DataError where an image occurs in two parts: its
    detections would count twice.
    """
    seen = np.concatenate([np.zeros(0, np.int64), *(np.unique(part.image_ids) for part in parts)])
    ids, counts = np.unique(seen, return_counts=True)
    if (counts > 1).any():
        raise DataError(f"detections of image {ids[counts > 1][0]} come from two workers; give every image to one of them")
    empty = Detections(np.zeros(0, np.int64), np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64))
    whole = Detections(*(np.concatenate(column) for column in zip(empty, *parts, strict=True)))
    order = np.lexsort((-whole.scores, whole.image_ids))  # stable
    return Detections(*(column[order] for column in whole))


def write_results(path: Path, detections: Detections) -> None:
    """Write COCO's results format, one detection a line, atomically. Reading it back gives the same numbers exactly."""
    _write(path, _results_text(detections))


def packed_results(path: Path, detections: Detections) -> Path:
    """The same packed by gzip, about a sixth of it, into `path`, which ends in .gz. Equal detections give equal bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _write(path, gzip.compress(_results_text(detections), compresslevel=5, mtime=0))
    return path


def _results_text(detections: Detections) -> bytes:
    columns = [column.tolist() for column in detections]
    lines = [
        json.dumps({"image_id": image, "category_id": category, "bbox": box, "score": score}, allow_nan=False)
        for image, box, score, category in zip(*columns, strict=True)
    ]
    return ("[\n" + ",\n".join(lines) + "\n]\n").encode()


def _write(path: Path, content: bytes) -> None:
    try:
        write_file(path, content)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror or error}") from None


def read_results(path: Path) -> Detections:
    """Read a results file, [{"image_id", "category_id", "bbox": [x, y, width, height], "score"}], in the file's order.

    A name in .gz means that it is packed.
    Raises DataError that lists every entry of a wrong form. `coco_figures` checks the ids against the annotations.
    """
    entries = read_json(path)
    if not isinstance(entries, list):
        raise DataError(f"{path}: not a COCO results file: expected a list of detections")
    problems = []
    for i, entry in enumerate(entries):
        entry = entry if isinstance(entry, dict) else {}
        for key, fits, expected in RESULT_KEYS:
            if not fits(entry.get(key)):
                problems.append(f"detection {i}: {key} {reprlib.repr(entry.get(key))} is not {expected}")
    raise_all(path, problems)
    return Detections(
        np.array([e["image_id"] for e in entries], dtype=np.int64),
        np.array([e["bbox"] for e in entries], dtype=np.float64).reshape(-1, 4),
        np.array([e["score"] for e in entries], dtype=np.float64),
        np.array([e["category_id"] for e in entries], dtype=np.int64),
    )


# -- reading JSON that others wrote ----------------------------------------------------------------------------------


def read_json(path: Path) -> Any:
    """What a JSON file holds, unpacked where it is packed by gzip. Raises DataError.

    Names do not tell: a store that is told of the packing sends a .gz to those who ask by HTTP unpacked.
    """
    try:
        content = Path(path).read_bytes()
        return json.loads(_unpacked(content, path) if content.startswith(GZIP) else content)
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise DataError(f"{path}: cannot be unpacked by gzip: {error}; get it again") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}; name another file") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not JSON: byte {error.start} is no text in UTF-8; get the file again") from None
    except RecursionError:
        raise DataError(f"{path}: not JSON that can be read: lists or objects are nested too deep; get the file again") from None
    except ValueError as error:
        raise DataError(f"{path}: not JSON: {error}; correct the file, or get it again") from None


def _unpacked(content: bytes, path: Path) -> bytes:
    """No more than JSON is ever packed into so few bytes: a bomb unfolds to a thousand times its size."""
    limit = max(UNPACKED, RATIO * len(content))
    with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise DataError(f"{path}: unfolds to more than {limit} bytes, as no file of this kind does; get it again, unpacked")
    return data


def is_id(value: Any) -> bool:
    return type(value) is int and abs(value) < 2**63


def is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= sys.float_info.max  # False for NaN


def is_box(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(is_number, value))


def raise_all(path: Path, problems: list[str]) -> None:
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise DataError(f"{path}: {problems[0]}{more}; correct the file", problems)


RESULT_KEYS = (
    ("image_id", is_id, "an integer"),
    ("category_id", is_id, "an integer"),
    ("bbox", is_box, "four finite numbers (x, y, width, height)"),
    ("score", is_number, "a finite number"),
)
