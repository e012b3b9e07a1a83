"""Verbs that run experiments, or say what running one would mean."""

import argparse
import json
import sys

from pipeline.arguments import Verbs, image_size, number
from pipeline.verbs.shared import EXPERIMENT, SETTINGS, json_line, show


def add_to(verbs: Verbs) -> None:
    for name, run, text in (
        ("train", _train, "train one detector with Ray Train and register its best checkpoint"),
        ("sweep", _sweep, "search a space with Ray Tune, a Ray Train run a trial; register the best checkpoint"),
    ):
        added = verbs.add(name, run, text)
        added.add_argument("experiment", help=EXPERIMENT)
        added.add_argument("settings", nargs="*", metavar="key=value", help=SETTINGS)
        added.add_argument("--dry-run", action="store_true", help="print the resolved configuration and its hash, start nothing")
        added.add_argument(
            "--resume", action="store_true", help="go on with the newest run of these settings; addresses may be others"
        )
        added.add_argument("--json", action="store_true", help="end with a JSON line of the outcome")
        if name == "train":
            added.add_argument(
                "--stop-after",
                type=number(int, 1, 10_000),
                metavar="EPOCHS",
                help="stop once so many epochs are done; see --resume",
            )

    added = verbs.add("cost", _cost, "a detector's parameters and multiply-accumulates, without building it in memory")
    added.add_argument("experiment", help=EXPERIMENT)
    added.add_argument("settings", nargs="*", metavar="key=value", help="such as model.detector=gfl model.backbone.depth=101")
    added.add_argument("--size", type=image_size, default=(1280, 800), metavar="WIDTHxHEIGHT", help="default 1280x800")
    added.add_argument("--classes", type=number(int, 1, 100_000), default=80, help="that the head tells apart (default 80, COCO's)")
    added.add_argument("--json", action="store_true")

    added = verbs.add(
        "fit", _fit, "how many images of a training step the memory here holds at once, so what train.accumulate to set"
    )
    added.add_argument("experiment", help=EXPERIMENT)
    added.add_argument("settings", nargs="*", metavar="key=value", help="such as train.batch_size=64 train.checkpointing=true")
    added.add_argument("--classes", type=number(int, 1, 100_000), default=80, help="that the head tells apart (default 80, COCO's)")
    added.add_argument("--json", action="store_true")

    verbs.add("experiments", _experiments, "list the shipped experiments")


def _train(options: argparse.Namespace) -> None:
    from pipeline.config import experiment_of
    from pipeline.experiment_files import load_values

    values = load_values(options.experiment, options.settings)
    experiment = experiment_of(values)  # what is wrong with it is said before anything slow is imported
    if options.dry_run:
        return show(experiment)
    from pipeline.runs import train_experiment

    progress, version = train_experiment(values, resume=options.resume, stop_after=options.stop_after)
    if options.json:
        print(json_line({**progress.__dict__, "version": version and version.version}))


def _sweep(options: argparse.Namespace) -> int | None:
    from pipeline.config import experiment_of
    from pipeline.experiment_files import load_values

    values = load_values(options.experiment, options.settings)
    experiment = experiment_of(values)
    from pipeline.sweep import make_plan, newest_plan, run_sweep

    if options.dry_run:
        from pipeline.cost import cost_of

        show(experiment)
        print("\n".join(f"# {line}" for line in cost_of(make_plan(values)).splitlines()))
        return None
    from pipeline.publish import conclude

    plan = newest_plan(values) if options.resume else make_plan(values)
    site, trials = run_sweep(plan)
    version = conclude(plan, site, trials)
    if options.json:
        print(json_line({"sweep": plan.sweep, "trials": [t.__dict__ for t in trials], "version": version and version.version}))
    return 1 if any(t.status == "FAILED" for t in trials) else None


def _cost(options: argparse.Namespace) -> None:
    from pipeline.config import experiment_of
    from pipeline.experiment_files import load_values
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


def _fit(options: argparse.Namespace) -> None:
    from pipeline.config import experiment_of
    from pipeline.experiment_files import load_values
    from tood.bench.fit import describe, fit

    experiment = experiment_of(load_values(options.experiment, options.settings))
    recipe, workers = experiment.recipe, experiment.ray.workers
    found = fit(recipe, workers, options.classes, say=lambda line: print(line, file=sys.stderr))
    print(json.dumps(found._asdict()) if options.json else describe(found, recipe, workers))


def _experiments(options: argparse.Namespace) -> None:
    from pipeline.config import experiment_of
    from pipeline.experiment_files import experiment_names, load_values

    for name in experiment_names():
        if not name.startswith("base/"):
            print(f"{name:<36} {experiment_of(load_values(name)).description}")
