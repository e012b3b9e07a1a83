"""What every conversion to COCO's form shares: images and objects as they were found, notes on what was odd, the files."""

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, UnidentifiedImageError

from tood.atomic import write_file
from tood.data.decoding import FORMATS
from tood.errors import DataError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
SHOWN = 20  # problems that an error's message spells out
ORIENTATION = 0x0112  # EXIF's tag


class Split(NamedTuple):
    path: Path  # the COCO file
    images: int
    boxes: dict[str, int]  # category -> objects, crowds included


class Conversion(NamedTuple):
    splits: dict[str, Split]
    difficult: int  # objects written as crowds, which are neither trained on nor counted
    dropped: tuple[str, ...]  # boxes without area and repeated ones, a line each
    clipped: tuple[str, ...]  # boxes that left their image
    resized: tuple[str, ...]  # images of another size than their annotations say; the file's is taken
    left_out: tuple[str, ...]  # files of annotations that belong to no split or to no image
    unlabelled: tuple[str, ...] = ()  # images for which there is no file of annotations


class Thing(NamedTuple):
    """An object as it was found."""

    category: str
    corners: tuple[float, float, float, float]  # (x1, y1, x2, y2) px, inside the image
    crowd: bool = False


class Entry(NamedTuple):
    image: dict[str, Any]  # COCO's record
    things: list[Thing]


class Notes(NamedTuple):
    """What was odd and is no reason to stop, a line each."""

    dropped: list[str]
    clipped: list[str]
    resized: list[str]
    left_out: list[str]
    unlabelled: list[str]

    @staticmethod
    def empty() -> "Notes":
        return Notes([], [], [], [], [])


def image_size(path: Path) -> tuple[int, int, bool]:
    """Width, height, and whether EXIF says that viewers turn or mirror it. Raises DataError."""
    try:
        with Image.open(path, formats=FORMATS) as picture:
            return *picture.size, picture.getexif().get(ORIENTATION, 1) != 1
    except UnidentifiedImageError:
        problem = "not an image"
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        problem = f"cannot be read: {error}"
    raise DataError(f"{path}: {problem}")


def fit(
    corners: Sequence[float], width: int, height: int, what: str, notes: Notes, *, slack: float = 0.0
) -> tuple[float, float, float, float] | None:
    """Corners clipped to their image; None for a box without area. More than `slack` px of clipping is noted under `what`."""
    x1, x2 = (min(max(x, 0.0), float(width)) for x in corners[::2])
    y1, y2 = (min(max(y, 0.0), float(height)) for y in corners[1::2])
    if x2 <= x1 or y2 <= y1:
        notes.dropped.append(f"{what} {tuple(corners)} has no area")
        return None
    if max(abs(a - b) for a, b in zip((x1, y1, x2, y2), corners, strict=True)) > slack:
        notes.clipped.append(f"{what} {tuple(corners)} in {width} x {height}")
    return x1, y1, x2, y2


def inside(root: Path, name: str) -> Path:
    """root/name; DataError where the name or a link leads out of root."""
    if not name.isprintable():
        raise DataError(f"{name!r:.200} is no name of a file; rename it")
    if name.startswith(("/", "\\")) or ".." in name.replace("\\", "/").split("/"):
        raise DataError(f"{name!r} leaves {root}; make it relative to that folder")
    path = root / name
    base = os.path.realpath(root)
    if os.path.commonpath([base, os.path.realpath(path)]) != base:
        raise DataError(f"{name}: a link leaves {root}; copy what it leads to into that folder")
    return path


def files_below(root: Path, folder: Path, problems: list[str]) -> list[Path]:
    """All files beneath a folder, in the order of their names; hidden ones are none, and links out of root are problems."""
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in [*folders, *sorted(names)]:
            path = Path(place, name)
            if path.is_symlink():
                try:
                    inside(root, path.relative_to(root).as_posix())
                except DataError as error:
                    problems += error.problems
                    continue
            if name in names and not name.startswith("."):
                found.append(path)
    return found


def write_splits(
    output: Path, members: Mapping[str, Sequence[Entry]], names: Sequence[str], notes: Notes, first: int = 1
) -> Conversion:
    """Write output/instances_<split>.json (of the split "": output/instances.json) with annotation ids from `first` on."""
    splits, number = {}, first
    for split, entries in members.items():
        path = output / (f"instances_{split}.json" if split else "instances.json")
        splits[split or "all"] = Split(path, len(entries), _write(path, entries, names, number))
        number += sum(len(entry.things) for entry in entries)
    crowds = sum(thing.crowd for entries in members.values() for entry in entries for thing in entry.things)
    dropped, clipped, resized, left_out, unlabelled = map(tuple, notes)
    return Conversion(splits, crowds, dropped, clipped, resized, left_out, unlabelled)


def _write(path: Path, entries: Iterable[Entry], names: Sequence[str], number: int) -> dict[str, int]:
    annotations, id_of = [], {name: i for i, name in enumerate(names, 1)}
    for entry in entries:
        for name, (x1, y1, x2, y2), crowd in entry.things:
            size = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "iscrowd": int(crowd)}
            ids = {"id": number, "image_id": entry.image["id"], "category_id": id_of[name]}
            annotations.append(ids | size)
            number += 1
    document = {
        "images": [entry.image for entry in entries],
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for name, i in id_of.items()],
    }
    try:
        write_file(path, json.dumps(document, separators=(",", ":")).encode())
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror or error}") from None
    counts = Counter(names[a["category_id"] - 1] for a in annotations)
    return {name: counts[name] for name in names}


def refuse(problems: list[str]) -> None:
    """Raise a DataError of all problems; nothing for none."""
    if len(problems) == 1:
        raise DataError(problems[0], problems)
    if problems:
        more = [f"... and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
        raise DataError("\n  ".join([f"{len(problems)} problems", *problems[:SHOWN], *more]), problems)
