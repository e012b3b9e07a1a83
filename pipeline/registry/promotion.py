"""Who is champion: the gate that a version has to pass, by evidence, and the way back.

`champion` is the best version by a figure that was measured on the same data by the same metric. `challenger` is the
runner-up: the champion that was overtaken, or the best that did not overtake it. A version's own figure stands in its
tags; figures of a later measurement on other data stand beside it as tags `measured.*`, so that versions of different
times can be compared. Whoever was champion before is kept in a tag of the model, oldest first, for `rollback`.
"""

import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion

from pipeline.errors import RegistryError
from pipeline.registry.access import (
    CHALLENGER,
    CHAMPION,
    Reference,
    alias_of,
    find_model,
    find_version,
    now,
    parse,
    registry,
    turn,
    who,
)
from pipeline.registry.files import verify_version
from pipeline.tracking.facts import redact

HISTORY = "champion.history"  # tag of the model: JSON, versions that were champion before the present one, oldest first
PROMOTED = "champion.promoted"  # tags of a version: JSON, when, by whom and why it became champion, was rolled back, retired
ROLLED_BACK = "champion.rolled_back"
RETIRED = "retired"
MEASURED = "measured."  # beginning of tags: JSON, a figure on other data than the version's own
KEPT = 100  # champions that the history holds; a tag of a model has room for 5000 characters

Figures = dict[tuple[str, str], float]  # (data set's fingerprint, metric) -> value


class Decision(NamedTuple):
    moved: bool  # the alias `champion` was moved to the version
    reason: str


def decide(candidate: Mapping[str, str], champion: Mapping[str, str] | None, on: tuple[str, str] | None = None) -> Decision:
    """Whether the figures in tags say that a version may take the alias from the champion (None: there is none).

    Only a strictly better value of the same metric on the same data does; other data are never compared silently. on:
    the data set's fingerprint and the metric to go by; without it the candidate's own, else any that both have.
    """
    ours, metric = figures_of(candidate), candidate["metric"]
    if not ours:
        return Decision(False, f"its {metric} is {candidate.get('value')}")
    if champion is None:
        return Decision(True, "it is the first")
    theirs = figures_of(champion)
    own = candidate["dataset"], metric
    shared = next((key for key in ([on] if on else [own, *ours]) if key in ours and key in theirs), None)
    if shared:
        value, best, where = ours[shared], theirs[shared], "" if shared == own else f" on data {shared[0][:12]}"
        says = "better than" if value > best else "not better than"
        return Decision(value > best, f"{shared[1]} {value:.4f}{where} is {says} the champion's {best:.4f}")
    advice = "measure both on the same data (`tood models promote --measure`) or use --force"
    if champion.get("dataset") != candidate["dataset"]:
        said = str(champion.get("dataset"))[:12], candidate["dataset"][:12]
        return Decision(False, f"the champion was measured on other data ({said[0]}, not {said[1]}); {advice}")
    if champion.get("metric") != metric:
        return Decision(False, f"the champion was measured by {champion.get('metric')}, not {metric}; {advice}")
    return Decision(False, f"the champion's {metric} is {champion.get('value')}; {advice}")


def figures_of(tags: Mapping[str, str]) -> Figures:
    """What a version's tags say was measured of it, its own figure first; what is no finite number is left out."""
    found: Figures = {}
    for where, metric, value in (
        (tags.get("dataset"), tags.get("metric"), tags.get("value")),
        *(_measured(key, text) for key, text in sorted(tags.items()) if key.startswith(MEASURED)),
    ):
        if where and metric and math.isfinite(number := _number(value)):
            found.setdefault((where, metric), number)
    return found


def settle(client: MlflowClient, version: ModelVersion) -> Decision:
    """Give a version that was just published the alias that its figures deserve. The caller holds the model's `turn`."""
    name, number = version.name, int(version.version)
    champion = alias_of(client, name, CHAMPION)
    if champion == number:
        return Decision(False, "it is the champion already")
    for tag, what in ((RETIRED, "was retired"), (ROLLED_BACK, "was rolled back")):
        if tag in version.tags:
            return Decision(False, f"it {what}; `tood models promote {name}/{number}` is for a person to say")
    theirs = _tags(client, name, champion)
    decision = decide(version.tags, theirs)
    if decision.moved:
        _crown(client, name, version, champion, {"why": decision.reason, "by": "its figures"})
        return decision
    comparable = theirs and figures_of(version.tags).keys() & figures_of(theirs).keys()
    if comparable and decide(version.tags, _tags(client, name, alias_of(client, name, CHALLENGER))).moved:
        client.set_registered_model_alias(name, CHALLENGER, str(number))
    return decision


