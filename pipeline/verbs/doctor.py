"""The verb that checks everything a run relies on."""

import argparse
import dataclasses
import json

from pipeline.arguments import Verbs
from pipeline.verbs.shared import experiment_and_settings


def add_to(verbs: Verbs) -> None:
    added = verbs.add("doctor", _doctor, "check versions, cluster, tracking, object store and data, and say what to do")
    added.add_argument("settings", nargs="*", metavar="EXPERIMENT key=value", help="whose addresses, data and demands to check")
    added.add_argument("--json", action="store_true")


def _doctor(options: argparse.Namespace) -> int:
    from pipeline.config import experiment_of
    from pipeline.doctor.examination import examine
    from pipeline.doctor.finding import render
    from pipeline.experiment_files import load_values, parse_overrides
    from pipeline.jobs.profiles import find_cluster

    name, settings = experiment_and_settings(options.settings)
    experiment = experiment_of(load_values(name, settings) if name else parse_overrides(settings))
    cluster = find_cluster(options.cluster, options.profiles) if options.cluster or options.profiles else None
    findings = []
    for finding in examine(experiment, name is not None, cluster):
        findings.append(finding)
        if not options.json:
            print(render(finding), flush=True)
    problems = sum(finding.state == "problem" for finding in findings)
    if options.json:
        print(json.dumps({"problems": problems, "findings": [dataclasses.asdict(finding) for finding in findings]}))
    else:
        print(f"{problems} problem{'s' if problems != 1 else ''}" if problems else "no problems")
    return 1 if problems else 0
