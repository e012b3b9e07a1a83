"""The `tood` command. Each verb is a few lines around one function; heavy imports wait until their verb is used."""

import argparse
import json
import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.arguments import Parser, image_size, number
from tood.errors import DataError, ToodError

EXPERIMENT = "a shipped experiment's name (`tood experiments`) or a YAML file"
MODEL = "models:/NAME@alias, a model or checkpoint folder, or a .safetensors file"
RUN = "MLflow run to log to; else tracking.uri, tracking.experiment or MLFLOW_TRACKING_URI make it a run of its own"
SETTINGS = "overrides such as train.epochs=24 data.root=/data/coco"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb. 0: done; 1: some trials failed; 2: an error that the person can act on."""
    for chatty in ("mlflow", "alembic", "ray.train", "ray.tune"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db").setLevel(logging.CRITICAL)  # it would print tracebacks of errors that we explain
    try:
        options = _parser().parse_args(arguments)
        return options.run(options) or 0
    except ToodError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; --resume goes on where this was left", file=sys.stderr)
        return 130


# -- verbs -----------------------------------------------------------------------------------------------------------


def _train(options: argparse.Namespace) -> None:
    from pipeline.config import experiment_of, load_values

    values = load_values(options.experiment, options.settings)
    if options.dry_run:
        return _show(experiment_of(values))
    from pipeline.runs import train_experiment

    progress, version = train_experiment(values, resume=options.resume, stop_after=options.stop_after)
    if options.json:
        print(json.dumps({**progress.__dict__, "version": version and version.version}))


def _sweep(options: argparse.Namespace) -> int | None:
    from pipeline.config import experiment_of, load_values

    values = load_values(options.experiment, options.settings)
    from pipeline.sweep import make_plan, newest_plan, run_sweep

    if options.dry_run:
        from pipeline.cost import cost_of

        _show(experiment_of(values))
        print("\n".join(f"# {line}" for line in cost_of(make_plan(values)).splitlines()))
        return None
    from pipeline.publish import conclude

    plan = newest_plan(values) if options.resume else make_plan(values)
    site, trials = run_sweep(plan)
    version = conclude(plan, site, trials)
    if options.json:
        print(json.dumps({"sweep": plan.sweep, "trials": [t.__dict__ for t in trials], "version": version and version.version}))
    return 1 if any(t.status == "FAILED" for t in trials) else None


def _evaluate(options: argparse.Namespace) -> None:
    files, of_model = (options.predictions, options.annotations), (options.model, options.output, *options.settings)
    if any(of_model) if all(files) else any(files) or not options.model:
        raise ToodError("tood evaluate: give --predictions FILE and --annotations FILE, or --model MODEL and its data")
    if options.predictions:
        from tood.evaluation import evaluate_files

        figures = evaluate_files(Path(options.annotations), Path(options.predictions))
    else:
        from pipeline.detect import evaluate_model, find_model

        experiment, settings = _experiment_and_settings(options.settings)
        values, tracking, output = _values_and_places(experiment, settings)
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


def _predict(options: argparse.Namespace) -> None:
    from pipeline.detect import find_model, predict

    _, tracking, output = _values_and_places(None, options.set)
    target = Path(options.output)
    summary = predict(find_model(options.model, tracking, output / "models"), options.images, target, options.threshold)
    if options.json:
        print(json.dumps(summary))
        return
    for image in summary:
        print(f"{image['file_name']}: {image['detections']} detections")
    print(f"{len(summary)} pictures and predictions.json in {target}")


def _analyze(options: argparse.Namespace) -> None:
    from pipeline.analyze import analyze_model
    from pipeline.detect import find_model

    experiment, settings = _experiment_and_settings(options.settings)
    values, tracking, output = _values_and_places(experiment, settings)
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

    values, tracking, output = _values_and_places(options.experiment, options.set)
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
    from pipeline.registry import pull

    _, tracking, _ = _values_and_places(None, options.set)
    target = options.output or options.model.removeprefix("models:/").replace("/", "-")
    folder = pull(options.model, tracking, Path(target))
    print(json.dumps({"folder": str(folder)}) if options.json else f"verified and saved: {folder}")


def _ui(options: argparse.Namespace) -> int:
    from pipeline.mlflow_access import resolve_uri

    _, tracking, _ = _values_and_places(None, options.settings)
    if tracking.startswith("http"):
        print(f"MLflow is served at {tracking}")
        return 0
    print(f"MLflow: http://{options.host}:{options.port}   (Ctrl-C ends it)", flush=True)
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", resolve_uri(tracking, "."), "--workers", "1"]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    return subprocess.call([*command, "--host", options.host, "--port", str(options.port)], env=environment)


def _data_check(options: argparse.Namespace) -> None:
    from pipeline.config import experiment_of, load_values
    from pipeline.data_check import check_experiment, check_file

    if options.settings if options.annotations else options.images:
        raise ToodError("tood data check: give an experiment and settings, or --annotations FILE with --images FOLDER")
    if options.annotations:
        problems = check_file(Path(options.annotations), Path(options.images or Path(options.annotations).parent))
    else:
        experiment, settings = _experiment_and_settings(options.settings)
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


def _cost(options: argparse.Namespace) -> None:
    from pipeline.config import experiment_of, load_values
    from tood.cost import count_cost

    width, height = options.size
    model = experiment_of(load_values(options.experiment, options.settings)).model
    cost = count_cost(model, classes=options.classes, height=height, width=width)
    if options.json:
        print(json.dumps(cost._asdict()))
        return
    print(f"parameters  {cost.params:,}, of them trained {cost.trainable_params:,}, in the head {cost.head_params:,}")
    print(f"GMAC        {cost.gmac:.2f}, of them in the head {cost.head_gmac:.2f}")
    print(f"for {options.classes} classes and one image of {width} x {height}")


def _experiments(options: argparse.Namespace) -> None:
    from pipeline.config import experiment_names, experiment_of, load_values

    for name in experiment_names():
        if not name.startswith("base/"):
            print(f"{name:<36} {experiment_of(load_values(name)).description}")


# -- helpers ---------------------------------------------------------------------------------------------------------


def _show(experiment) -> None:
    from pipeline.config import to_yaml
    from tood.optimisation import describe_rate

    print(to_yaml(experiment))
    print(f"# {describe_rate(experiment.train)}")
    print(f"# hash {experiment.hash}")


def _experiment_and_settings(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """["bccd_r18", "data.root=x"] -> ("bccd_r18", ["data.root=x"]); the name may be left out."""
    named = [w for w in words if "=" not in w]
    if len(named) > 1:
        raise ToodError(f"expected one experiment and key=value settings, got {' '.join(named)}")
    return (named[0] if named else None), [w for w in words if "=" in w]


def _values_and_places(experiment: str | None, settings: Sequence[str]) -> tuple[dict, str, Path]:
    """What an experiment and settings say, tracking's address and the output folder, for verbs that use a finished model."""
    from pipeline.config import experiment_of, load_values, parse_overrides
    from pipeline.site import tracking_address

    values = load_values(experiment, settings) if experiment else parse_overrides(settings)
    checked = experiment_of(values)
    output = Path(checked.output).expanduser().absolute()
    return values, tracking_address(checked, output), output


