"""YOLO to COCO: data.yaml, folders of images and text files of labels -> one COCO JSON a split.

A line of labels is `class cx cy w h`, or `class x1 y1 x2 y2 x3 y3 ...`, a polygon, of which the box is taken; all of it in
shares of the image's width and height, classes counted from 0. Category k + 1 is class k. An image without a file of labels
holds no objects. Images stay where they are: file_name is relative to the data set's folder.
"""

import math
import re
from collections.abc import Mapping
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
from tood.errors import ConfigError, DataError
from tood.plain_yaml import explain, read_yaml_text

SPLITS = {"train": "train", "val": "val", "valid": "val", "test": "test"}  # the word in data.yaml -> ours
TOLERANCE = 1e-3  # that a share may lie outside [0, 1] by rounding
SLACK = 1.0  # px that a box may stick out by the same, without a note
MOST_VALUES = 200_000  # of data.yaml, which may name very many classes
_INTEGER = re.compile(r"\d{1,9}(\.0*)?")


def convert_yolo(root: Path, output: Path) -> Conversion:
    """Write output/instances_<split>.json for each split that the folder's data.yaml names.

    The value of a split is a folder of images, a text file that lists images, or a list of these, relative to the folder
    (data.yaml's `path` counts where it leads to a folder inside); without any, images/train and images/val are taken. The
    labels of images/.../a.jpg are labels/.../a.txt, or lie beside it where no part of its path is `images`.

    Raises DataError that lists every bad line as file:line, bad image and bad name; nothing is written then.
    """
    root = Path(root)
    problems, notes = [], Notes.empty()
    content = read_yaml(root)
    names = class_names(content, root)
    base = _base(root, content)
    members: dict[str, list[Path]] = {}
    for word, split in SPLITS.items():
        if content.get(word):
            members.setdefault(split, []).extend(_images(root, base, content[word], word, problems))
    if not members:
        found = {split: root / "images" / word for word, split in SPLITS.items() if (root / "images" / word).is_dir()}
        members = {split: _images_below(root, folder, problems) for split, folder in found.items()}
    if not members:
        problems.append(f"{root}: neither data.yaml nor images/train, images/val say which images there are")
    return convert_members(root, output, members, names, notes, problems)


def convert_members(
    root: Path, output: Path, members: Mapping[str, list[Path]], names: list[str], notes: Notes, problems: list[str]
) -> Conversion:
    """Read the labels of each split's images and write the splits, unless there are problems."""
    entries: dict[str, list[Entry]] = {}
    owner: dict[Path, str] = {}
    number, read = 1, set()
    for split, images in members.items():
        entries[split] = []
        for image in images:
            if image in owner:
                problems.append(f"{image.relative_to(root)}: is in {owner[image]} and again in {split}")
                continue
            owner[image] = split
            labels = _labels_of(root, image)
            read.add(labels)
            try:
                entries[split].append(_entry(root, image, labels, number, names, notes))
            except DataError as error:
                problems += error.problems
            number += 1
        if not images:
            problems.append(f"{split}: no image ({', '.join(SUFFIXES)})")
    folders = {labels.parent for labels in read if labels.parent.is_dir()}
    if not folders and owner:
        problems.append(f"{_labels_of(root, next(iter(owner))).parent}: no such folder of labels")
    unread = {file for folder in folders for file in folder.glob("*.txt")} - read - {folder / "classes.txt" for folder in folders}
    notes.left_out.extend(sorted(file.relative_to(root).as_posix() for file in unread))
    refuse(problems)
    return write_splits(output, entries, names, notes)


def read_yaml(root: Path) -> dict[str, Any]:
    """data.yaml of the folder, or its only YAML file; read safely, as plain values."""
    import yaml

    if not root.is_dir():
        raise DataError(f"{root}: no such folder")
    found = [root / name for name in ("data.yaml", "data.yml") if (root / name).is_file()]
    found = found or sorted([*root.glob("*.yaml"), *root.glob("*.yml")])
    if len(found) != 1 and not (found and found[0].stem == "data"):
        raise DataError(f"{root}: has {len(found) or 'no'} YAML files; name the one with the classes data.yaml")
    file = inside(root, found[0].name)
    try:
        return yaml.safe_load(read_yaml_text(file, MOST_VALUES))
    except ConfigError as error:
        raise DataError(str(error)) from None
    except (ValueError, yaml.YAMLError) as error:
        raise DataError(f"{file}: {explain(error)}") from None


def class_names(content: Mapping[str, Any], root: Path) -> list[str]:
    """`names`, a list or a mapping from 0 on. Raises DataError."""
    names = content.get("names")
    if isinstance(names, dict) and sorted(names, key=str) == sorted(range(len(names)), key=str):
        names = [names[i] for i in range(len(names))]
    if not isinstance(names, list) or not names or not all(isinstance(name, str | int | float) for name in names):
        raise DataError(f"{root}: `names` in data.yaml has to list the classes, or map 0, 1, ... to them; write such a list")
    names = [str(name) for name in names]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"{root}: `names` in data.yaml holds {twice[0]!r} twice; rename one")
    return names


