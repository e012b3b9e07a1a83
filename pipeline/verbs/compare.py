"""Verbs that set trained detectors side by side: two of them, or a whole sweep."""

import argparse
import json
import sys
from pathlib import Path

from pipeline.arguments import Verbs, number
from pipeline.verbs.shared import RUN, values_and_places
from tood.errors import ToodError

SUBJECT = (
    "models:/NAME@alias, a model folder, a file of detections, an MLflow run's id, SWEEP/RANK (of its ranking, such as "
    "demo-5d0a/1), a configuration's hash, or several with commas between, which are seeds of one configuration"
)


def add_to(verbs: Verbs) -> None:
    added = verbs.add("compare", _compare, "COCO figures of detectors side by side, and whether they differ by more than chance")
    added.add_argument("subjects", nargs="+", metavar="A B", help=f"two or more; the others are compared with the first. {SUBJECT}")
    added.add_argument("--annotations", metavar="FILE", help="COCO JSON that all detections are about")
    added.add_argument("--experiment", help="whose val split to compare them on; else that of the runs")
    added.add_argument("--set", action="append", default=[], metavar="key=value", help="such as data.root or tracking.uri")
    added.add_argument(
        "--resamples", type=number(int, 100, 100_000), default=1000, metavar="N", help="drawings of the images (default 1000)"
    )
    added.add_argument("--level", type=number(float, 0.5, 0.9999), default=0.95, help="of the intervals (default 0.95)")
    added.add_argument("--html", metavar="FILE", help="write the comparison to this page too")
    added.add_argument("--run", dest="run_id", metavar="RUN_ID", help=RUN)
    added.add_argument("--json", action="store_true")

    added = verbs.add("report", _report, "a sweep on one self-contained HTML page, which its MLflow run keeps too")
    added.add_argument("sweep", help="a sweep's name, its folder, or its summary run's id in MLflow")
    added.add_argument("settings", nargs="*", metavar="key=value", help="such as tracking.uri or output")
    added.add_argument("--output", metavar="FILE", help="the page (default: report.html in the sweep's folder, else SWEEP.html)")
    added.add_argument("--baseline", default="", metavar="RUN", help="run id or name of the trial that the best is set beside")
    added.add_argument("--json", action="store_true")


def _compare(options: argparse.Namespace) -> None:
    from pipeline.reports.compare_page import compare_named

    if len(options.subjects) < 2:
        raise ToodError("tood compare: give two subjects or more")
    if any("=" in word for word in options.subjects):
        raise ToodError("tood compare: give settings by --set key=value")
    values, tracking, output = values_and_places(options.experiment, options.set)
    found, text = compare_named(
        options.subjects,
        values,
        tracking,
        output / "models",
        annotations=Path(options.annotations) if options.annotations else None,
        resamples=options.resamples,
        level=options.level,
        page=Path(options.html) if options.html else None,
        run_id=options.run_id,
        say=lambda line: print(line, file=sys.stderr),
    )
    print(json.dumps(found) if options.json else text, end="\n" if options.json else "")


def _report(options: argparse.Namespace) -> None:
    from pipeline.reports.report import report_sweep
    from pipeline.sweep import PLAN

    folder = Path(options.sweep).expanduser()
    here = (folder / PLAN).is_file()
    beside = [f"output={folder.absolute().parent}"] if here else []
    _, tracking, _ = values_and_places(None, [*beside, *options.settings])
    target = Path(options.output) if options.output else folder / "report.html" if here else None
    name = folder.absolute().name if here else options.sweep
    page, facts = report_sweep(name, tracking, target, baseline=options.baseline, say=lambda line: print(line, file=sys.stderr))
    if options.json:
        best = facts.trials[0]
        print(
            json.dumps(
                {"page": str(page), "sweep": facts.sweep, "trials": len(facts.trials), "best_run": best.run_id, "best": best.value}
            )
        )
        return
    print(f"{page}: {len(facts.trials)} trials, {page.stat().st_size / 1e6:.1f} MB")
