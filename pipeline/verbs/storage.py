"""Verbs on the object store itself: is it whole, and what of it is litter?"""

import argparse
import json

from pipeline.arguments import Verbs
from pipeline.verbs.shared import SECONDS, duration, human_bytes, store_of, table, values_and_places


def add_to(verbs: Verbs) -> None:
    storage = verbs.group("storage", "the object store: is everything in it whole, and what is left of writes that were cut off")
    added = storage.add("check", _check, "compare every checkpoint and model with its sha256, follow every pointer and version")
    _common(added)

    added = storage.add("clean", _clean, "list what writes left that were cut off; --delete removes it")
    added.add_argument("--older-than", type=duration, default=SECONDS["d"], metavar="AGE",
                       help="such as 12h, 1d (default), 4w; a write under way looks the same as one cut off")  # fmt: skip
    added.add_argument("--delete", action="store_true", help="remove it; without it nothing is touched")
    _common(added)


def _common(added: argparse.ArgumentParser) -> None:
    added.add_argument(
        "--set", action="append", default=[], metavar="key=value", help="such as storage.url, tracking.uri or output"
    )
    added.add_argument("--json", action="store_true")


def _check(options: argparse.Namespace) -> int:
    from pipeline.errors import RegistryError
    from pipeline.registry.retention import missing_versions
    from pipeline.storage.upkeep import Problem, check

    store = store_of(options)
    found, versions = check(store), 0
    problems = list(found.problems)
    try:
        versions, missing = missing_versions(values_and_places(None, options.set)[1], store)
        problems += missing
    except RegistryError as error:
        problems.append(Problem("registry", str(error), "check again once it answers: which versions lie here is not known"))
    if options.json:
        values = found._asdict() | {"versions": versions, "problems": [problem._asdict() for problem in problems]}
        print(json.dumps({"store": store.url} | values))
        return 1 if problems else 0
    for problem in problems:
        print(f"{problem.key}: {problem.what}\n    {problem.advice}")
    print(
        f"{store.url}: {found.checkpoints} checkpoints, {found.models} models, {found.pointers} pointers and {versions} registered "
        f"versions, {human_bytes(found.size)} compared: {len(problems) or 'no'} problem{'s' if len(problems) != 1 else ''}"
    )
    if found.litter:
        print(f"{found.litter} writes are under way or were cut off; see `tood storage clean`")
    return 1 if problems else 0


def _clean(options: argparse.Namespace) -> None:
    from pipeline.storage.upkeep import litter

    items = litter(store_of(options), options.older_than, remove=options.delete)
    going = [item for item in items if item.goes]
    freed = sum(item.size for item in going)
    if options.json:
        print(json.dumps({"deleted": options.delete, "bytes": freed, "items": [item._asdict() for item in items]}))
        return
    rows = [["" if i.goes else "kept", human_bytes(i.size), f"{i.age / SECONDS['h']:.1f} h", i.key, i.why] for i in items]
    table(["", "size", "age", "what", "why"], rows, "nothing is left of writes that were cut off")
    if items:
        done = "removed" if options.delete else "would go; --delete removes it"
        print(f"{len(going)} of {len(items)}: {human_bytes(freed)} {done}")