def promote(
    tracking_uri: str,
    version: str,
    *,
    alias: str = CHAMPION,
    on: tuple[str, str] | None = None,
    force: bool = False,
    why: str = "",
) -> Decision:
    """Make a version champion if it passes the gate: stored bytes intact, the figure that it was registered with, better.

    on: the data and the metric to go by, as `decide` has them. force: whatever the figures say; who did so and `why` are
    kept in a tag. alias: `challenger` needs intact bytes alone.
    Raises RegistryError where the gate refuses, IntegrityError for altered bytes.
    """
    wanted = _one(version)
    with registry(tracking_uri) as client:
        found = find_version(client, wanted)
        name, number = found.name, int(found.version)
        if RETIRED in found.tags and not force:
            raise RegistryError(f"{name}/{number} was retired ({_said(found.tags[RETIRED])}); --force takes that back")
        manifest = verify_version(found, tracking_uri)  # before the turn: it may take long
        doubt = None if alias == CHALLENGER else _contradiction(found.tags, manifest.values)
        with turn(client, name):
            found, champion = find_version(client, Reference(name, None, str(number))), alias_of(client, name, CHAMPION)
            if champion == number:
                if alias == CHALLENGER:
                    raise RegistryError(f"{name}/{number} is the champion; a challenger is another version")
                return Decision(False, "it is the champion already")
            if alias == CHALLENGER:
                client.set_registered_model_alias(name, CHALLENGER, str(number))
                return Decision(False, "it is the challenger")
            decision = Decision(False, doubt) if doubt else decide(found.tags, _tags(client, name, champion), on)
            if not decision.moved and not force:
                raise RegistryError(f"{name}/{number} is not promoted: {decision.reason}")
            record = {"why": why or decision.reason, "by": who(), "forced": not decision.moved, "evidence": decision.reason}
            _crown(client, name, found, champion, record)
            for tag in (RETIRED, ROLLED_BACK):
                if tag in found.tags:
                    client.delete_model_version_tag(name, str(number), tag)
    return Decision(True, f"forced: {decision.reason}" if not decision.moved else decision.reason)


def rollback(tracking_uri: str, name: str, *, why: str = "") -> tuple[int, int]:
    """Make the champion before the present one champion again; returns (present, restored). Repeated, it walks further back.

    What was rolled back is never promoted by its figures again, only by a person. Raises RegistryError at the beginning
    of the history.
    """
    wanted = parse(name)
    if wanted.alias or wanted.version:
        raise RegistryError(f"{name!r}: a model's name alone is rolled back, such as {wanted.name}")
    name = wanted.name
    with registry(tracking_uri) as client:
        while True:
            seen = current, before = _succession(client, name)
            if current is None:
                raise RegistryError(f"model {name!r} has no champion to roll back")
            while before and not _usable(client, tracking_uri, name, before[-1]):  # may take long, so before the turn
                before = before[:-1]
            if not before:
                raise RegistryError(f"model {name!r} has no champion before version {current}")
            with turn(client, name):
                if _succession(client, name) != seen:
                    continue  # another process was first
                record = {"at": now(), "by": who(), "why": why or f"back to {before[-1]}"}
                client.set_model_version_tag(name, str(current), ROLLED_BACK, _json(record))
                client.set_registered_model_alias(name, CHAMPION, str(before[-1]))
                _remember(client, name, before[:-1])
                if alias_of(client, name, CHALLENGER) in (before[-1], current):
                    client.delete_registered_model_alias(name, CHALLENGER)
                return current, before[-1]


def retire(tracking_uri: str, version: str, *, why: str = "") -> None:
    """Take a version out of use: no alias, never promoted by figures, its files are `gc`'s. The champion is refused."""
    wanted = _one(version)
    with registry(tracking_uri) as client:
        found = find_version(client, wanted)
        name, number = found.name, int(found.version)
        with turn(client, name):
            model = find_model(client, name)
            aliases = {alias: int(of) for alias, of in model.aliases.items()}
            if aliases.get(CHAMPION) == number:
                raise RegistryError(f"{name}/{number} is the champion; promote another or roll back first")
            client.set_model_version_tag(name, str(number), RETIRED, _json({"at": now(), "by": who(), "why": why}))
            for alias, of in aliases.items():
                if of == number:
                    client.delete_registered_model_alias(name, alias)
            _remember(client, name, [v for v in history_of(model.tags) if v != number])


