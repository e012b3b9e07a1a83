"""COCO data sets: read, check, map. All problems of a file are reported at once, with file, image and annotation id.

Shapes: I images, A annotations, K categories, G boxes of one image.
"""

import hashlib
import json
import os
import re
import reprlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np

from tood.config import DataConfig
from tood.data.record import ImageRecord
from tood.data.transforms import decode_record
from tood.errors import DataError
from tood.results import is_box, is_id, is_number, read_json

TOLERANCE = 1.0  # px that a box may stick out of its image (rounding of annotation tools); it is clipped
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # no part of a name: a terminal would obey, a file system refuse
SHOWN = 20  # problems that an error's message spells out; DataError.problems holds them all


@dataclass(frozen=True)
class CocoData:
    images: tuple[ImageRecord, ...]  # sorted by image id, boxes by annotation id: the JSON's order has no effect
    names: tuple[str, ...]  # [K]
    category_ids: tuple[int, ...]  # [K] label -> the data set's own id, ascending
    annotations: Path
    fingerprint: str  # sha256 of ids, sizes, categories and boxes; not of paths
    dropped: tuple[str, ...] = ()  # the boxes that invalid_boxes="drop" left out, a line each
    dropped_ids: frozenset[int] = frozenset()  # their annotations, which evaluation leaves out too: `evaluation.read_truth`


def read_split(config: DataConfig, split: Literal["train", "val"]) -> CocoData:
    """The train or val split of a configuration. source="digits" builds the demo set in data.root if it is absent."""
    root, paths = Path(config.root).expanduser(), getattr(config, split)
    if config.source == "digits":
        from tood.data.digits import digits_split  # the demo's own layout, whatever data.train and data.val say

        annotations, images = digits_split(root, split)
    else:
        annotations, images = root / paths.annotations, root / paths.images
        if not annotations.is_file():
            raise DataError(f"{annotations}: no such file; set data.root and data.{split}.annotations")
    return read_coco(annotations, images, invalid_boxes=config.invalid_boxes)


def read_coco(
    annotations: Path,
    images: Path,
    *,
    invalid_boxes: Literal["error", "drop"] = "error",
    check_files: bool = True,
) -> CocoData:
    """Read and check a COCO detection file; `images` is the folder that its `file_name`s are relative to.

    Missing `iscrowd` and `area` mean 0 and width * height. Boxes that leave their image by up to TOLERANCE are clipped.
    check_files also looks every image up in the folder (without decoding it: see `check_images`).

    Raises DataError that lists all problems. With invalid_boxes="drop" bad boxes are left out and listed in `dropped`
    instead; every other problem stays an error.
    """
    annotations, images = Path(annotations), Path(images)
    document = read_json(annotations)
    parts = ("images", "annotations", "categories")
    lists = [document.get(part) if isinstance(document, dict) else None for part in parts]
    if not all(isinstance(entries, list) and all(isinstance(e, dict) for e in entries) for entries in lists):
        raise DataError(f"{annotations}: not a COCO file: expected an object with lists of {', '.join(parts)}")
    image_entries, objects, categories = lists

    image_of = {e["id"]: e for e in image_entries if is_id(e.get("id"))}
    name_of = {c["id"]: c.get("name") for c in categories if is_id(c.get("id"))}
    problems = [*_category_problems(categories), *_image_problems(image_entries)]
    problems += _file_problems(images, [e.get("file_name") for e in image_entries], check_files)
    problems += _id_problems("annotation", objects)
    problems += [f"{_where(a, image_of)}: {p}" for a in objects for p in _annotation_problems(a, image_of, name_of)]

    with_box = [a for a in objects if is_id(a.get("image_id")) and a["image_id"] in image_of and "bbox" in a]
    boxes, faults = _check_boxes(with_box, image_of)
    bad_boxes = [
        f"{_where(with_box[i], image_of)}: bbox {reprlib.repr(with_box[i]['bbox'])} {FAULTS[faults[i]]}"
        for i in np.flatnonzero(faults)
    ]
    if problems or (bad_boxes and invalid_boxes == "error"):
        raise DataError(_message(annotations, problems, bad_boxes), problems + bad_boxes)

    ids = np.array([(a["image_id"], a["id"]) for a in objects], dtype=np.int64).reshape(-1, 2)
    order = np.lexsort((ids[:, 1], ids[:, 0]))
    good = order[faults[order] == 0]  # without other problems, with_box holds all objects
    data = _assemble(annotations, images, image_of, name_of, [objects[i] for i in good], boxes[good])
    dropped_ids = frozenset(objects[i]["id"] for i in np.flatnonzero(faults))
    return replace(data, dropped=tuple(bad_boxes), dropped_ids=dropped_ids)


