"""The verb that sends MLflow what it could not take while runs went on."""

import argparse
import json

from pipeline.arguments import Verbs, number
from pipeline.verbs.shared import values_and_places


def add_to(verbs: Verbs) -> None:
    added = verbs.add("deliver", _deliver, "send MLflow what runs of this machine could not, and end runs of killed processes")
    added.add_argument("settings", nargs="*", metavar="key=value", help="such as tracking.uri or output")
    added.add_argument("--seconds", type=number(float, 1, 86_400), default=300, help="to try for (default 300)")
    added.add_argument("--json", action="store_true")


def _deliver(options: argparse.Namespace) -> int:
    from pipeline.tracking.access import connect
    from pipeline.tracking.leftovers import deliver_left

    _, tracking, _ = values_and_places(None, options.settings)
    connect(tracking)
    found = deliver_left(tracking, options.seconds)
    problems = [one for one in found if one.problem]
    if options.json:
        print(json.dumps({"problems": len(problems), "runs": [one._asdict() for one in found]}))
        return 1 if problems else 0
    for one in found:
        ended = f", its status is {one.status} now" if one.status else ""
        print(f"run {one.run_id}: {one.problem or f'{one.points} points delivered{ended}'}")
    if not found:
        print("nothing is left: no journal of a process that has ended lies on this machine")
    return 1 if problems else 0
