"""Pascal VOC to COCO: a folder of XML files and its image sets -> one COCO JSON a split.

Corners are taken as they are (x1, y1, x2, y2 = xmin, ymin, xmax, ymax): VOC's own sets count pixels from 1, most others
from 0, and the files do not say which. Image ids count the XML files in the order of their names, so that a split more
or less leaves them alone; annotation ids run through the splits.
"""

import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

from PIL import Image

from tood.atomic import write_file
from tood.data.transforms import FORMATS
from tood.errors import DataError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
SHOWN = 20  # problems that an error's message spells out


class Split(NamedTuple):
    path: Path  # the COCO file
    images: int
    boxes: dict[str, int]  # category -> objects, difficult ones included


class Conversion(NamedTuple):
    splits: dict[str, Split]
    difficult: int  # objects marked so: written as crowds, which are neither trained on nor counted
    dropped: tuple[str, ...]  # boxes without area, a line each
    clipped: tuple[str, ...]  # boxes that left their image
    resized: tuple[str, ...]  # images whose XML gives another size than the file; the file's is taken
    left_out: tuple[str, ...]  # XML files that no image set names


def convert_voc(
    images: Path,
    annotations: Path,
    lists: dict[str, Path] | None,
    output: Path,
    *,
    categories: Sequence[str] | None = None,
) -> Conversion:
    """Write output/instances_<split>.json for each split of `lists`, or output/instances.json of all files without it.

    images, annotations: folders whose files share their names up to the suffix. lists: split -> image set, a text file
    whose lines begin with such a name (ImageSets/Main/train.txt). categories: names in the order of their ids 1, 2, ...;
    by default those found, sorted. Parts of an object (VOC's person layout) are not objects.

    Raises DataError that lists every broken XML, missing image or unknown name; nothing is written then.
    """
    images, annotations, output = Path(images), Path(annotations), Path(output)
    for folder in (images, annotations):
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder")
    notes, problems = _Notes([], [], []), []
    image_files = {file.stem: file for file in sorted(images.iterdir()) if file.suffix.lower() in SUFFIXES}
    entries = {}
    for image_id, file in enumerate(sorted(annotations.glob("*.xml")), 1):
        try:
            entries[file.stem] = _read(file, image_id, image_files, notes)
        except DataError as error:
            problems += error.problems
    if not entries and not problems:
        problems.append(f"{annotations}: no .xml file in this folder")

    found = {name for entry in entries.values() for name, _, _ in entry.objects}
    names = list(categories or sorted(found))
    problems += [f"category {name!r} is not among {', '.join(names)}" for name in sorted(found - set(names))]
    members = {"": list(entries)} if lists is None else {}
    for split, path in (lists or {}).items():
        members[split] = _read_list(path, entries, problems)
    _raise(problems)

    splits, number = {}, 1
    for split, stems in members.items():
        chosen = [entries[stem] for stem in sorted(stems)]
        path = output / (f"instances_{split}.json" if split else "instances.json")
        splits[split or "all"] = Split(path, len(chosen), _write(path, chosen, names, number))
        number += sum(len(entry.objects) for entry in chosen)
    difficult = sum(is_difficult for entry in entries.values() for _, _, is_difficult in entry.objects)
    left_out = sorted(set(entries) - {stem for stems in members.values() for stem in stems})
    return Conversion(splits, difficult, *map(tuple, notes), tuple(left_out))


class _Entry(NamedTuple):
    image: dict[str, Any]  # COCO's record
    objects: list[tuple[str, tuple[float, ...], bool]]  # category, corners, difficult


class _Notes(NamedTuple):
    dropped: list[str]
    clipped: list[str]
    resized: list[str]


class _NoDoctype(ElementTree.TreeBuilder):
    def doctype(self, name: str, public_id: str | None, system: str | None) -> None:
        raise DataError("has a DOCTYPE, which VOC does not need and which can define entities that explode; remove it")


