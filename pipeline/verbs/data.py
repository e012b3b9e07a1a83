"""Verbs on data sets."""

import argparse
import json
import sys
from pathlib import Path

from pipeline.arguments import Verbs, number
from pipeline.verbs.shared import experiment_and_settings
from tood.errors import DataError, ToodError

COCO_FILE = "--annotations FILE with --images FOLDER"


def add_to(verbs: Verbs) -> None:
    data = verbs.group("data", "check, convert, describe and pack data sets")
    added = data.add("check", _check, "read a data set and list every problem at once")
    _add_data(added, "whose data to check")
    added.add_argument("--json", action="store_true")

    added = data.add("stats", _stats, "counts, sizes, shapes and points inside objects, with pictures")
    _add_data(added, "whose data and resize")
    added.add_argument("--output", default="runs/stats", help="folder for stats.json and pictures")
    added.add_argument("--json", action="store_true")

    added = data.add("convert", _convert, "convert a data set to COCO's form; the images stay where they are")
    added.add_argument("format", choices=["voc", "yolo", "roboflow"])
    added.add_argument("--root", help="the data set's folder, which becomes data.root")
    added.add_argument("--images", help="voc without --root: folder of images (JPEGImages)")
    added.add_argument("--annotations", help="voc without --root: folder of XML files (Annotations)")
    added.add_argument("--lists", nargs="*", default=[], help="voc without --root: image set files, a split each")
    added.add_argument("--output", required=True, help="folder for the JSON files")
    added.add_argument("--json", action="store_true")

    added = data.add("pack", _pack, "store a data set in shards with hashes, for data.root=s3://... or https://...")
    added.add_argument("--root", required=True, help="the data set's folder; all its files but hidden ones are packed")
    added.add_argument("--output", required=True, metavar="URL", help="s3://bucket/prefix or a folder (that a web server shows)")
    added.add_argument("--shard-mb", type=number(int, 1, 4096), default=256, help="of images a shard (default 256)")
    added.add_argument("--plain", action="store_true", help="no shards: each file under its own name")
    added.add_argument("--json", action="store_true")


def _add_data(added: argparse.ArgumentParser, whose: str) -> None:
    added.add_argument("settings", nargs="*", metavar="EXPERIMENT key=value", help=whose)
    added.add_argument("--annotations", help="a COCO JSON file instead of an experiment's data")
    added.add_argument("--images", help="its folder of images")


def _check(options: argparse.Namespace) -> None:
    from pipeline.config import experiment_of
    from pipeline.data.check import check_experiment, check_file
    from pipeline.experiment_files import load_values

    if options.settings if options.annotations else options.images:
        raise ToodError(f"tood data check: give an experiment and settings, or {COCO_FILE}")
    said: list[str] = []
    say = said.append if options.json else print
    if options.annotations:
        problems = check_file(Path(options.annotations), _images(options), say)
    else:
        name, settings = experiment_and_settings(options.settings)
        experiment = experiment_of(load_values(name or "base/coco", settings))
        problems = check_experiment(experiment.data, experiment.cache, say)
    if options.json:
        print(json.dumps({"said": said, "problems": problems}))
    for problem in () if options.json else problems:
        print(f"  {problem}", file=sys.stderr)
    if problems:
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        raise DataError(f"{count}, listed above; mend them (bad boxes may be left out by data.invalid_boxes=drop)")


def _stats(options: argparse.Namespace) -> None:
    from pipeline.config import experiment_of
    from pipeline.data.stats import stats_of_experiment, stats_of_file
    from pipeline.experiment_files import load_values

    name, settings = experiment_and_settings(options.settings)
    if options.images and not options.annotations:
        raise ToodError(f"tood data stats: give an experiment and settings, or {COCO_FILE}")
    experiment, output = experiment_of(load_values(name or "base/coco", settings)), Path(options.output)
    if options.annotations:  # the experiment says how images are resized
        figures, table = stats_of_file(Path(options.annotations), _images(options), experiment, output)
    else:
        figures, table = stats_of_experiment(experiment, output)
    if options.json:
        print(json.dumps(figures))
        return
    print(table)
    print(f"stats.json, classes.png, sizes.png, shapes.png and points.png in {output}")


def _convert(options: argparse.Namespace) -> None:
    from tood.data.convert import convert_voc, convert_voc_folder
    from tood.data.convert_roboflow import convert_roboflow
    from tood.data.convert_yolo import convert_yolo

    output, parts = Path(options.output), (options.images, options.annotations)
    if bool(options.root) == any((*parts, options.lists)) or not (options.root or (options.format == "voc" and all(parts))):
        raise ToodError("tood data convert: give --root FOLDER; or, of voc, --images FOLDER and --annotations FOLDER, --lists too")
    if options.root:
        convert = {"voc": convert_voc_folder, "yolo": convert_yolo, "roboflow": convert_roboflow}[options.format]
        summary = convert(Path(options.root), output)
    else:
        lists = {Path(name).stem: Path(name) for name in options.lists} or None
        summary = convert_voc(*map(Path, parts), lists, output)
    plain = json.loads(json.dumps(summary._asdict(), default=str))
    if options.json:
        plain["splits"] = {name: json.loads(json.dumps(split._asdict(), default=str)) for name, split in summary.splits.items()}
        print(json.dumps(plain))
        return
    for name, split in summary.splits.items():
        boxes = ", ".join(f"{count:,} {category}" for category, count in list(split.boxes.items())[:10])
        more = f", {len(split.boxes) - 10} more classes" if len(split.boxes) > 10 else ""
        print(f"{name}: {split.images:,} images, {sum(split.boxes.values()):,} objects ({boxes}{more}) -> {split.path}")
    if summary.difficult:
        print(f"{summary.difficult} objects are marked difficult or crowds: neither trained on nor counted")
    for what in ("dropped", "clipped", "resized", "left_out", "unlabelled"):
        if lines := getattr(summary, what):
            shown = "".join(f"\n  {line}" for line in lines[:5]) + (f"\n  ... (--json lists all {len(lines)})" if lines[5:] else "")
            print(f"{what.replace('_', ' ')}: {len(lines)}{shown}")
    if options.root:
        written = " ".join(
            f"data.{name}.annotations={split.path.absolute()} data.{name}.images=."
            for name, split in summary.splits.items()
            if name in ("train", "val")
        )
        print(f"use it by: data.root={Path(options.root).absolute()} {written}")


def _pack(options: argparse.Namespace) -> None:
    from pipeline.data.pack import pack

    say = (lambda line: None) if options.json else print
    packed = pack(Path(options.root), options.output, shard_bytes=0 if options.plain else options.shard_mb << 20, say=say)
    if options.json:
        print(json.dumps(packed._asdict()))
        return
    print(f"{packed.files:,} files, {packed.size / 1e6:,.1f} MB, {packed.shards} shards: data.root={packed.url}")


def _images(options: argparse.Namespace) -> Path:
    return Path(options.images or Path(options.annotations).parent)
