"""Verbs that bring models in from other programs and out to them."""

import argparse
import json
from pathlib import Path

from pipeline.arguments import Verbs
from pipeline.verbs.shared import MODEL, values_and_places
from tood.errors import ToodError


def add_to(verbs: Verbs) -> None:
    added = verbs.add("import", _import, "make a model of a checkpoint of mmdetection or of TOOD's first code")
    added.add_argument("file", help=".pth of mmdetection 2 or 3, or a state dict as .pth or .safetensors; read without running it")
    added.add_argument("settings", nargs="*", metavar="key=value", help="what the file does not say: model.detector=tood")
    added.add_argument("--output", required=True, metavar="FOLDER", help="model folder to make")
    added.add_argument("--config", metavar="EXPERIMENT", help="whose detector it is, instead of what the file says")
    added.add_argument("--classes", metavar="NAMES", help="a JSON file (COCO annotations, or a list) or names: red,green")
    added.add_argument("--register", metavar="NAME", help="measure it on the val split of data.*, then register it")
    added.add_argument("--json", action="store_true")

    added = verbs.add("export", _export, "write a model for other programs, checked against the model itself")
    added.add_argument("model", help=MODEL)
    added.add_argument("--format", required=True, choices=["torch", "onnx", "mmdet"])
    added.add_argument("--output", required=True, metavar="FILE", help=".pt2 of torch.export, .onnx, or .pth for mmdetection 3")
    added.add_argument("--no-nms", action="store_true", help="give all candidates, without suppression")
    shape = added.add_mutually_exclusive_group()
    shape.add_argument("--size", type=_sides, metavar="HEIGHTxWIDTH", help="of the images; default: as the model's recipe resizes")
    shape.add_argument("--dynamic", action="store_true", help="one program for images of all sizes")
    added.add_argument("--image", nargs="+", default=[], metavar="FILE", help="photographs to compare on")
    added.add_argument("--set", action="append", default=[], metavar="key=value", help="such as tracking.uri")
    added.add_argument("--json", action="store_true")


def _import(options: argparse.Namespace) -> None:
    from pipeline.exchange import import_model

    found = import_model(
        Path(options.file).expanduser(),
        Path(options.output).expanduser(),
        config=options.config,
        settings=options.settings,
        classes=options.classes,
        register=options.register,
    )
    version = f"models:/{found.version.name}/{found.version.version}" if found.version else None
    if options.json:
        print(json.dumps({**found._asdict(), "folder": str(found.folder), "version": version}))
        return
    print(f"a {found.objective} detector of {len(found.names)} classes, all {found.tensors} tensors there")
    print(f"its recipe is from {found.source}")
    if found.assumed:
        print(f"not in the file, taken as published: {' '.join(found.assumed)}   (name others as settings)")
    print(f"saved: {found.folder}" + (f"\nregistered: {version} ({found.version.decision.reason})" if version else ""))


def _export(options: argparse.Namespace) -> None:
    if options.format == "mmdet" and (options.no_nms or options.size or options.dynamic or options.image):
        raise ToodError("tood export: --format mmdet writes weights; --no-nms, --size, --dynamic and --image are for programs")
    from pipeline.detect import find_model
    from pipeline.exchange import check_file_name, export_model

    file = Path(options.output).expanduser()
    check_file_name(options.format, file)
    values, tracking, output = values_and_places(None, options.set)
    found = export_model(
        find_model(options.model, tracking, output / "models"),
        options.format,
        file,
        nms=not options.no_nms,
        size=options.size,
        any_size=options.dynamic,
        images=options.image,
        values=values,
    )
    apart = found.deviation
    if options.json:
        print(
            json.dumps({"file": str(file), "format": found.form, "tensors": found.tensors, "deviation": apart and apart._asdict()})
        )
    elif apart is None:
        print(f"{file}: {found.tensors} tensors by mmdetection's names, read back and equal")
    else:
        print(
            f"{file}: run beside the model: {apart.compared} detections, apart by at most {apart.score:.2g} in scores and "
            f"{apart.box:.2g} px in boxes"
        )


def _sides(text: str) -> tuple[int, int]:
    height, cross, width = text.lower().partition("x")
    if cross and height.isdecimal() and width.isdecimal() and all(32 <= int(side) <= 8192 for side in (height, width)):
        return int(height), int(width)
    raise argparse.ArgumentTypeError(f"{text!r} is not HEIGHTxWIDTH in pixels from 32 to 8192, such as 800x1333")
