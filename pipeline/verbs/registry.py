"""Verbs on the model registry."""

import argparse
import json
import re
import time
from pathlib import Path

from pipeline.arguments import Verbs
from pipeline.verbs.shared import SECONDS, duration, human_bytes, store_of, table, values_and_places
from tood.errors import ToodError


def add_to(verbs: Verbs) -> None:
    models = verbs.group("models", "registered models: what there is, who is champion, what may be removed")
    added = models.add("list", _list, "every model with its champion and challenger")
    _common(added)

    added = models.add("show", _show, "a model's versions, or the card of one")
    added.add_argument("model", help="NAME, NAME/3 or NAME@alias")
    _common(added)

    added = models.add("register", _register, "register a model folder, or the best checkpoint of a run")
    added.add_argument("model", metavar="FOLDER|RUN_ID", help="a model or checkpoint folder, or the id of a run in MLflow")
    added.add_argument("--name", required=True, help="the model's name in the registry")
    added.add_argument("--metric", default="val/AP", help="by which versions are compared (default val/AP)")
    added.add_argument("--licence", help="as the model's card is to state it (default: tracking.licence)")
    _common(added)

    added = models.add("promote", _promote, "make a version champion if its figure is better on the same data")
    added.add_argument("version", metavar="NAME/VERSION", help="or NAME@challenger")
    added.add_argument("--alias", choices=["champion", "challenger"], default="champion")
    added.add_argument("--measure", metavar="EXPERIMENT", help="whose val split to measure it and the champion on first")
    added.add_argument("--metric", default="val/AP", help="of --measure (default val/AP)")
    added.add_argument("--force", action="store_true", help="whatever the figures say; --why is kept in a tag, and who said so")
    added.add_argument("--why", default="")
    _common(added)

    added = models.add("rollback", _rollback, "make the champion before the present one champion again")
    added.add_argument("model", metavar="NAME")
    added.add_argument("--why", default="")
    _common(added)

    added = models.add("retire", _retire, "take a version out of use; its files may then be removed by gc")
    added.add_argument("version", metavar="NAME/VERSION")
    added.add_argument("--why", default="")
    _common(added)

    added = models.add("gc", _gc, "list checkpoints that no version, run or live sweep refers to; --delete removes them")
    added.add_argument("--older-than", type=duration, default=7 * SECONDS["d"], metavar="AGE", help="such as 12h, 7d (default), 4w")
    added.add_argument("--unknown", action="store_true", help="also those of runs that this MLflow does not have")
    added.add_argument("--delete", action="store_true", help="remove them; without it nothing is touched")
    _common(added)


def _common(added: argparse.ArgumentParser) -> None:
    added.add_argument("--set", action="append", default=[], metavar="key=value", help="such as tracking.uri or output")
    added.add_argument("--json", action="store_true")


def _list(options: argparse.Namespace) -> None:
    from pipeline.registry.models import models

    found = models(_tracking(options))
    if options.json:
        print(json.dumps(found))
        return
    rows = [[m["name"], str(m["versions"]), _leader(m["champion"]), _leader(m["challenger"])] for m in found]
    table(["model", "versions", "champion", "challenger"], rows, "no models are registered")


def _show(options: argparse.Namespace) -> None:
    from pipeline.registry.models import show

    found = show(options.model, _tracking(options))
    if options.json:
        print(json.dumps(found))
    elif "card" in found:
        print(found["card"])
        named = ", ".join(found["aliases"]) or "no alias"
        print(f"\nmodels:/{found['name']}/{found['version']}: {named}  {found['state']}".rstrip())
        print(f"run {found['run_id']}, files {found['source']}")
        for key, value in sorted(found["tags"].items()):
            if key.startswith(("champion.", "retired", "measured.")):
                print(f"{key}: {value}")
    else:
        rows = [_version_row(version) for version in found["versions"]]
        table(["version", "alias", "figure", "on data", "epoch", "registered", ""], rows, "it has no versions")
        if found["before"]:
            print(f"champions before: {', '.join(map(str, found['before']))}")


