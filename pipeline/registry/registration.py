"""Register by hand what was not registered by training: a model folder of this machine, or the best checkpoint of a run."""

import contextlib
import math
from pathlib import Path
from typing import Any

from mlflow.exceptions import MlflowException

from pipeline.errors import RegistryError
from pipeline.registry.access import check_name, registry
from pipeline.registry.models import Info, Version, publish
from pipeline.storage.checkpoints import MODELS, Manifest, read_manifest
from pipeline.storage.checkpoints import verify as verify_stored
from pipeline.storage.folder import FolderStore
from pipeline.storage.opening import open_store
from pipeline.storage.pointers import CHECKPOINTS
from pipeline.storage.store import Store
from pipeline.tracking.facts import redact
from pipeline.tracking.runs import CHECKPOINT, Run, experiment_id
from tood.checkpoint import verify


def register_folder(
    tracking_uri: str, store: Store, folder: Path, name: str, *, metric: str = "val/AP", experiment: str = "", licence: str = ""
) -> Version:
    """Put a model folder, or the model of a checkpoint folder, into the store and register it; safe to repeat.

    It gets a run of its own in `experiment` (default: the model's name). Raises CheckpointError for what is no intact
    model of ours, RegistryError where the metric was not measured of it.
    """
    check_name(name)
    folder = folder.expanduser()
    if verify(folder)["kind"] == "checkpoint":
        folder = folder / "model"
    manifest = verify_stored(FolderStore(folder), "")
    info = info_of(manifest, metric, str(folder))
    with registry(tracking_uri):  # reached before anything is written
        pass
    prefix = f"{MODELS}/{manifest.digest[:16]}"
    for file in manifest.files:
        store.put_file(f"{prefix}/model/{file}", folder / file)
    store.put_bytes(f"{prefix}/model/manifest.json", manifest.raw)
    run = Run.open(
        tracking_uri,
        experiment_id(tracking_uri, experiment or name),
        identity=f"register-{manifest.digest[:16]}",
        name=f"register {name}",
        tags={"tood.kind": "register", "config_hash": info["config_hash"]},
    )
    try:
        version = publish(
            tracking_uri=tracking_uri,
            name=name,
            store=store,
            prefix=prefix,
            run_id=run.run_id,
            info=info,
            tags={},
            licence=licence,
        )
    except BaseException:
        run.finish("FAILED")
        raise
    run.finish()
    return version


def register_run(tracking_uri: str, run_id: str, name: str, *, metric: str = "val/AP", licence: str = "") -> Version:
    """Register the best checkpoint of a run of ours, which its tags name. Raises RegistryError where it has none."""
    check_name(name)
    with registry(tracking_uri) as client:
        try:
            run = client.get_run(run_id)
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            raise RegistryError(f"{run_id!r} is neither a model folder here nor a run of MLflow's; give one of them") from None
    place, mark, rest = run.data.tags.get(CHECKPOINT, "").rpartition(f"/{CHECKPOINTS}/")
    if not mark or run.info.lifecycle_stage != "active":
        why = "was deleted" if run.info.lifecycle_stage != "active" else f"has no checkpoint (tag {CHECKPOINT})"
        raise RegistryError(f"run {run_id} {why}; give a model's folder instead")
    store, prefix = open_store(place), f"{CHECKPOINTS}/{rest}"
    info = info_of(read_manifest(store, f"{prefix}/model"), metric, redact(store.url_of(prefix)))
    return publish(
        tracking_uri=tracking_uri,
        name=name,
        store=store,
        prefix=prefix,
        run_id=run_id,
        info=info,
        tags={f"hp.{key}": value for key, value in run.data.params.items()},
        licence=licence,
    )


def info_of(manifest: Manifest, metric: str, where: str) -> Info:
    """What a model's own manifest says of it. Raises RegistryError where the metric was not measured."""
    own: dict[str, Any] = manifest.values.get("info") or {}
    value = math.nan
    with contextlib.suppress(KeyError, TypeError, ValueError):
        value = float(own["metrics"][metric])
    if not math.isfinite(value):
        known = ", ".join(sorted(own.get("metrics") or {})) or "nothing"
        raise RegistryError(f"{where}: its {metric} was not measured, {known} was; name one of these by --metric")
    return {"metric": metric, "value": value} | {key: own[key] for key in ("config_hash", "dataset", "names", "epoch", "step")}
