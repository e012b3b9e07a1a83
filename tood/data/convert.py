"""Pascal VOC to COCO: a folder of XML files and its image sets -> one COCO JSON a split.

Corners are taken as they are (x1, y1, x2, y2 = xmin, ymin, xmax, ymax): VOC's own sets count pixels from 1, most others
from 0, and the files do not say which. Image ids count the XML files in the order of their names, so that a split more
or less leaves them alone; annotation ids run through the splits.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

from tood.data.conversion import SUFFIXES, Conversion, Entry, Notes, Thing, fit, image_size, inside, refuse, write_splits
from tood.errors import DataError


def convert_voc(
    images: Path,
    annotations: Path,
    lists: Mapping[str, Path] | None,
    output: Path,
    *,
    categories: Sequence[str] | None = None,
    prefix: str = "",
) -> Conversion:
    """Write output/instances_<split>.json for each split of `lists`, or output/instances.json of all files without it.

    images, annotations: folders whose files share their names up to the suffix. lists: split -> image set, a text file
    whose lines begin with such a name (ImageSets/Main/train.txt). categories: names in the order of their ids 1, 2, ...;
    by default those found, sorted. prefix: put before each file_name, which is relative to `images` without it. Parts of
    an object (VOC's person layout) are not objects.

    Raises DataError that lists every broken XML, missing image or unknown name; nothing is written then.
    """
    notes, problems = Notes.empty(), []
    entries = read_voc(Path(images), Path(annotations), notes, problems, prefix=prefix)
    names = category_names(entries.values(), categories, problems)
    members = {"": list(entries)} if lists is None else {}
    for split, path in (lists or {}).items():
        members[split] = _read_list(path, entries, problems)
    refuse(problems)
    notes.left_out.extend(sorted(set(entries) - {stem for stems in members.values() for stem in stems}))
    chosen = {split: [entries[stem] for stem in sorted(stems)] for split, stems in members.items()}
    return write_splits(Path(output), chosen, names, notes)


def convert_voc_folder(root: Path, output: Path, *, categories: Sequence[str] | None = None) -> Conversion:
    """The layout of VOC's own sets beneath `root`: JPEGImages, Annotations, ImageSets/Main. file_name is relative to root.

    Of the image sets, those named train, val, trainval and test are taken; VOC's others list the objects of one class.
    Without any of them, all files are written as one split.
    """
    root = Path(root)
    sets = {name: root / f"ImageSets/Main/{name}.txt" for name in ("train", "val", "trainval", "test")}
    lists = {name: path for name, path in sets.items() if path.is_file()}
    if {"train", "val"} <= lists.keys():
        lists.pop("trainval", None)
    folders = inside(root, "JPEGImages"), inside(root, "Annotations")
    return convert_voc(*folders, lists or None, output, categories=categories, prefix="JPEGImages/")


def read_voc(
    images: Path, annotations: Path, notes: Notes, problems: list[str], *, prefix: str = "", first: int = 1
) -> dict[str, Entry]:
    """Every XML file of a folder by its name without the suffix; image ids count from `first`."""
    for folder in (images, annotations):
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder")
    image_files = {file.stem: file for file in sorted(images.iterdir()) if file.suffix.lower() in SUFFIXES}
    entries, files = {}, sorted(annotations.glob("*.xml"))
    for image_id, file in enumerate(files, first):
        try:
            entries[file.stem] = _read(file, image_id, image_files, notes, prefix)
        except DataError as error:
            problems += error.problems
    if not files:
        problems.append(f"{annotations}: no .xml file in this folder")
    return entries


def category_names(entries, categories: Sequence[str] | None, problems: list[str]) -> list[str]:
    """The names given, which must hold all that occur; or those that occur, sorted."""
    found = {thing.category for entry in entries for thing in entry.things}
    names = list(categories or sorted(found))
    problems += [f"category {name!r} is not among {', '.join(names)}" for name in sorted(found - set(names))]
    return names


class _NoDoctype(ElementTree.TreeBuilder):
    def doctype(self, name: str, public_id: str | None, system: str | None) -> None:
        raise DataError("has a DOCTYPE, which VOC does not need and which can define entities that explode; remove it")


def _read(file: Path, image_id: int, image_files: dict[str, Path], notes: Notes, prefix: str) -> Entry:
    """One XML file. Raises DataError with all its problems."""
    try:
        parser = ElementTree.XMLParser(target=_NoDoctype())
        parser.feed(inside(file.parent, file.name).read_bytes())
        root = parser.close()
    except ElementTree.ParseError as error:
        raise DataError(f"{file}: not XML: {error}; correct it, or remove it") from None
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}") from None
    except DataError as error:
        raise DataError(f"{file}: {error}") from None
    image = image_files.get(file.stem)
    if image is None:
        raise DataError(f"{file}: no image of this name; add it, or remove the XML file")
    width, height, _ = image_size(inside(image.parent, image.name))
    said = tuple(root.findtext(f"size/{side}", "none") for side in ("width", "height"))
    if said != (str(width), str(height)):
        notes.resized.append(f"{file.stem}: {width} x {height}, its XML says {said[0]} x {said[1]}")

    things, problems = [], []
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
        if fitted := fit(corners, width, height, f"{file.stem}: {name}", notes):
            things.append(Thing(name, fitted, element.findtext("difficult", "0").strip() == "1"))
    refuse(problems)
    return Entry({"id": image_id, "file_name": f"{prefix}{image.name}", "width": width, "height": height}, things)


def _read_list(path: Path, known: dict[str, Entry], problems: list[str]) -> list[str]:
    try:
        lines = Path(path).read_text().splitlines()
    except (OSError, ValueError) as error:
        problems.append(f"{path}: cannot be read: {error}")
        return []
    stems = [line.split()[0] for line in lines if line.strip()]
    problems += [f"{path}: {stem!r} has no usable XML file" for stem in stems if stem not in known]
    problems += [f"{path}: {stem!r} occurs {count} times" for stem, count in Counter(stems).items() if count > 1]
    return stems