def _register(options: argparse.Namespace) -> None:
    from pipeline.registry.registration import register_folder, register_run

    values, tracking, _ = values_and_places(None, options.set)
    section = values.get("tracking") or {}
    how = {"metric": options.metric, "licence": options.licence or section.get("licence") or ""}
    folder = Path(options.model).expanduser()
    if folder.exists() or not re.fullmatch(r"[0-9a-f]{32}", options.model):
        how |= {"experiment": section.get("experiment") or ""}
        version = register_folder(tracking, store_of(options), folder, options.name, **how)
    else:
        version = register_run(tracking, options.model, options.name, **how)
    _say(
        options,
        {"name": version.name, "version": version.version, "champion": version.is_champion, "reason": version.decision.reason},
        f"registered: models:/{version.name}/{version.version} ({version.decision.reason})",
    )


def _promote(options: argparse.Namespace) -> None:
    from pipeline.registry.promotion import promote

    if options.force and not options.why:
        raise ToodError("tood models promote: --force goes against the figures; say --why, it is kept with the version")
    values, tracking, output = values_and_places(options.measure, options.set)
    measured = []
    if options.measure:
        from pipeline.rivals import measure

        measured = measure(tracking, options.version, values, output / "models", metric=options.metric)
        for one in measured if not options.json else []:
            print(f"version {one.version}: {one.metric} {one.value:.4f} on data {one.dataset[:12]}")
    on = (measured[0].dataset, measured[0].metric) if measured else None
    decision = promote(tracking, options.version, alias=options.alias, on=on, force=options.force, why=options.why)
    outcome = {"moved": decision.moved, "reason": decision.reason, "measured": [one._asdict() for one in measured]}
    moved = options.alias if decision.moved or options.alias == "challenger" else "not moved"
    _say(options, outcome, f"{options.version.removeprefix('models:/')}: {moved}: {decision.reason}")


def _rollback(options: argparse.Namespace) -> None:
    from pipeline.registry.promotion import rollback

    left, restored = rollback(_tracking(options), options.model, why=options.why)
    name = options.model.removeprefix("models:/")
    _say(options, {"from": left, "to": restored}, f"champion of {name}: version {restored} again, no longer {left}")


def _retire(options: argparse.Namespace) -> None:
    from pipeline.registry.promotion import retire

    retire(_tracking(options), options.version, why=options.why)
    _say(options, {"retired": options.version}, f"{options.version}: retired; `tood models gc` may remove its files")


def _gc(options: argparse.Namespace) -> None:
    from pipeline.registry.retention import collect

    how = {"older_than": options.older_than, "unknown": options.unknown, "remove": options.delete}
    items = collect(_tracking(options), store_of(options), **how)
    going = [item for item in items if item.goes]
    freed, kept = sum(i.size for i in going), sum(i.size for i in items if not i.goes)
    if options.json:
        print(json.dumps({"deleted": options.delete, "bytes": freed, "kept_bytes": kept, "items": [i._asdict() for i in items]}))
        return
    rows = [["" if i.goes else "kept", human_bytes(i.size), f"{i.age / SECONDS['d']:.1f} d", i.prefix, i.why] for i in items]
    table(["", "size", "age", "checkpoint", "why"], rows, "the store holds no checkpoints")
    done = "removed" if options.delete else "would go; --delete removes it"
    print(f"{len(going)} of {len(items)}: {human_bytes(freed)} {done}, {human_bytes(kept)} kept")


def _tracking(options: argparse.Namespace) -> str:
    return values_and_places(None, options.set)[1]


def _say(options: argparse.Namespace, outcome: dict, text: str) -> None:
    print(json.dumps(outcome) if options.json else text)


def _leader(row: dict | None) -> str:
    if row is None:
        return "-"
    return f"{row['version']}: {row['metric']} {row['value']:.4f}" if "value" in row else str(row["version"])


def _version_row(row: dict) -> list[str]:
    if "value" not in row:
        return [str(row["version"]), "", "", "", "", "", row["state"]]
    created = time.strftime("%Y-%m-%d %H:%M", time.gmtime(row["created"]))
    figure = f"{row['metric']} {row['value']:.4f}"
    return [str(row["version"]), ", ".join(row["aliases"]), figure, row["dataset"][:12], str(row["epoch"]), created, row["state"]]
