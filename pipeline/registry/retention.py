"""What may be removed from object storage: checkpoints that no version, no run and no live sweep refers to.

Kept are: whatever a version that is not retired was registered from, or a copy of it; the newest and the best checkpoint
of each run that MLflow still has, and every whole one of a run that did not finish; all of a sweep of which a run is
running; and what was written within the age limit. So space is freed by deleting runs in MLflow and by `tood models
retire`; their bytes are removed here and nowhere else.

Each removal holds the turn that registering holds too and looks at the versions again, so nothing that is registered
meanwhile is lost. Manifests go first: a reader finds a whole checkpoint or none. What writes left that were cut off is
`pipeline.storage.upkeep`'s.
"""

import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from mlflow import MlflowClient
from mlflow.entities import Run as MlflowRun
from mlflow.entities import ViewType

from pipeline.errors import IntegrityError, MissingObjectError
from pipeline.registry.access import DIGEST, all_versions, registry
from pipeline.registry.files import keeping
from pipeline.registry.promotion import RETIRED
from pipeline.storage.checkpoints import MANIFEST, MODELS, read_manifest, remove_checkpoint
from pipeline.storage.pointers import CHECKPOINTS, latest, pointer_key
from pipeline.storage.store import Entry, Store
from pipeline.storage.upkeep import Problem, folders, is_finished
from pipeline.tracking.runs import CHECKPOINT, IDENTITY, SWEEP


class Item(NamedTuple):
    """A checkpoint or a model in the store."""

    prefix: str
    size: int  # bytes
    age: float  # seconds since its newest object was written
    why: str  # it may go, or must stay
    goes: bool


def collect(tracking_uri: str, store: Store, *, older_than: float, unknown: bool = False, remove: bool = False) -> list[Item]:
    """Every checkpoint and model of the store, and whether it may go. remove: remove those that may.

    older_than: seconds; what is younger stays. unknown: checkpoints of runs that this MLflow never had, or has purged, may
    go too; by default they stay, for another MLflow may share the store. Raises RegistryError, StorageError.
    """
    with registry(tracking_uri) as client:
        runs = _Runs(client)
        registered = _Registered(client)
        items = []
        for prefix, entries in folders(store):
            item = _judge(store, prefix, entries, runs, registered, older_than, unknown)
            if item.goes and remove:
                with keeping(store):  # publishers wait, so what is registered now is all
                    if _Registered(client).has(store, prefix):
                        item = item._replace(why="registered meanwhile", goes=False)
                    else:
                        _remove(store, prefix)
            items.append(item)
    return items


def missing_versions(tracking_uri: str, store: Store) -> tuple[int, list[Problem]]:
    """How many versions in use were registered from this store, and those whose files it does not have as they were.

    Their content is `pipeline.storage.upkeep.check`'s to compare; here it is the sha256 of their manifests. Raises
    RegistryError.
    """
    top, count, problems = _place(store.url_of("")), 0, []
    with registry(tracking_uri) as client:
        for version in all_versions(client):
            place = _place(version.source)
            if RETIRED in version.tags or DIGEST not in version.tags or not place.startswith(f"{top}/"):
                continue
            count += 1
            key, name = place.removeprefix(f"{top}/"), f"models:/{version.name}/{version.version}"
            try:
                read_manifest(store, key, version.tags[DIGEST])
            except (MissingObjectError, IntegrityError) as error:
                problems.append(Problem(name, str(error), f"register its model again, or `tood models retire {name}`"))
    return count, problems


class _Registered:
    """Where the versions that are not retired lie, and the sha256 of their manifests."""

    def __init__(self, client: MlflowClient):
        versions = [version for version in all_versions(client) if RETIRED not in version.tags]
        self.places = {_place(version.source) for version in versions}
        self.digests = {version.tags.get(DIGEST) for version in versions}

    def has(self, store: Store, prefix: str) -> bool:
        model = f"{prefix}/model"
        if _place(store.url_of(model)) in self.places:
            return True
        try:
            return hashlib.sha256(store.get_bytes(f"{model}/{MANIFEST}")).hexdigest() in self.digests
        except MissingObjectError:
            return False


class _Runs:
    """What MLflow's runs say of the folders in `checkpoints/`: a folder is named after a run's identity."""

    def __init__(self, client: MlflowClient):
        self.best: dict[str, str] = {}  # folder -> best checkpoint, of runs that MLflow has
        self.finished: set[str] = set()
        self.deleted: set[str] = set()
        live = set()
        for run, is_deleted in _all_runs(client):
            folder = run.data.tags.get(IDENTITY, "").replace("/", "-")
            if not folder:
                continue
            if is_deleted:
                self.deleted.add(folder)
                continue
            self.best[folder] = run.data.tags.get(CHECKPOINT, "").rpartition("/")[2]
            if run.info.status == "RUNNING":
                live.add(run.data.tags.get(SWEEP) or folder)
            elif run.info.status == "FINISHED":
                self.finished.add(folder)
        self.live = tuple(live)

    def is_live(self, folder: str) -> bool:
        return any(folder == name or folder.startswith(f"{name}-") for name in self.live)


def _judge(
    store: Store, prefix: str, entries: Sequence[Entry], runs: _Runs, registered: _Registered, older_than: float, unknown: bool
) -> Item:
    age = time.time() - max(entry.modified for entry in entries)
    top, folder, *_ = prefix.split("/")

    def item(goes: bool, why: str) -> Item:
        return Item(prefix, sum(entry.size for entry in entries), age, why, goes)

    if age < older_than:
        return item(False, "younger than the limit")
    if top == MODELS:
        goes, why = True, "no version refers to it"
    elif runs.is_live(folder):
        goes, why = False, "its run or sweep is running"
    elif folder in runs.best:
        if not is_finished(prefix, entries):
            goes, why = False, "its upload never finished: see `tood storage clean`"
        elif folder not in runs.finished or not runs.best[folder]:
            goes, why = False, "of a run that did not finish"
        elif prefix.endswith(f"/{runs.best[folder]}") or prefix == _latest(store, folder):
            goes, why = False, "best or newest of a run"
        else:
            goes, why = True, "neither best nor newest of its run"
    elif folder in runs.deleted:
        goes, why = True, "its run was deleted"
    else:
        goes, why = unknown, "MLflow has no such run"
    return item(False, "a registered version") if goes and registered.has(store, prefix) else item(goes, why)


def _remove(store: Store, prefix: str) -> None:
    top, folder, *_ = prefix.split("/")
    if top == CHECKPOINTS and _latest(store, folder) == prefix:
        store.delete(pointer_key(folder))
    remove_checkpoint(store, prefix)


def _latest(store: Store, folder: str) -> str | None:
    try:
        return latest(store, folder)
    except IntegrityError:
        return None  # a damaged pointer; resuming says so


def _place(url: str) -> str:
    """A URL in one spelling: the same folder may be reached by way of a link."""
    parts = urlsplit(url)
    return os.path.realpath(unquote(parts.path)) if parts.scheme in ("file", "") else url.rstrip("/")


def _all_runs(client: MlflowClient) -> Iterator[tuple[MlflowRun, bool]]:
    """(run, is it deleted?) of every run of ours that MLflow has."""
    experiments = [e.experiment_id for e in client.search_experiments(ViewType.ALL, max_results=50_000)]
    for view in (ViewType.DELETED_ONLY, ViewType.ACTIVE_ONLY):
        token = None
        while experiments:
            page = client.search_runs(experiments, "", view, max_results=5000, page_token=token)
            yield from ((run, view == ViewType.DELETED_ONLY) for run in page)
            token = page.token
            if not token:
                break