def _parser() -> Parser:
    parser = Parser(prog="tood", description="Experiments with one-stage object detection on Ray and MLflow.")
    verbs = parser.add_subparsers(title="verbs", required=True, metavar="VERB")

    def verb(name: str, run, text: str) -> Parser:
        added = verbs.add_parser(name, help=text, description=text)
        added.set_defaults(run=run)
        return added

    for name, run, text in (
        ("train", _train, "train one detector with Ray Train and register its best checkpoint"),
        ("sweep", _sweep, "search a space with Ray Tune, a Ray Train run a trial; register the best checkpoint"),
    ):
        added = verb(name, run, text)
        added.add_argument("experiment", help=EXPERIMENT)
        added.add_argument("settings", nargs="*", metavar="key=value", help=SETTINGS)
        added.add_argument("--dry-run", action="store_true", help="print the resolved configuration and its hash, start nothing")
        added.add_argument("--resume", action="store_true", help="go on with the newest run of these very settings")
        added.add_argument("--json", action="store_true", help="end with a JSON line of the outcome")
        if name == "train":
            added.add_argument(
                "--stop-after",
                type=number(int, 1, 10_000),
                metavar="EPOCHS",
                help="stop once so many epochs are done; see --resume",
            )

    added = verb("evaluate", _evaluate, "COCO's twelve figures of a model or of a file of detections")
    added.add_argument("settings", nargs="*", metavar="EXPERIMENT key=value", help="whose data to evaluate a model on")
    added.add_argument("--model", help="models:/NAME@alias, a model folder, or a .safetensors file")
    added.add_argument("--predictions", help="detections in COCO's results form")
    added.add_argument("--annotations", help="COCO JSON that --predictions are about")
    added.add_argument("--output", help="with --model: write the detections to this JSON file")
    added.add_argument("--per-class", action="store_true", help="AP and AP50 of each class too")
    added.add_argument("--json", action="store_true")

    added = verb("predict", _predict, "draw detections on images")
    added.add_argument("model", help="models:/NAME@alias, a model folder, or a .safetensors file")
    added.add_argument("images", nargs="+", help="image files or folders")
    added.add_argument("--output", default="runs/predictions", help="folder for pictures and predictions.json")
    added.add_argument("--threshold", type=number(float, 0, 1), default=0.3, help="lowest score shown (default 0.3)")
    added.add_argument("--set", action="append", default=[], metavar="key=value", help="such as tracking.uri or output")
    added.add_argument("--json", action="store_true")

    added = verb("analyze", _analyze, "how well a model's tasks agree, what its errors are and what they cost")
    added.add_argument("checkpoint", help=MODEL)
    added.add_argument("settings", nargs="*", metavar="EXPERIMENT key=value", help="whose val split to analyse it on")
    added.add_argument("--output", default="runs/analysis", help="folder for figures, table and pictures")
    added.add_argument("--threshold", type=number(float, 0, 1), default=0.3, help="lowest score among the confusions (default 0.3)")
    added.add_argument("--run", dest="run_id", metavar="RUN_ID", help=RUN)
    added.add_argument("--json", action="store_true")

    added = verb("explain", _explain, "draw where detectors are sure, where they are exact, and which points learn an object")
    added.add_argument("images", nargs="+", help="image files or folders")
    added.add_argument("--checkpoint", action="append", required=True, help=f"{MODEL}; twice: two, one above the other")
    added.add_argument("--experiment", help="whose annotations to look an image up in; without, its best detection is explained")
    added.add_argument("--object", type=number(int, 1, 100_000), metavar="N", help="the image's N-th annotated object alone")
    added.add_argument("--output", default="runs/explanations", help="folder for pictures and explanations.json")
    added.add_argument("--set", action="append", default=[], metavar="key=value", help="such as data.root or tracking.uri")
    added.add_argument("--run", dest="run_id", metavar="RUN_ID", help=RUN)
    added.add_argument("--json", action="store_true")

    added = verb("pull", _pull, "download a registered model, every byte verified")
    added.add_argument("model", help="models:/NAME@alias, models:/NAME/3 or NAME (its champion)")
    added.add_argument("--output", help="folder to make (default: after the model's name)")
    added.add_argument("--set", action="append", default=[], metavar="key=value", help="such as tracking.uri or output")
    added.add_argument("--json", action="store_true")

    added = verb("ui", _ui, "serve MLflow's pages for the embedded tracking database")
    added.add_argument("settings", nargs="*", metavar="key=value", help="such as output=runs")
    added.add_argument("--host", default="127.0.0.1")
    added.add_argument("--port", type=number(int, 1, 65_535), default=5000)

    added = verb("cost", _cost, "a detector's parameters and multiply-accumulates, without building it in memory")
    added.add_argument("experiment", help=EXPERIMENT)
    added.add_argument("settings", nargs="*", metavar="key=value", help="such as model.detector=gfl model.backbone.depth=101")
    added.add_argument("--size", type=image_size, default=(1280, 800), metavar="WIDTHxHEIGHT", help="default 1280x800")
    added.add_argument("--classes", type=number(int, 1, 100_000), default=80, help="that the head tells apart (default 80, COCO's)")
    added.add_argument("--json", action="store_true")

    verb("experiments", _experiments, "list the shipped experiments")

    data = verbs.add_parser("data", help="check and convert data sets").add_subparsers(required=True, metavar="VERB")
    added = data.add_parser("check", help="read a data set and list every problem at once")
    added.add_argument("settings", nargs="*", metavar="EXPERIMENT key=value", help="whose data to check")
    added.add_argument("--annotations", help="a COCO JSON file instead of an experiment's data")
    added.add_argument("--images", help="its folder of images")
    added.set_defaults(run=_data_check)
    added = data.add_parser("convert", help="convert a data set to COCO's form")
    added.add_argument("format", choices=["voc"])
    added.add_argument("--images", required=True, help="folder of images (JPEGImages)")
    added.add_argument("--annotations", required=True, help="folder of XML files (Annotations)")
    added.add_argument("--lists", nargs="*", default=[], help="image set files, a split each (ImageSets/Main/train.txt)")
    added.add_argument("--output", required=True, help="folder for the JSON files")
    added.set_defaults(run=_data_convert)
    return parser


if __name__ == "__main__":
    sys.exit(main())
