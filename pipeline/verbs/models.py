"""Verbs that use a trained model."""

import argparse
import json
import sys
import time
from pathlib import Path

from pipeline.arguments import Verbs, number
from pipeline.verbs.shared import MODEL, RUN, experiment_and_settings, values_and_places
from tood.errors import ToodError

FEW = 20  # images that are each told of
SAY_SECONDS = 5.0  # between two lines of progress


def add_to(verbs: Verbs) -> None:
    added = verbs.add("evaluate", _evaluate, "COCO's twelve figures of a model or of a file of detections")
    added.add_argument("settings", nargs="*", metavar="EXPERIMENT key=value", help="whose data to evaluate a model on")
    added.add_argument("--model", help="models:/NAME@alias, a model folder, or a .safetensors file")
    added.add_argument("--predictions", help="detections in COCO's results form")
    added.add_argument("--annotations", help="COCO JSON that --predictions are about")
    added.add_argument("--output", help="with --model: write the detections to this JSON file")
    added.add_argument("--per-class", action="store_true", help="AP and AP50 of each class too")
    added.add_argument("--json", action="store_true")

    added = verbs.add("predict", _predict, "draw detections on images")
    added.add_argument("model", help="models:/NAME@alias, a model folder, or a .safetensors file")
    added.add_argument("images", nargs="+", help="image files or folders")
    added.add_argument("--output", default="runs/predictions", help="folder for pictures and predictions.json")
    added.add_argument("--threshold", type=number(float, 0, 1), default=0.3, help="lowest score shown (default 0.3)")
    added.add_argument("--set", action="append", default=[], metavar="key=value", help="such as output or predict.tta.flip=true")
    added.add_argument("--json", action="store_true")

    added = verbs.add("analyze", _analyze, "how well a model's tasks agree, what its errors are and what they cost")
    added.add_argument("checkpoint", help=MODEL)
    added.add_argument("settings", nargs="*", metavar="EXPERIMENT key=value", help="whose val split to analyse it on")
    added.add_argument("--output", default="runs/analysis", help="folder for figures, table and pictures")
    added.add_argument("--threshold", type=number(float, 0, 1), default=0.3, help="lowest score among the confusions (default 0.3)")
    added.add_argument("--run", dest="run_id", metavar="RUN_ID", help=RUN)
    added.add_argument("--json", action="store_true")

    added = verbs.add("explain", _explain, "draw where detectors are sure, where they are exact, and which points learn an object")
    added.add_argument("images", nargs="+", help="image files or folders")
    added.add_argument("--checkpoint", action="append", required=True, help=f"{MODEL}; twice: two, one above the other")
    added.add_argument("--experiment", help="whose annotations to look an image up in; without, its best detection is explained")
    added.add_argument("--object", type=number(int, 1, 100_000), metavar="N", help="the image's N-th annotated object alone")
    added.add_argument("--output", default="runs/explanations", help="folder for pictures and explanations.json")
    added.add_argument("--set", action="append", default=[], metavar="key=value", help="such as data.root or tracking.uri")
    added.add_argument("--run", dest="run_id", metavar="RUN_ID", help=RUN)
    added.add_argument("--json", action="store_true")

    added = verbs.add("pull", _pull, "download a registered model, every byte verified")
    added.add_argument("model", help="models:/NAME@alias, models:/NAME/3 or NAME (its champion)")
    added.add_argument("--output", help="folder to make (default: after the model's name)")
    added.add_argument("--set", action="append", default=[], metavar="key=value", help="such as tracking.uri or output")
    added.add_argument("--json", action="store_true")


def _evaluate(options: argparse.Namespace) -> None:
    files, of_model = (options.predictions, options.annotations), (options.model, options.output, *options.settings)
    if any(of_model) if all(files) else any(files) or not options.model:
        raise ToodError("tood evaluate: give --predictions FILE and --annotations FILE, or --model MODEL and its data")
    if options.predictions:
        from tood.evaluation import evaluate_files

        figures = evaluate_files(Path(options.annotations), Path(options.predictions))
    else:
        from pipeline.detect import evaluate_model, find_model

        experiment, settings = experiment_and_settings(options.settings)
        values, tracking, output = values_and_places(experiment, settings)
        target = Path(options.output) if options.output else None
        figures, _ = evaluate_model(find_model(options.model, tracking, output / "models"), values, target)
    if options.json:
        print(json.dumps({**figures.summary, "per_class": figures.per_class} if options.per_class else figures.summary))
        return
    for name, value in figures.summary.items():
        print(f"{name:<10} {value:.4f}")
    if options.per_class:
        for name, of_class in figures.per_class.items():
            print(f"{name:<24} " + " ".join(f"{key} {value:.4f}" for key, value in of_class.items()))


class _Told:
    """Says on stderr how far a long prediction is."""

    def __init__(self):
        self.done, self.began, self.said = 0, time.monotonic(), 0.0

    def __call__(self, found: dict, count: int) -> None:
        from tood.progress import as_hours

        self.done += 1
        spent = time.monotonic() - self.began
        if spent - self.said > SAY_SECONDS:
            left = as_hours(spent / self.done * (count - self.done))
            print(f"image {self.done}/{count} img/s {self.done / spent:.1f} eta {left}", file=sys.stderr, flush=True)
            self.said = spent


def _predict(options: argparse.Namespace) -> None:
    from pipeline.detect import find_model, predict

    values, tracking, output = values_and_places(None, options.set)
    target = Path(options.output)
    model = find_model(options.model, tracking, output / "models")
    told = _Told()
    summary = predict(model, options.images, target, options.threshold, values, told)
    if options.json:
        print(json.dumps(summary))
        return
    if len(summary) <= FEW:
        for image in summary:
            print(f"{image['file_name']}: {image['detections']} detections")
    else:
        print(f"{sum(image['detections'] for image in summary)} detections in {len(summary)} images")
    print(f"{len(summary)} pictures and predictions.json in {target}")


def _analyze(options: argparse.Namespace) -> None:
    from pipeline.analyze import analyze_model
    from pipeline.detect import find_model

    experiment, settings = experiment_and_settings(options.settings)
    values, tracking, output = values_and_places(experiment, settings)
    figures, table = analyze_model(
        find_model(options.checkpoint, tracking, output / "models"),
        values,
        Path(options.output),
        name=options.checkpoint,
        threshold=options.threshold,
        tracking=tracking,
        run_id=options.run_id,
    )
    if options.json:
        print(json.dumps(figures))
        return
    print(table)
    print(f"analysis.json, alignment.png, errors.png and confusions.png in {options.output}")


def _explain(options: argparse.Namespace) -> None:
    from pipeline.detect import find_model
    from pipeline.explain import explain_images, line

    values, tracking, output = values_and_places(options.experiment, options.set)
    summary = explain_images(
        {name: find_model(name, tracking, output / "models") for name in options.checkpoint},
        options.images,
        values,
        Path(options.output),
        number=options.object,
        tracking=tracking,
        run_id=options.run_id,
    )
    if options.json:
        print(json.dumps(summary))
        return
    for image in summary:
        print(line(image))
    print(f"pictures and explanations.json in {options.output}")


def _pull(options: argparse.Namespace) -> None:
    from pipeline.registry.models import pull

    _, tracking, _ = values_and_places(None, options.set)
    target = options.output or options.model.removeprefix("models:/").replace("/", "-")
    folder = pull(options.model, tracking, Path(target))
    print(json.dumps({"folder": str(folder)}) if options.json else f"verified and saved: {folder}")
