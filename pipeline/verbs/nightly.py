"""The verb that runs a suite each night and says whether anything got worse."""

import argparse
import json
import sys
from datetime import UTC, date, datetime

from pipeline.arguments import Verbs
from pipeline.verbs.shared import SETTINGS


def add_to(verbs: Verbs) -> None:
    added = verbs.add("nightly", _nightly, "measure a suite, judge it by earlier nights, write a verdict, promote what is better")
    added.add_argument("suite", help="a shipped suite's name (demo, coco) or a YAML file")
    added.add_argument("settings", nargs="*", metavar="key=value", help=f"for all its experiments, {SETTINGS}")
    added.add_argument("--night", type=_night, metavar="YYYY-MM-DD", help="whose verdict it is (default: today, UTC)")
    added.add_argument("--again", action="store_true", help="measure once more although the night has its verdict")
    added.add_argument("--since", metavar="COMMIT", help="of a failed night: search the commits after this one, or last-passed")
    added.add_argument(
        "--measure", action="append", default=[], metavar="ENTRY[/METRIC]", help="measure this here; judge and keep nothing"
    )
    added.add_argument("--json", action="store_true", help="end with a JSON line of the verdict")


def _nightly(options: argparse.Namespace) -> int:
    """0: passed; 1: failed."""
    from pipeline.nightly.suite import read_suite

    suite = read_suite(options.suite)
    if options.measure:
        return _measure(options, suite)
    from pipeline.nightly.bisect import bisect
    from pipeline.nightly.night import Night
    from pipeline.nightly.verdict import terminal, to_values

    night = Night(suite, options.settings, options.night or datetime.now(UTC).date().isoformat(), _say)
    try:
        outcome = night.run(options.again)
    except KeyboardInterrupt:
        _say("interrupted; the same command goes on where this was left")
        return 130
    verdict = outcome.verdict
    if not outcome.fresh:
        _say("this night has its verdict already; --again measures once more")
    print(terminal(verdict))
    if outcome.fresh:
        print(f"\nreport: {outcome.folder / 'report.html'}\nrun:    {night.place.run_link(verdict.run_id)}")
    found = None
    if options.since and verdict.failed:
        with night.locked():
            found = bisect(suite, options.settings, verdict, options.since, _say)
        night.keep_bisection(verdict, found)
        print(f"\n{found.said}")
        for commit in found.culprits if len(found.culprits) > 1 else ():
            print(f"  {commit.id[:10]} {commit.date} {commit.subject}")
    elif options.since:
        _say("nothing failed, so there is nothing to search for")
    if options.json:
        print(json.dumps(to_values(verdict) | {"bisection": found and found._asdict()}))
    return verdict.exit_code


def _measure(options: argparse.Namespace, suite) -> int:
    from pipeline.nightly.judge import number
    from pipeline.nightly.measure import measure_here
    from pipeline.nightly.suite import check_metric, metric_names

    wanted: dict[str, list[str]] = {}
    for word in options.measure:
        entry, slash, _ = word.partition("/")
        wanted.setdefault(entry, []).extend([word] if slash else metric_names(suite.entry(entry)))
    entries = [(suite.entry(name), metrics) for name, metrics in wanted.items()]
    for entry, metrics in entries:
        for metric in metrics:
            check_metric(entry, metric)
    measured = [m for entry, metrics in entries for m in measure_here(suite, entry, options.settings, metrics, _say)]
    if options.json:
        rows = [
            {"metric": m.metric, "value": m.figure and m.figure.value, "samples": m.samples, "missing": m.missing} for m in measured
        ]
        print(json.dumps({"measured": rows}))
        return 0
    for m in measured:
        print(f"{m.metric:<40} {number(m.figure.value) if m.figure else '-  ' + m.missing}")
    return 0


def _night(text: str) -> str:
    try:
        return date.fromisoformat(text).isoformat()
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a date such as 2026-11-21") from None


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