def _read(file: Path, image_id: int, image_files: dict[str, Path], notes: _Notes) -> _Entry:
    """One XML file. Raises DataError with all its problems."""
    try:
        parser = ElementTree.XMLParser(target=_NoDoctype())
        parser.feed(file.read_bytes())
        root = parser.close()
    except ElementTree.ParseError as error:
        raise DataError(f"{file}: not XML: {error}") from None
    except DataError as error:
        raise DataError(f"{file}: {error}") from None
    image = image_files.get(file.stem)
    if image is None:
        raise DataError(f"{file}: no image of this name; add it, or remove the XML file")
    try:
        with Image.open(image, formats=FORMATS) as picture:
            width, height = picture.size
    except (OSError, Image.DecompressionBombError) as error:
        raise DataError(f"{image}: cannot be read: {error}") from None
    said = tuple(root.findtext(f"size/{side}", "none") for side in ("width", "height"))
    if said != (str(width), str(height)):
        notes.resized.append(f"{file.stem}: {width} x {height}, its XML says {said[0]} x {said[1]}")

    objects, problems = [], []
    for element in root.findall("object"):
        name = (element.findtext("name") or "").strip()
        texts = [element.findtext(f"bndbox/{corner}", "") for corner in ("xmin", "ymin", "xmax", "ymax")]
        try:
            corners = tuple(map(float, texts))
        except ValueError:
            corners = (math.nan,)
        if not name or not all(map(math.isfinite, corners)):
            problems.append(f"{file}: object {name!r} has the corners {texts}; give it a name and four numbers")
            continue
        x1, x2 = (min(max(x, 0.0), float(width)) for x in corners[::2])
        y1, y2 = (min(max(y, 0.0), float(height)) for y in corners[1::2])
        if x2 <= x1 or y2 <= y1:
            notes.dropped.append(f"{file.stem}: {name} {corners} has no area")
            continue
        if (x1, y1, x2, y2) != corners:
            notes.clipped.append(f"{file.stem}: {name} {corners} in {width} x {height}")
        objects.append((name, (x1, y1, x2, y2), element.findtext("difficult", "0").strip() == "1"))
    _raise(problems)
    return _Entry({"id": image_id, "file_name": image.name, "width": width, "height": height}, objects)


def _read_list(path: Path, known: dict[str, _Entry], problems: list[str]) -> list[str]:
    try:
        lines = Path(path).read_text().splitlines()
    except (OSError, ValueError) as error:
        problems.append(f"{path}: cannot be read: {error}")
        return []
    stems = [line.split()[0] for line in lines if line.strip()]
    problems += [f"{path}: {stem!r} has no usable XML file" for stem in stems if stem not in known]
    problems += [f"{path}: {stem!r} occurs {count} times" for stem, count in Counter(stems).items() if count > 1]
    return stems


def _write(path: Path, entries: list[_Entry], names: list[str], number: int) -> dict[str, int]:
    """Write a COCO file with annotation ids from `number` on; objects by category."""
    annotations = []
    for entry in entries:
        for name, (x1, y1, x2, y2), is_difficult in entry.objects:
            size = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "iscrowd": int(is_difficult)}
            ids = {"id": number, "image_id": entry.image["id"], "category_id": names.index(name) + 1}
            annotations.append(ids | size)
            number += 1
    document = {
        "images": [entry.image for entry in entries],
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for i, name in enumerate(names, 1)],
    }
    try:
        write_file(path, json.dumps(document, separators=(",", ":")).encode())
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror or error}") from None
    counts = Counter(names[a["category_id"] - 1] for a in annotations)
    return {name: counts[name] for name in names}


def _raise(problems: list[str]) -> None:
    if len(problems) == 1:
        raise DataError(problems[0], problems)
    if problems:
        more = [f"... and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
        raise DataError("\n  ".join([f"{len(problems)} problems", *problems[:SHOWN], *more]), problems)
