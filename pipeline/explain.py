"""`tood explain`: pictures of where detectors are sure, where they are exact, and which points learn an object."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from pipeline.data.cache import cache_of, local_data
from pipeline.data.source import is_remote
from pipeline.detect import image_files, open_model, require_same_classes
from pipeline.plots.explanation import explanation_picture
from pipeline.refusals import make_folder
from pipeline.tracking.log_to import log_to
from tood.checkpoint import Model
from tood.data.coco import read_split
from tood.data.decoding import decode
from tood.data.record import ImageRecord
from tood.data.transforms import load_sample, resize, resize_shape
from tood.detector import Detector
from tood.errors import DataError
from tood.explanation import BestPoint, Explanation, explain
from tood.recipe import Recipe

LONGEST_NAME = 34  # characters of a detector's name that fit beside its row


class Opened(NamedTuple):
    name: str
    title: str  # its name and kind, short enough for a row
    model: Model
    recipe: Recipe
    detector: Detector


def explain_images(
    checkpoints: Mapping[str, Path],
    images: Sequence[str],
    values: Mapping[str, Any],
    target: Path,
    *,
    number: int | None,
    tracking: str,
    run_id: str | None,
) -> list[dict[str, Any]]:
    """A picture of each image, a row a checkpoint, and explanations.json in the folder `target`; what the JSON holds.

    checkpoints: name -> path. The objects are those that the data named by `values` has for an image, looked up by its
    file; an image that is not in them is explained by its best detection. number: the one object to show, from 1.
    """
    files = image_files(images)
    opened = [_open(name, path, values) for name, path in checkpoints.items()]
    records = _records(files, opened, values)
    for file in files if number else ():
        count = int((~records[file].crowd).sum()) if file in records else 0
        if not 1 <= number <= count:
            raise DataError(f"--object {number}: {file} has {count or 'no'} annotated objects in the data; give another number")
    make_folder(target, "--output")
    about = [[m.model.info.config_hash, m.model.info.step] for m in opened], [file.name for file in files], number
    with log_to(tracking, values, run_id, kind="explain", name=" and ".join(checkpoints), identity=about) as run:
        summary = []
        for place, file in enumerate(files, start=1):
            found = [_explain(model, file, records.get(file), number) for model in opened]
            picture_file = f"{place:04d}-{file.stem}.png"
            title = file.name if number is None else f"{file.name}, object {number}"
            image, rows = decode(file), list(zip(opened, found, strict=True))
            picture = explanation_picture(image, [(model.title, e) for model, e in rows], title)
            picture.save(target / picture_file)
            models = {model.name: _account(model, e, image.shape[1:]) for model, e in rows}
            summary.append({"file_name": str(file), "picture": picture_file, "annotated": file in records, "models": models})
            if run:
                run.image(picture, f"explain/{picture_file}")
        (target / "explanations.json").write_text(json.dumps(summary, indent=1))
        if run:
            run.document(summary, "explain/explanations.json")
    return summary


def line(image: Mapping[str, Any]) -> str:
    """What an image's summary says, for a person."""
    parts = [f"{image['picture']}: {'annotated objects' if image['annotated'] else 'no annotations, so the best detection'}"]
    for name, objects in image["models"].items():
        tasks = [(o["classification"], o["localisation"]) for o in objects if o["classification"]]
        if not image["annotated"]:
            said = ", ".join(f"{o['class']} {o['classification']['score']:.3f}" for o in objects if o["classification"])
        elif tasks:
            sure, exact = (np.mean([task["iou"] for task in column]) for column in zip(*tasks, strict=True))
            same = sum(a["point"] == b["point"] and a["stride"] == b["stride"] for a, b in tasks)
            said = f"IoU {sure:.3f} at the surest point, {exact:.3f} at the best; both in one for {same} of {len(tasks)} objects"
        else:
            said = "no point lies in an object"
        parts.append(f"  {name}: {said}")
    return "\n".join(parts)


def _open(name: str, path: Path, values: Mapping[str, Any]) -> Opened:
    model, recipe, detector = open_model(path, values)
    info, choices = model.info, recipe.model
    short = name if len(name) <= LONGEST_NAME else f"...{name[3 - LONGEST_NAME :]}"
    title = f"{short}\n{choices.tower}, {choices.objective.name}, epoch {info.epoch}"
    return Opened(name, title, model, recipe, detector)


def _records(files: Sequence[Path], opened: Sequence[Opened], values: Mapping[str, Any]) -> dict[Path, ImageRecord]:
    """The images' entries in the val split that `values` describe, or else in its train split; none where they name no data."""
    if not {"root", "source", "val", "train"} & (values.get("data") or {}).keys():
        return {}
    config, found = opened[0].recipe.data, {}
    for split in ("val", "train"):
        missing = {file.resolve(): file for file in files if file not in found}
        there = is_remote(config.root) or (Path(config.root).expanduser() / config.train.annotations).is_file()
        if split == "train" and not (missing and there):
            break
        data = read_split(local_data(config, cache_of(values), [split]), split)
        for model in opened:
            require_same_classes(model.model, data)
        of_path = {record.path.resolve(): record for record in data.images if record.path.name in {f.name for f in files}}
        found |= {file: of_path[path] for path, file in missing.items() if path in of_path}
    return found


def _explain(opened: Opened, file: Path, record: ImageRecord | None, number: int | None) -> Explanation:
    if record is not None:
        sample = load_sample(record, opened.recipe.data, training=False)
        return explain(opened.detector, sample.image, sample.boxes, sample.labels, None if number is None else number - 1)
    image, config = decode(file), opened.recipe.data
    return explain(opened.detector, resize(image, resize_shape(*image.shape[1:], config.long_side, config.short_side)))


def _account(opened: Opened, e: Explanation, size: Sequence[int]) -> list[dict[str, Any]]:
    """One entry an object, in px of the image as it is in its file; a task is null where no point lies in the object."""
    scale = torch.tensor([size[1] / e.size[1], size[0] / e.size[0]])
    names = opened.model.info.names

    def task(best: BestPoint, i: int) -> dict[str, Any] | None:
        point = int(best.point[i])
        if point < 0:
            return None
        return {
            "point": _rounded(e.priors.centres[point] * scale),
            "stride": int(e.priors.strides[point]),
            "score": round(float(best.score[i]), 4),
            "iou": round(float(best.iou[i]), 4),
            "box": _rounded(best.box[i] * scale.repeat(2)),
        }

    return [
        {
            "number": e.numbers[i] if e.numbers else None,
            "class": names[label],
            "box": _rounded(e.objects[i] * scale.repeat(2)),
            "points": int((e.owner == i).sum()),
            "classification": task(e.classified, i),
            "localisation": task(e.localised, i),
        }
        for i, label in enumerate(e.labels.tolist())
    ]


def _rounded(values: torch.Tensor) -> list[float]:
    return [round(value, 1) for value in values.tolist()]