def check_images(data: CocoData) -> list[str]:
    """Decode every image; a line for each that is broken or has not the size that the JSON says."""

    def problem(record: ImageRecord) -> str | None:
        try:
            decode_record(record)
        except DataError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # decoders release the interpreter's lock
        return [found for found in pool.map(problem, data.images) if found]


# -- checks: each yields its problems --------------------------------------------------------------------------------


def _id_problems(kind: str, entries: list[dict]) -> Iterator[str]:
    ids = [e.get("id") for e in entries]
    yield from (f"{kind} at position {i}: id {reprlib.repr(v)} is not an integer" for i, v in enumerate(ids) if not is_id(v))
    counts = Counter(filter(is_id, ids))
    yield from (f"{kind} id {v} occurs {count} times" for v, count in counts.items() if count > 1)


def _category_problems(entries: list[dict]) -> Iterator[str]:
    yield from _id_problems("category", entries)
    if not entries:
        yield "the list of categories is empty"
    counts = Counter()
    for c in entries:
        if isinstance(c.get("name"), str) and not _CONTROL.search(c["name"]):
            counts[c["name"]] += 1
        else:
            yield f"category {reprlib.repr(c.get('id'))}: name {reprlib.repr(c.get('name'))} is not text of printable characters"
    yield from (f"{count} categories are named {name!r:.80}: rename them" for name, count in counts.items() if count > 1)


def _image_problems(entries: list[dict]) -> Iterator[str]:
    yield from _id_problems("image", entries)
    if not entries:
        yield "the list of images is empty"
    for e in entries:
        for side in ("width", "height"):
            if not _is_side(e.get(side)):
                yield f"{_image(e)}: {side} {reprlib.repr(e.get(side))} is not a positive whole number"


def _annotation_problems(a: dict, images: dict[int, dict], categories: dict[int, str]) -> Iterator[str]:
    for key, known in (("image_id", images), ("category_id", categories)):
        if not is_id(a.get(key)) or a[key] not in known:
            yield f"{key} {reprlib.repr(a.get(key))} is not in the file"
    if a.get("iscrowd", 0) not in (0, 1):
        yield f"iscrowd {reprlib.repr(a['iscrowd'])} is not 0 or 1"
    if not is_number(area := a.get("area", 0)) or area < 0:
        yield f"area {reprlib.repr(area)} is not a finite number from 0"
    if "bbox" not in a:
        yield "has no bbox"


FAULTS = (
    "",
    "is not four finite numbers [x, y, width, height]",
    "has no area: width and height must be positive",
    "leaves its image",
    "has no area inside its image",
)


def _check_boxes(objects: list[dict], images: dict[int, dict]) -> tuple[np.ndarray, np.ndarray]:
    """Clipped boxes f32 [A,4] xyxy and what is wrong with each: an index of FAULTS [A], 0 for the good ones."""
    well_formed = np.array([is_box(a["bbox"]) for a in objects], dtype=bool)
    raw = [a["bbox"] if ok else (0, 0, 0, 0) for a, ok in zip(objects, well_formed, strict=True)]
    xywh = np.array(raw, dtype=np.float64).reshape(-1, 4)
    size_of = {i: [e[k] if _is_side(e.get(k)) else np.inf for k in ("width", "height")] for i, e in images.items()}
    sizes = np.array([size_of[a["image_id"]] for a in objects], dtype=np.float64).reshape(-1, 2)
    low, high = xywh[:, :2], xywh[:, :2] + xywh[:, 2:]
    boxes = np.concatenate([low.clip(0, sizes), high.clip(0, sizes)], axis=1).astype(np.float32)
    faults = [
        ~well_formed,
        (xywh[:, 2:] <= 0).any(axis=1),
        ((low < -TOLERANCE) | (high > sizes + TOLERANCE)).any(axis=1),
        (boxes[:, 2:] <= boxes[:, :2]).any(axis=1),
    ]
    return boxes, np.select(faults, range(1, len(FAULTS)), default=0)