def _base(root: Path, content: Mapping[str, Any]) -> Path:
    """What data.yaml's folders are relative to: its `path`, which others have often left as it was on their machine."""
    said = content.get("path")
    if isinstance(said, str) and said and not Path(said).is_absolute():
        path = inside(root, said) if ".." not in Path(said).parts else root
        if path.is_dir():
            return path
    return root


def _images(root: Path, base: Path, value: Any, word: str, problems: list[str]) -> list[Path]:
    found = []
    for said in value if isinstance(value, list) else [value]:
        try:
            if not isinstance(said, str):
                raise DataError(f"data.yaml: {word}: expected a folder or a text file of images, got {said!r:.80}")
            path = inside(root, (base / said).relative_to(root).as_posix())
        except ValueError:
            problems.append(f"data.yaml: {word}: {said} leaves {root}; make it relative to that folder")
        except DataError as error:
            problems += [f"data.yaml: {word}: {problem}" for problem in error.problems]
        else:
            if path.is_dir():
                found += _images_below(root, path, problems)
            elif path.is_file():
                found += _listed(root, base, path, problems)
            else:
                problems.append(f"data.yaml: {word}: {path}: no such folder or file; correct it")
    return found


def _images_below(root: Path, folder: Path, problems: list[str]) -> list[Path]:
    return [file for file in files_below(root, folder, problems) if file.suffix.lower() in SUFFIXES]


def _listed(root: Path, base: Path, file: Path, problems: list[str]) -> list[Path]:
    """The images that a text file lists, a line each."""
    found = []
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        problems.append(f"{file}: cannot be read: {error}")
        return []
    for number, line in enumerate(map(str.strip, lines), 1):
        if not line:
            continue
        try:
            path = inside(root, (base / line).relative_to(root).as_posix())
            path = path.relative_to(root)  # "./images/a.jpg" is images/a.jpg
            if not (root / path).is_file():
                raise DataError(f"{line}: no such file")
            found.append(root / path)
        except ValueError:
            problems.append(f"{file}:{number}: {line} leaves {root}")
        except DataError as error:
            problems += [f"{file}:{number}: {problem}" for problem in error.problems]
    return found


def _labels_of(root: Path, image: Path) -> Path:
    parts = list(image.relative_to(root).parts)
    places = [i for i, part in enumerate(parts[:-1]) if part == "images"]
    if places:
        parts[places[-1]] = "labels"
    return root.joinpath(*parts).with_suffix(".txt")


def _entry(root: Path, image: Path, labels: Path, number: int, names: list[str], notes: Notes) -> Entry:
    """One image and its labels. Raises DataError with all their problems."""
    width, height, turned = image_size(image)
    name = image.relative_to(root).as_posix()
    record = {"id": number, "file_name": name, "width": width, "height": height}
    try:
        lines = inside(root, labels.relative_to(root).as_posix()).read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        notes.unlabelled.append(name)
        return Entry(record, [])
    except (OSError, ValueError) as error:
        raise DataError(f"{labels}: cannot be read: {error}") from None
    if turned and any(map(str.strip, lines)):
        raise DataError(
            f"{image}: its EXIF tag turns or mirrors it, so that its labels do not fit its pixels as they are stored; turn the "
            "pixels and remove the tag (exiftran -ai, jhead -autorot)"
        )
    things, problems, seen = [], [], set()
    for at, line in enumerate(lines, 1):
        words = line.split()
        if not words:
            continue
        try:
            category, corners = _parse(words, names)
        except DataError as error:
            problems.append(f"{labels}:{at}: {error}")
            continue
        if tuple(words) in seen:
            notes.dropped.append(f"{labels.relative_to(root)}:{at}: repeats an earlier line")
            continue
        seen.add(tuple(words))
        pixels = [round(share * side, 4) for share, side in zip(corners, (width, height) * 2, strict=True)]
        if fitted := fit(pixels, width, height, f"{labels.relative_to(root)}:{at}: {category}", notes, slack=SLACK):
            things.append(Thing(category, fitted))
    refuse(problems)
    return Entry(record, things)


def _parse(words: list[str], names: list[str]) -> tuple[str, tuple[float, float, float, float]]:
    """Class and corners, in shares, of a line's words."""
    if not _INTEGER.fullmatch(words[0]) or not (number := int(float(words[0]))) < len(names):
        raise DataError(f"class {words[0]!r:.20} is not one of 0 to {len(names) - 1}")
    try:
        values = [float(word) for word in words[1:]]
    except ValueError:
        values = [math.nan]
    if not all(math.isfinite(value) for value in values):
        raise DataError(f"{' '.join(words)!r:.80} holds what is no number; correct it")
    if len(values) != 4 and (len(values) < 6 or len(values) % 2):
        raise DataError(f"{len(values)} numbers after the class; expected 4 of a box or 6, 8, ... of a polygon")
    if any(not -TOLERANCE <= value <= 1 + TOLERANCE for value in values):
        raise DataError(f"{' '.join(words)!r:.80} is not in shares of the image, 0 to 1; divide by its width and height")
    if len(values) == 4:
        cx, cy, w, h = values
        return names[number], (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2)
    x, y = values[::2], values[1::2]
    return names[number], (min(x), min(y), max(x), max(y))
