"""Roboflow's exports to COCO's form: folders train/, valid/ and test/, in its COCO, its YOLO or its VOC layout.

All have one folder a split; which layout it is, the files tell. Its COCO form has an extra category 0 that groups the
others and has no objects: it is left out. Images stay where they are: file_name is relative to the export's folder.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tood.data.conversion import (
    SUFFIXES,
    Conversion,
    Entry,
    Notes,
    Thing,
    files_below,
    fit,
    image_size,
    inside,
    refuse,
    write_splits,
)
from tood.data.convert import category_names, read_voc
from tood.data.convert_yolo import class_names, convert_members, read_yaml
from tood.errors import DataError
from tood.results import is_box, is_id, read_json

FOLDERS = {"train": "train", "valid": "val", "val": "val", "test": "test"}
COCO = "_annotations.coco.json"


def convert_roboflow(root: Path, output: Path) -> Conversion:
    """Write output/instances_train.json, _val.json and _test.json, as far as the export has these splits.

    Raises DataError that lists every problem; nothing is written then.
    """
    root = Path(root)
    folders = {split: root / word for word, split in FOLDERS.items() if (root / word).is_dir()}
    if not folders:
        raise DataError(f"{root}: has none of the folders {', '.join(FOLDERS)} that Roboflow exports; give the unpacked folder")
    for folder in folders.values():
        inside(root, folder.name)
    if any((folder / COCO).is_file() for folder in folders.values()):
        return _convert_coco(root, output, folders)
    if any((folder / "labels").is_dir() for folder in folders.values()):
        return _convert_yolo(root, output, folders)
    if any(next(folder.glob("*.xml"), None) for folder in folders.values()):
        return _convert_voc(root, output, folders)
    raise DataError(f"{root}: neither {COCO} nor labels/ nor .xml files in its splits; export as COCO, YOLO or Pascal VOC")


def _convert_yolo(root: Path, output: Path, folders: dict[str, Path]) -> Conversion:
    """The export's data.yaml names folders that lie outside of it (../train/images): its own folders count."""
    problems: list[str] = []
    members = {
        split: [file for file in files_below(root, folder / "images", problems) if file.suffix.lower() in SUFFIXES]
        for split, folder in folders.items()
    }
    return convert_members(root, output, members, class_names(read_yaml(root), root), Notes.empty(), problems)


def _convert_voc(root: Path, output: Path, folders: dict[str, Path]) -> Conversion:
    notes, problems, members, first = Notes.empty(), [], {}, 1
    for split, folder in folders.items():
        members[split] = list(read_voc(folder, folder, notes, problems, prefix=f"{folder.name}/", first=first).values())
        first += len(list(folder.glob("*.xml")))
    names = category_names([entry for entries in members.values() for entry in entries], None, problems)
    refuse(problems)
    return write_splits(output, members, names, notes)


def _convert_coco(root: Path, output: Path, folders: dict[str, Path]) -> Conversion:
    notes, problems, documents = Notes.empty(), [], {}
    for split, folder in folders.items():
        try:
            documents[split] = _document(inside(root, f"{folder.name}/{COCO}"))
        except DataError as error:
            problems += error.problems
    refuse(problems)
    names_of = {split: _category_names(document) for split, document in documents.items()}
    first = next(iter(names_of))
    for split, names in names_of.items():
        if names != names_of[first]:
            problems.append(f"{folders[split].name}/{COCO}: its categories differ from those of {folders[first].name}/{COCO}")
    used = {a["category_id"] for document in documents.values() for a in document["annotations"] if is_id(a.get("category_id"))}
    named = (c.get("supercategory") for document in documents.values() for c in document["categories"])
    groups = {group for group in named if isinstance(group, str)}
    names = {i: name for i, name in names_of[first].items() if i in used or not (i == 0 and name in groups)}
    if len(set(names.values())) < len(names):
        problems.append(f"{folders[first].name}/{COCO}: two categories have one name; rename one")
    members, number = {}, 1
    for split, document in documents.items():
        members[split] = _entries(root, folders[split], document, names, number, notes, problems)
        number += len(document["images"])
    refuse(problems)
    return write_splits(output, members, [names[i] for i in sorted(names)], notes)


def _document(file: Path) -> dict[str, list[dict[str, Any]]]:
    document = read_json(file)
    parts = {part: document.get(part) if isinstance(document, dict) else None for part in ("images", "annotations", "categories")}
    if not all(isinstance(entries, list) and all(isinstance(e, dict) for e in entries) for entries in parts.values()):
        raise DataError(f"{file}: not a COCO file: expected an object with lists of {', '.join(parts)}")
    for c in parts["categories"]:
        if not is_id(c.get("id")) or not isinstance(c.get("name"), str):
            raise DataError(f"{file}: category {c.get('id')!r:.40} needs a whole number as id and a name; give it both")
    return parts


def _category_names(document: dict[str, list[dict[str, Any]]]) -> dict[int, str]:
    return {c["id"]: c["name"] for c in document["categories"]}


def _entries(
    root: Path, folder: Path, document: dict, names: dict[int, str], first: int, notes: Notes, problems: list[str]
) -> Sequence[Entry]:
    """The images of one split with their objects; image ids count from `first` in the file's order."""
    where, entries = f"{folder.name}/{COCO}", {}
    for number, image in enumerate(document["images"], first):
        key, file_name = image.get("id"), image.get("file_name")
        try:
            if not isinstance(file_name, str) or not file_name or not is_id(key) or key in entries:
                raise DataError(f"image {key!r:.40} ({file_name!r:.80}) needs an id of its own and a file_name; give it both")
            name = f"{folder.name}/{file_name}"
            width, height, _ = image_size(inside(root, name))
        except DataError as error:
            problems += [f"{where}: {problem}" for problem in error.problems]
            continue
        if (image.get("width"), image.get("height")) != (width, height):
            notes.resized.append(f"{name}: {width} x {height}, {where} says {image.get('width')} x {image.get('height')}")
        entries[key] = Entry({"id": number, "file_name": name, "width": width, "height": height}, [])
    known = {image.get("id") for image in document["images"] if is_id(image.get("id"))}
    for a in document["annotations"]:
        what, box = f"{where}: annotation {a.get('id')!r:.40}", a.get("bbox")
        if not is_id(a.get("image_id")) or a["image_id"] not in known:
            problems.append(f"{what}: image_id {a.get('image_id')!r:.40} is not in the file; correct it")
        elif not is_id(a.get("category_id")) or a["category_id"] not in names:
            problems.append(f"{what}: category_id {a.get('category_id')!r:.40} is not in the file; correct it")
        elif not is_box(box):
            problems.append(f"{what}: bbox {box!r:.80} is not four finite numbers [x, y, width, height]; correct it")
        elif (entry := entries.get(a["image_id"])) is not None:
            corners = (box[0], box[1], box[0] + box[2], box[1] + box[3])
            size = entry.image["width"], entry.image["height"]
            if fitted := fit(corners, *size, f"{what}: {names[a['category_id']]}", notes, slack=1.0):
                entry.things.append(Thing(names[a["category_id"]], fitted, a.get("iscrowd", 0) == 1))
    return list(entries.values())