def _file_problems(folder: Path, names: list[Any], check_files: bool) -> Iterator[str]:
    """Names that leave the folder and, with check_files, files that are missing or links to somewhere else.

    One listing a folder in place of several system calls a file: network folders with 100,000 images stay bearable.
    """
    if check_files and not folder.is_dir():
        yield f"{folder}: no such folder of images"
        return
    root = os.path.realpath(folder)
    listings: dict[str, dict[str, os.DirEntry] | None] = {}
    for name in names:
        if not isinstance(name, str) or not name or _CONTROL.search(name):
            yield f"file_name {reprlib.repr(name)} is not the name of a file"
        elif name.startswith("/") or (".." in name and ".." in PurePosixPath(name).parts):
            yield f"{_shown(name)}: file_name leaves {folder}; make it relative to that folder"
        elif check_files:
            parent, base = os.path.split(name)
            if parent not in listings:
                listings[parent] = _listing(root, parent)
            entry = (listings[parent] or {}).get(base)
            if listings[parent] is None or (entry and entry.is_symlink() and not _is_below(root, entry.path)):
                yield f"{_shown(name)}: a symbolic link leaves {folder}; copy the file into that folder"
            elif entry is None or not entry.is_file():
                yield f"{_shown(name)}: no such file in {folder}"


def _listing(root: str, parent: str) -> dict[str, os.DirEntry] | None:
    """Entries of root/parent by name; None where a link leads out of root."""
    path = os.path.join(root, parent)
    if not _is_below(root, path):
        return None
    try:
        with os.scandir(path) as entries:
            return {entry.name: entry for entry in entries}
    except OSError:
        return {}


def _is_below(root: str, path: str) -> bool:
    return os.path.commonpath([root, os.path.realpath(path)]) == root


def _is_side(value: Any) -> bool:
    return type(value) is int and 0 < value < 2**31


# -- words and results -----------------------------------------------------------------------------------------------


def _image(entry: dict) -> str:
    return f"image {reprlib.repr(entry.get('id'))} ({_shown(entry.get('file_name'))})"


def _shown(name: Any) -> str:
    """A name in a line of an error: as it is, unless it would spoil the line."""
    return name if isinstance(name, str) and len(name) <= 200 and not _CONTROL.search(name) else reprlib.repr(name)


def _where(a: dict, images: dict[int, dict]) -> str:
    image_id = a.get("image_id")
    image = _image(images[image_id]) if is_id(image_id) and image_id in images else f"image {reprlib.repr(image_id)}"
    return f"{image}, annotation {reprlib.repr(a.get('id'))}"


def _message(path: Path, problems: list[str], bad_boxes: list[str]) -> str:
    found = problems + bad_boxes
    lines = [f"{path}: {len(found)} problem{'s' if len(found) > 1 else ''}", *found[:SHOWN]]
    if len(found) > SHOWN:
        lines.append(f"... and {len(found) - SHOWN} more: `tood data check` lists all")
    boxes = "correct the boxes, or leave them out by data.invalid_boxes=drop"
    lines.append(boxes if bad_boxes else "correct the annotations, or get them again")
    return "\n  ".join(lines)


def _assemble(
    annotations: Path,
    folder: Path,
    image_of: dict[int, dict],
    name_of: dict[int, str],
    objects: list[dict],
    boxes: np.ndarray,
) -> CocoData:
    """Records from checked entries; `objects` and their `boxes` are sorted by image id, then annotation id."""
    category_ids, image_ids = sorted(name_of), sorted(image_of)
    label_of = {category: label for label, category in enumerate(category_ids)}
    labels = np.array([label_of[a["category_id"]] for a in objects], dtype=np.int64)
    crowd = np.array([a.get("iscrowd", 0) for a in objects], dtype=bool)
    owners = np.array([a["image_id"] for a in objects], dtype=np.int64)
    areas = np.array([a.get("area", a["bbox"][2] * a["bbox"][3]) for a in objects], dtype=np.float64)
    ends = np.searchsorted(owners, image_ids, side="right").tolist()
    records, start = [], 0
    for image_id, end in zip(image_ids, ends, strict=True):
        e, part = image_of[image_id], slice(start, end)
        path = folder / e["file_name"]
        of_image = (boxes[part], labels[part], crowd[part], areas[part])
        records.append(ImageRecord(image_id, path, e["height"], e["width"], *of_image))
        start = end

    xywh = np.array([a["bbox"] for a in objects], dtype=np.float64).reshape(-1, 4)
    names = [name_of[c] for c in category_ids]
    digest = hashlib.sha256(json.dumps([names, category_ids], separators=(",", ":")).encode())
    sizes = [(r.image_id, r.height, r.width) for r in records]
    for kind, column in (
        ("<i8", sizes),
        ("<i8", owners),
        ("<i8", labels),
        ("<i8", crowd),
        ("<f8", xywh),
        ("<f8", areas),
    ):
        values = (np.asarray(column) + 0).astype(kind)  # + 0: no negative zero
        digest.update(f"{values.shape}".encode() + values.tobytes())
    return CocoData(tuple(records), tuple(names), tuple(category_ids), annotations, digest.hexdigest())
