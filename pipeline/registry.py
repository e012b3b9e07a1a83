"""The one place that talks to MLflow's model registry: publish a checkpoint's model, guard the champion, pull a model.

A version's source is the model folder in object storage, and a tag pins the sha256 of its manifest: whoever pulls gets
the bytes that were registered or an error. Pulling downloads named files and reads JSON; it unpickles and imports nothing.
"""

import contextlib
import math
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypedDict
from urllib.parse import urlsplit

import mlflow.artifacts
import requests
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from pipeline.checkpoint_store import Manifest, fetch, fetch_url, verify
from pipeline.errors import MissingObjectError, RegistryError, TrackingError
from pipeline.mlflow_access import connect, one_line
from pipeline.run_facts import redact
from pipeline.storage import Store, file_chunks, taking_turns

os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # a bar for each small file is noise in logs

CHAMPION = "champion"
DIGEST = "manifest_sha256"  # tag: sha256 of the model folder's manifest.json
_NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]*"
_REFERENCE = re.compile(rf"(?:models:/)?(?P<name>{_NAME})(?:@(?P<alias>[\w-]+)|/(?P<version>\d+))?")


class Info(TypedDict):
    """What a version says of itself. `dataset` is the fingerprint of the data that `value` was measured on."""

    config_hash: str
    dataset: str
    metric: str  # "val/AP"
    value: float
    names: list[str]  # classes
    epoch: int
    step: int


class Decision(NamedTuple):
    moved: bool  # the alias `champion` was moved to the version
    reason: str


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
) -> Version:
    """Register the model of the checkpoint at `prefix` as a version of `name`; make it champion if it is better.

    The stored bytes are verified first. The same model again gives the version that exists. `tags` are added to the
    version as they are (sampled hyper-parameters: "hp.alpha"). Publishers that share a store take turns.
    Raises IntegrityError for a damaged checkpoint, RegistryError for what contradicts it or a registry that fails.
    """
    if not re.fullmatch(_NAME, name):
        raise RegistryError(f"model name {name!r}: use letters, digits and . _ - only, a letter or digit first")
    model = f"{prefix}/model"
    manifest = verify(store, model)
    _require_agreement(store.url_of(model), manifest, info)
    with _registry(tracking_uri) as client:
        _register_name(client, name)
        found = _version_of(client, name, manifest.digest)
        source = found.source if found else _source(client, tracking_uri, store, model, run_id, manifest)
        with taking_turns(store, f"registry/{name}.turn"):
            found = _version_of(client, name, manifest.digest) or client.create_model_version(
                name,
                source,
                run_id=run_id,
                tags=_tags(info, manifest, tags),
                description=_card(name, info, manifest, tags),
                await_creation_for=0,  # nothing is copied, so there is nothing to wait for
            )
            decision = _promote(client, name, found)
            champion = _champion(client, name)
    return Version(name, int(found.version), found.source, champion == int(found.version), decision)


def pull(uri: str, tracking_uri: str, destination: Path) -> Path:
    """Download the model folder (model.safetensors, manifest.json) of "models:/NAME@alias", "models:/NAME/3" or "NAME".

    A bare NAME means its champion. Every byte is verified against the manifest, the manifest against the registry.
    Raises RegistryError for unknown names and a registry out of reach, IntegrityError for altered bytes, StorageError.
    """
    wanted = _parse(uri)
    with _registry(tracking_uri) as client:
        version = _find(client, *wanted)
        digest, scheme = version.tags.get(DIGEST), urlsplit(version.source).scheme
        if not digest:
            raise RegistryError(f"{uri}: version {version.version} has no tag {DIGEST}: it was not published by `tood`")
        if scheme in ("s3", "file", ""):
            return fetch_url(version.source, destination, digest)
        if scheme == "mlflow-artifacts":
            return fetch(_RunArtifacts(version.source, tracking_uri), "", destination, digest)
        raise RegistryError(f"{uri}: its source {redact(version.source)} is none that `tood` publishes")


def resolve(uri: str, tracking_uri: str) -> str:
    """The version that a model's name means now, as models:/NAME/VERSION. Raises RegistryError like `pull`."""
    wanted = _parse(uri)
    with _registry(tracking_uri) as client:
        version = _find(client, *wanted)
    return f"models:/{version.name}/{version.version}"


def decide(candidate: Mapping[str, str], champion: Mapping[str, str] | None) -> Decision:
    """Whether tags say that a version may take the alias from the champion (None: there is none).

    Only a strictly better value of the same metric on the same data does; other data are never compared silently.
    """
    metric, value = candidate["metric"], _number(candidate["value"])
    if not math.isfinite(value):
        return Decision(False, f"its {metric} is {candidate['value']}")
    if champion is None:
        return Decision(True, "it is the first")
    by_hand = "set the alias by hand if it is to be champion"
    if champion.get("dataset") != candidate["dataset"]:
        theirs, ours = str(champion.get("dataset"))[:12], candidate["dataset"][:12]
        return Decision(False, f"the champion was measured on other data ({theirs}, not {ours}); {by_hand}")
    if champion.get("metric") != metric:
        return Decision(False, f"the champion was measured by {champion.get('metric')}, not {metric}; {by_hand}")
    best = _number(champion.get("value"))
    if not math.isfinite(best):
        return Decision(False, f"the champion's {metric} is {champion.get('value')}; {by_hand}")
    if value > best:
        return Decision(True, f"{metric} {value:.4f} is better than the champion's {best:.4f}")
    return Decision(False, f"{metric} {value:.4f} is not better than the champion's {best:.4f}")