def history_of(tags: Mapping[str, str]) -> list[int]:
    """Versions that were champion before the present one, oldest first."""
    try:
        return [int(number) for number in json.loads(tags.get(HISTORY, "[]"))]
    except (ValueError, TypeError):
        return []  # written by hand


def _crown(client: MlflowClient, name: str, version: ModelVersion, champion: int | None, record: dict[str, Any]) -> None:
    """Move the alias. The record is written first, and the champion before is remembered: a crash leaves nothing unsaid."""
    number = int(version.version)
    record = {"at": now(), "over": champion, **record}
    client.set_model_version_tag(name, str(number), PROMOTED, _json(record))
    if champion is not None:
        before = [v for v in history_of(client.get_registered_model(name).tags) if v not in (champion, number)]
        _remember(client, name, [*before, champion])
    client.set_registered_model_alias(name, CHAMPION, str(number))
    if champion is not None:
        client.set_registered_model_alias(name, CHALLENGER, str(champion))
    elif alias_of(client, name, CHALLENGER) == number:
        client.delete_registered_model_alias(name, CHALLENGER)


def _remember(client: MlflowClient, name: str, versions: list[int]) -> None:
    client.set_registered_model_tag(name, HISTORY, json.dumps(versions[-KEPT:]))


def _succession(client: MlflowClient, name: str) -> tuple[int | None, list[int]]:
    """The champion and those before it, oldest first."""
    champion = alias_of(client, name, CHAMPION)
    return champion, [number for number in history_of(find_model(client, name).tags) if number != champion]


def _usable(client: MlflowClient, tracking_uri: str, name: str, number: int) -> bool:
    """Whether a version is there and not retired. Damaged bytes of such a one are an error, not a reason to go further."""
    try:
        found = find_version(client, Reference(name, None, str(number)))
    except RegistryError:
        return False  # deleted by hand
    if RETIRED not in found.tags:
        verify_version(found, tracking_uri)
    return RETIRED not in found.tags


def _contradiction(tags: Mapping[str, str], manifest: Mapping[str, Any]) -> str | None:
    """Where a version's tags are not what its manifest, which the registered sha256 covers, says was measured."""
    info = manifest.get("info") or {}
    if info.get("dataset") != tags.get("dataset"):
        return f"its tag says it was measured on {tags.get('dataset', '')[:12]}, its manifest {str(info.get('dataset'))[:12]}"
    metric = tags.get("metric", "")
    measured = (info.get("metrics") or {}).get(metric)
    if measured is None:
        return f"its manifest has no {metric}, so nothing proves the figure {tags.get('value')}"
    if not math.isclose(measured, _number(tags.get("value")), rel_tol=1e-6):
        return f"its tag says {metric} {tags.get('value')}, its manifest {measured}"
    return None


def _tags(client: MlflowClient, name: str, number: int | None) -> dict[str, str] | None:
    return None if number is None else client.get_model_version(name, str(number)).tags


def _one(version: str) -> Reference:
    wanted = parse(version)
    if wanted.alias is None and wanted.version is None:
        raise RegistryError(f"{version!r}: say which version, such as {wanted.name}/3 or {wanted.name}@{CHALLENGER}")
    return wanted


def _measured(key: str, text: str) -> tuple[str | None, str | None, str | None]:
    try:
        values = json.loads(text)
        return str(values["dataset"]), str(values["metric"]), str(values["value"])
    except (ValueError, TypeError, KeyError):
        return None, None, None


def _said(text: str) -> str:
    try:
        values = json.loads(text)
        return ", ".join(str(values[key]) for key in ("at", "by", "why") if values.get(key))
    except (ValueError, TypeError, AttributeError):
        return text[:80]


def _json(record: Mapping[str, Any]) -> str:
    return json.dumps({key: redact(value) if isinstance(value, str) else value for key, value in record.items()})


def _number(text: str | None) -> float:
    try:
        return float(text) if text is not None else math.nan
    except ValueError:
        return math.nan
