"""The one place that talks to MLflow's model registry: publish a checkpoint's model, pull a model, say what there is.

A version's source is the model folder in object storage, and a tag pins the sha256 of its manifest: whoever pulls gets
the bytes that were registered or an error. Pulling downloads named files and reads JSON; it unpickles and imports nothing.
`pipeline.registry.promotion` says who is champion, `pipeline.registry.retention` what may be removed.
"""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from pipeline.errors import RegistryError
from pipeline.registry.access import (
    CHALLENGER,
    CHAMPION,
    DIGEST,
    alias_of,
    all_models,
    all_versions,
    check_name,
    find_model,
    find_version,
    parse,
    registry,
    turn,
)
from pipeline.registry.card import Provenance, about, card
from pipeline.registry.files import download, keeping, put_source
from pipeline.registry.promotion import RETIRED, ROLLED_BACK, Decision, decide, history_of, settle
from pipeline.storage.checkpoints import Manifest, verify
from pipeline.storage.store import Store
from pipeline.tracking.facts import redact
from pipeline.tracking.runs import Run

__all__ = ["CHAMPION", "DIGEST", "Decision", "Info", "Version", "decide", "models", "publish", "pull", "resolve", "show"]


class Info(TypedDict):
    """What a version says of itself. `dataset` is the fingerprint of the data that `value` was measured on."""

    config_hash: str
    dataset: str
    metric: str  # "val/AP"
    value: float
    names: list[str]  # classes
    epoch: int
    step: int


class Version(NamedTuple):
    name: str
    version: int
    source: str
    is_champion: bool
    decision: Decision


def publish(
    *,
    tracking_uri: str,
    name: str,
    store: Store,
    prefix: str,
    run_id: str,
    info: Info,
    tags: Mapping[str, Any],
    licence: str = "",
) -> Version:
    """Register the model of the checkpoint at `prefix` as a version of `name`; make it champion if it is better.

    The stored bytes are verified first. The same model again gives the version that exists. `tags` are added to the
    version as they are (sampled hyper-parameters: "hp.alpha"); `licence` stands in its card. Publishers take turns.
    Raises IntegrityError for a damaged checkpoint, RegistryError for what contradicts it or a registry that fails.
    """
    check_name(name)
    model = f"{prefix}/model"
    manifest = verify(store, model)
    _require_agreement(store.url_of(model), manifest, info)
    with registry(tracking_uri) as client:
        _register_name(client, name)
        known = _tags(info, manifest, tags)
        found = _version_of(client, name, manifest.digest)
        text = "" if found else card(name, known, manifest, Provenance.of_run(client, run_id), licence)
        source = found.source if found else put_source(client, tracking_uri, store, model, run_id, manifest)
        with keeping(store), turn(client, name):
            found = _version_of(client, name, manifest.digest)
            if not found:
                store.get_bytes(f"{model}/manifest.json")  # nobody removed it meanwhile, nor will
                found = client.create_model_version(
                    name,
                    source,
                    run_id=run_id,
                    tags=known,
                    description=text,
                    await_creation_for=0,  # nothing is copied, so there is nothing to wait for
                )
            decision = settle(client, found)
            champion = alias_of(client, name, CHAMPION)
        if text:
            _link(tracking_uri, run_id, found, text)
    return Version(name, int(found.version), found.source, champion == int(found.version), decision)


def pull(uri: str, tracking_uri: str, destination: Path) -> Path:
    """Download the model folder (model.safetensors, manifest.json) of "models:/NAME@alias", "models:/NAME/3" or "NAME".

    A bare NAME means its champion. Every byte is verified against the manifest, the manifest against the registry. A
    version that brings anything but weights is refused. Raises RegistryError for unknown names and a registry out of
    reach, IntegrityError for altered bytes, StorageError.
    """
    wanted = parse(uri)
    with registry(tracking_uri) as client:
        return download(find_version(client, wanted), tracking_uri, destination)