def _promote(client: MlflowClient, name: str, version: ModelVersion) -> Decision:
    champion = _champion(client, name)
    if champion == int(version.version):
        return Decision(False, "it is the champion already")
    decision = decide(version.tags, client.get_model_version(name, str(champion)).tags if champion else None)
    if decision.moved:
        client.set_registered_model_alias(name, CHAMPION, str(version.version))
    return decision


def _champion(client: MlflowClient, name: str) -> int | None:
    number = client.get_registered_model(name).aliases.get(CHAMPION)  # MLflow gives text or a number, store by store
    return None if number is None else int(number)


def _parse(uri: str) -> tuple[str, str | None, str | None]:
    """Name, alias and version of a reference."""
    reference = _REFERENCE.fullmatch(uri)
    if not reference:
        raise RegistryError(f"{redact(uri)!r} is not a model; write models:/NAME@alias, models:/NAME/VERSION or NAME")
    return reference["name"], reference["alias"], reference["version"]


def _find(client: MlflowClient, name: str, alias: str | None, number: str | None) -> ModelVersion:
    try:
        model = client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        known = ", ".join(sorted(m.name for m in client.search_registered_models(max_results=20))) or "none"
        raise RegistryError(f"the registry has no model {name!r}; it has: {known}") from None
    if number is None:
        number = model.aliases.get(alias or CHAMPION)
        if number is None:
            known = ", ".join(sorted(model.aliases)) or "none"
            raise RegistryError(f"model {name!r} has no alias {alias or CHAMPION!r}; it has: {known}")
    try:
        return client.get_model_version(name, str(number))
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise RegistryError(f"model {name!r} has no version {number}") from None


def _version_of(client: MlflowClient, name: str, digest: str) -> ModelVersion | None:
    found = client.search_model_versions(f"name = '{name}' and tags.{DIGEST} = '{digest}'", max_results=1)
    return found[0] if found else None


def _register_name(client: MlflowClient, name: str) -> None:
    about = (
        f"Object detection models of `tood`. The alias `{CHAMPION}` names the best version by the metric, and on the "
        "data, that its tags state; it moves only to a strictly better one on the same data.\n\n"
        f"    tood pull models:/{name}@{CHAMPION}"
    )
    try:
        client.create_registered_model(name, description=about)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _source(client: MlflowClient, tracking_uri: str, store: Store, model: str, run_id: str, manifest: Manifest) -> str:
    """Where MLflow finds the model folder. A server does not take paths of a client's disk, so there it is uploaded."""
    url = store.url_of(model)
    if urlsplit(url).scheme != "file" or urlsplit(tracking_uri).scheme not in ("http", "https"):
        return url
    artifact = f"model-{manifest.digest[:12]}"
    with tempfile.TemporaryDirectory() as folder:
        client.log_artifacts(run_id, str(fetch(store, model, Path(folder) / "model", manifest.digest)), artifact)
    return f"{client.get_run(run_id).info.artifact_uri}/{artifact}"


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


def _card(name: str, info: Info, manifest: Manifest, tags: Mapping[str, Any]) -> str:
    rows = {
        info["metric"]: f"{info['value']:.4f}",
        "measured on": f"data set `{info['dataset'][:12]}`",
        "epoch, step": f"{info['epoch']}, {info['step']}",
        f"{len(info['names'])} classes": ", ".join(info["names"][:20]) + (", ..." if len(info["names"]) > 20 else ""),
        "configuration": f"`{info['config_hash']}`",
        "manifest sha256": f"`{manifest.digest}`",
        **{key: redact(str(value)) for key, value in sorted(tags.items())},
    }
    table = "\n".join(f"| {key} | {value.replace('|', '/')} |" for key, value in rows.items())
    return (
        "One-stage object detector: safetensors weights and a manifest, no code, no pickle.\n\n"
        f"| | |\n|---|---|\n{table}\n\n"
        f"    tood pull models:/{name}@{CHAMPION}    # or models:/{name}/VERSION; verifies every byte"
    )


class _RunArtifacts:
    """Files of a run's artifacts, read one by one through MLflow; what `fetch` asks of a place."""

    def __init__(self, uri: str, tracking_uri: str):
        self._uri, self._tracking_uri = uri, tracking_uri

    def url_of(self, key: str) -> str:
        return f"{self._uri}/{key}"

    def get_bytes(self, key: str) -> bytes:
        return b"".join(self.chunks(key))

    def chunks(self, key: str) -> Iterator[bytes]:
        with tempfile.TemporaryDirectory() as folder:
            try:
                path = mlflow.artifacts.download_artifacts(
                    artifact_uri=self.url_of(key), dst_path=folder, tracking_uri=self._tracking_uri
                )
            except MlflowException as error:
                if "404 Client Error" in str(error):  # MLflow passes on no more than the text
                    raise MissingObjectError(f"{self.url_of(key)}: there is no such artifact") from None
                raise
            yield from file_chunks(Path(path))


@contextlib.contextmanager
def _registry(tracking_uri: str) -> Iterator[MlflowClient]:
    """A client of the registry beside `tracking_uri`, known to answer. Every failure becomes a RegistryError."""
    try:
        connect(tracking_uri)
        yield MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)
    except TrackingError as error:
        raise RegistryError(str(error)) from None
    except (MlflowException, SQLAlchemyError, requests.exceptions.RequestException) as error:
        raise RegistryError(f"model registry of MLflow at {redact(tracking_uri)}: {one_line(error)}") from None


def _number(text: str | None) -> float:
    try:
        return float(text) if text is not None else math.nan
    except ValueError:
        return math.nan
