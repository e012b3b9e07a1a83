"""Verbs on data sets."""

import argparse
import json
import sys
from pathlib import Path

from pipeline.arguments import Verbs
from pipeline.verbs.shared import experiment_and_settings
from tood.errors import DataError, ToodError


def add_to(verbs: Verbs) -> None:
    data = verbs.group("data", "check and convert data sets")
    added = data.add("check", _data_check, "read a data set and list every problem at once")
    added.add_argument("settings", nargs="*", metavar="EXPERIMENT key=value", help="whose data to check")
    added.add_argument("--annotations", help="a COCO JSON file instead of an experiment's data")
    added.add_argument("--images", help="its folder of images")
    added = data.add("convert", _data_convert, "convert a data set to COCO's form")
    added.add_argument("format", choices=["voc"])
    added.add_argument("--images", required=True, help="folder of images (JPEGImages)")
    added.add_argument("--annotations", required=True, help="folder of XML files (Annotations)")
    added.add_argument("--lists", nargs="*", default=[], help="image set files, a split each (ImageSets/Main/train.txt)")
    added.add_argument("--output", required=True, help="folder for the JSON files")


def _data_check(options: argparse.Namespace) -> None:
    from pipeline.config import experiment_of, load_values
    from pipeline.data_check import check_experiment, check_file

    if options.settings if options.annotations else options.images:
        raise ToodError("tood data check: give an experiment and settings, or --annotations FILE with --images FOLDER")
    if options.annotations:
        problems = check_file(Path(options.annotations), Path(options.images or Path(options.annotations).parent))
    else:
        experiment, settings = experiment_and_settings(options.settings)
        problems = check_experiment(experiment_of(load_values(experiment or "base/coco", settings)).data)
    for problem in problems:
        print(f"  {problem}", file=sys.stderr)
    if problems:
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        raise DataError(f"{count}, listed above; mend them (bad boxes may be left out by data.invalid_boxes=drop)")


def _data_convert(options: argparse.Namespace) -> None:
    from tood.data.convert import convert_voc

    lists = {Path(name).stem: Path(name) for name in options.lists} or None
    summary = convert_voc(Path(options.images), Path(options.annotations), lists, Path(options.output))
    print(json.dumps(summary, default=lambda value: getattr(value, "_asdict", lambda: str(value))(), indent=1))