def resolve(uri: str, tracking_uri: str) -> tuple[str, str]:
    """The version that a model's name means now, as models:/NAME/VERSION, and its digest. Raises RegistryError like `pull`.

    The digest is empty for what was not published by `tood`, which `pull` refuses.
    """
    wanted = parse(uri)
    with registry(tracking_uri) as client:
        version = find_version(client, wanted)
    return f"models:/{version.name}/{version.version}", version.tags.get(DIGEST, "")


def models(tracking_uri: str) -> list[dict[str, Any]]:
    """Every model with its champion and challenger, as plain values."""
    with registry(tracking_uri) as client:
        found, versions = [], all_versions(client)
        for model in all_models(client):
            rows = {int(v.version): _row(v, model.aliases) for v in versions if v.name == model.name}
            named = {alias: rows.get(int(number)) for alias, number in model.aliases.items()}
            found.append(
                {
                    "name": model.name,
                    "versions": len(rows),
                    "champion": named.get(CHAMPION),
                    "challenger": named.get(CHALLENGER),
                    "before": history_of(model.tags),
                }
            )
    return found


def show(what: str, tracking_uri: str) -> dict[str, Any]:
    """A model's versions (NAME), or one of them with its card (NAME/3, NAME@alias), as plain values."""
    wanted = parse(what)
    with registry(tracking_uri) as client:
        model = find_model(client, wanted.name)
        if wanted.alias or wanted.version:
            version = find_version(client, wanted)
            more = {"source": redact(version.source), "run_id": version.run_id, "tags": dict(version.tags)}
            return _row(version, model.aliases) | more | {"card": version.description or ""}
        rows = [_row(version, model.aliases) for version in all_versions(client, wanted.name)]
    return {"name": wanted.name, "before": history_of(model.tags), "versions": rows}


def _row(version: ModelVersion, aliases: Mapping[str, Any]) -> dict[str, Any]:
    tags, number = version.tags, int(version.version)
    state = "retired" if RETIRED in tags else "rolled back" if ROLLED_BACK in tags else ""
    with contextlib.suppress(KeyError, ValueError):
        return {
            "name": version.name,
            "version": number,
            "aliases": sorted(alias for alias, of in aliases.items() if int(of) == number),
            "metric": tags["metric"],
            "value": float(tags["value"]),
            "dataset": tags["dataset"],
            "epoch": int(tags["epoch"]),
            "state": state,
            "created": version.creation_timestamp // 1000,  # seconds since 1970
        }
    return {"name": version.name, "version": number, "aliases": [], "state": "not published by `tood`"}


def _version_of(client: MlflowClient, name: str, digest: str) -> ModelVersion | None:
    found = client.search_model_versions(f"name = '{name}' and tags.{DIGEST} = '{digest}'", max_results=1)
    return found[0] if found else None


def _register_name(client: MlflowClient, name: str) -> None:
    try:
        client.create_registered_model(name, description=about(name))
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _link(tracking_uri: str, run_id: str, version: ModelVersion, text: str) -> None:
    """Name the version in its run, and keep the card there."""
    run = Run.attach(tracking_uri, run_id)
    run.tags({f"tood.model.{version.name}": f"models:/{version.name}/{version.version}"})
    run.text(text, f"model_card/{version.name}-{version.version}.md")


def _require_agreement(url: str, manifest: Manifest, info: Info) -> None:
    """What is registered of a model must be what the model says of itself."""
    own = manifest.values.get("info")
    for key in ("config_hash", "names", "epoch", "step"):
        if isinstance(own, dict) and own.get(key) != info[key]:
            raise RegistryError(f"{url}: its {key} is {own.get(key)!r:.80}, to be registered {info[key]!r:.80}")


def _tags(info: Info, manifest: Manifest, more: Mapping[str, Any]) -> dict[str, str]:
    own = {key: str(info[key]) for key in ("config_hash", "dataset", "metric", "epoch", "step")}
    own |= {"value": repr(float(info["value"])), DIGEST: manifest.digest}
    return {key: redact(str(value)) for key, value in more.items()} | own
