"""Where the files of a registered version lie, and how they get there and back: object storage, or a run's artifacts.

A version's source is the model folder in object storage. Only where MLflow is a server that cannot see the store (a
folder of this machine) is the folder uploaded beside its run. MLflow's own tools find an `MLmodel` in it; `tood pull`
reads what the manifest names and nothing else.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from urllib.parse import urlsplit

import mlflow.artifacts
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from pipeline.errors import MissingObjectError, RegistryError
from pipeline.registry.access import DIGEST
from pipeline.registry.serving import describing_files
from pipeline.storage.checkpoints import Manifest, Readable, fetch, read_manifest, verify
from pipeline.storage.lock import Held, hold
from pipeline.storage.opening import open_store
from pipeline.storage.store import Store, file_chunks
from pipeline.tracking.facts import redact

os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # a bar for each small file is noise in logs

WEIGHTS = "model.safetensors"
KEEPER_PATIENCE = 180.0  # seconds


def keeping(store: Store) -> AbstractContextManager[Held]:
    """For whoever registers what lies in a store, or removes from it: one at a time. Raises StorageError."""
    return hold(store, "registry.turn", "registering or removing models", patience=KEEPER_PATIENCE)


def download(version: ModelVersion, tracking_uri: str, destination: Path) -> Path:
    """The version's model folder, every byte verified. Raises RegistryError, IntegrityError, StorageError."""
    place, digest = files_of(version, tracking_uri)
    _refuse_code(version, read_manifest(place, "", digest))
    return fetch(place, "", destination, digest)


def verify_version(version: ModelVersion, tracking_uri: str) -> Manifest:
    """Compare all stored bytes of a version with what was registered. Raises as `download` does."""
    place, digest = files_of(version, tracking_uri)
    manifest = verify(place, "", digest)
    _refuse_code(version, manifest)
    return manifest


def files_of(version: ModelVersion, tracking_uri: str) -> tuple[Readable, str]:
    """Where a version's files are read from, and the sha256 that their manifest must have."""
    what, digest, scheme = f"models:/{version.name}/{version.version}", version.tags.get(DIGEST), urlsplit(version.source).scheme
    if not digest:
        raise RegistryError(f"{what} has no tag {DIGEST}: it was not published by `tood`")
    if scheme in ("s3", "file", ""):
        return open_store(version.source), digest
    if scheme == "mlflow-artifacts":
        return _RunArtifacts(version.source, tracking_uri), digest
    raise RegistryError(f"{what}: its source {redact(version.source)} is none that `tood` publishes")


def put_source(client: MlflowClient, tracking_uri: str, store: Store, model: str, run_id: str, manifest: Manifest) -> str:
    """Where MLflow finds the model folder `model` of the store, described for its tools. Safe to repeat."""
    url, describing = store.url_of(model), describing_files(manifest.digest)
    if urlsplit(url).scheme != "file" or urlsplit(tracking_uri).scheme not in ("http", "https"):
        for name, content in describing.items():
            store.create(f"{model}/{name}", content)  # what an earlier publisher described stays
        return url
    artifact = f"model-{manifest.digest[:12]}"  # a server does not take paths of a client's disk
    with tempfile.TemporaryDirectory() as folder:
        copy = fetch(store, model, Path(folder) / "model", manifest.digest)
        for name, content in describing.items():
            (copy / name).write_bytes(content)
        client.log_artifacts(run_id, str(copy), artifact)
    return f"{client.get_run(run_id).info.artifact_uri}/{artifact}"


def _refuse_code(version: ModelVersion, manifest: Manifest) -> None:
    """A model is weights. Whatever else a version brings (a pickle, a script) is not even downloaded."""
    if others := sorted(manifest.files.keys() - {WEIGHTS}):
        raise RegistryError(
            f"models:/{version.name}/{version.version}: holds {', '.join(others)[:200]}, which is no part of a model and might "
            "be code; nothing was downloaded"
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
            if not Path(path).is_file():
                raise RegistryError(f"{self.url_of(key)}: is a folder where a file should be; give another version")
            yield from file_chunks(Path(path))
