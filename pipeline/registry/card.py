"""A model's card, in Markdown: what it was trained on, what it reaches, how to get it. From its manifest and its run."""

import json
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from pipeline.registry.access import CHALLENGER, CHAMPION
from pipeline.storage.checkpoints import Manifest
from pipeline.tracking.facts import flat_params, redact

ROOM = 4900  # characters; MLflow's databases keep 5000 of a description
FEW = 5  # classes shown at either end of the table
NAMES = 20  # classes that are named
PER_CLASS = ("last/per_class.json", "best/per_class.json")  # where a run keeps its figures per class


class Data(NamedTuple):
    context: str  # training, validation
    name: str
    fingerprint: str
    images: int | None


class Provenance(NamedTuple):
    """What a model's run says of how it came about; empty where the run does not say."""

    commit: str = ""
    dirty: bool = False
    data: tuple[Data, ...] = ()
    per_class: tuple[dict[str, dict[str, float]], ...] = ()  # figures of epochs, of which one may be the model's

    @classmethod
    def of_run(cls, client: MlflowClient, run_id: str) -> "Provenance":
        run = client.get_run(run_id)
        tags, data = run.data.tags, []
        for used in run.inputs.dataset_inputs:
            context = next((tag.value for tag in used.tags if tag.key == "mlflow.data.context"), "")
            whole = tags.get(f"data.{context}.fingerprint", used.dataset.digest)
            data.append(Data(context, used.dataset.name, whole, _images(used.dataset.profile)))
        per_class = [figures for path in PER_CLASS if (figures := _document(client, run_id, path))]
        commit = tags.get("mlflow.source.git.commit", "")
        return cls(commit, tags.get("git.dirty") == "yes", tuple(sorted(set(data))), tuple(per_class))


def about(name: str) -> str:
    """What a registered model's page says above its versions."""
    return (
        f"Object detection models of `tood`. The alias `{CHAMPION}` names the best version by the metric, and on the data, that "
        f"its tags state; it moves only to a strictly better one on the same data. `{CHALLENGER}` is the runner-up.\n\n"
        f"    tood pull models:/{name}@{CHAMPION}\n"
        f"    tood models show {name}\n"
        f"    tood models rollback {name}"
    )


def card(name: str, tags: Mapping[str, str], manifest: Manifest, provenance: Provenance, licence: str = "") -> str:
    """The description of a version. tags: as it will have them; licence: as its publisher states it."""
    info = manifest.values.get("info") or {}
    names, metrics = info.get("names") or [], info.get("metrics") or {}
    rows = {
        tags["metric"]: f"{float(tags['value']):.4f}",
        "measured on": f"data set `{tags['dataset'][:12]}`",
        "epoch, step": f"{tags['epoch']}, {tags['step']}",
        f"{len(names)} classes": ", ".join(names[:NAMES]) + (", ..." if len(names) > NAMES else ""),
        "configuration": f"`{tags['config_hash']}`",
        "code": _code(provenance),
        "licence": licence or "not stated",
        "manifest sha256": f"`{manifest.digest}`",
    }
    settings = {key.removeprefix("hp."): value for key, value in tags.items() if key.startswith("hp.")}
    settings = settings or {key: str(value) for key, value in flat_params(info.get("config") or {}).items()}
    parts = [
        "One-stage object detector: safetensors weights and a manifest, no code, no pickle.",
        _table(["", ""], [[key, value] for key, value in rows.items()]),
        _use(name),
        _data(provenance),
        _figures(metrics),
        _classes(provenance, metrics.get("val/AP")),
        "**Settings**: " + ", ".join(f"{key} {value}" for key, value in sorted(settings.items())) if settings else "",
    ]
    text = ""
    for part in filter(None, parts):  # a part is whole or absent
        if len(text) + len(part) + 2 > ROOM:
            break
        text += f"{part}\n\n"
    return redact(text.strip())


def _use(name: str) -> str:
    return (
        f"    tood pull models:/{name}@{CHAMPION} --output model    # or models:/{name}/VERSION; verifies every byte\n\n"
        "    from tood import load\n"
        '    detector = load("model")\n'
        '    detector.predict([image])    # uint8 [3, H, W] -> [{"boxes", "scores", "labels"}]\n\n'
        f'Served by MLflow where `tood` is installed: `mlflow models serve -m "models:/{name}@{CHAMPION}" --env-manager local`.'
    )


def _data(provenance: Provenance) -> str:
    if not provenance.data:
        return ""
    rows = [[d.context, d.name, "-" if d.images is None else str(d.images), f"`{d.fingerprint[:12]}`"] for d in provenance.data]
    return _table(["data", "name", "images", "fingerprint"], rows)


def _figures(metrics: Mapping[str, float]) -> str:
    figures = {key.removeprefix("val/"): f"{value:.4f}" for key, value in metrics.items() if key.startswith("val/A")}
    return _table(list(figures), [list(figures.values())]) if figures else ""


def _classes(provenance: Provenance, average: float | None) -> str:
    """The best and the worst classes, where the run kept figures whose mean is the model's own AP."""
    for figures in provenance.per_class:
        known = {name: f["AP"] for name, f in figures.items() if f.get("AP", -1) >= 0}
        if known and average is not None and math.isclose(sum(known.values()) / len(known), average, abs_tol=1e-6):
            order = sorted(known, key=lambda name: (-known[name], name))
            some = order if len(order) <= 2 * FEW else [*order[:FEW], "...", *order[-FEW:]]
            rows = [["...", ""] if n == "..." else [n, f"{known[n]:.4f}"] for n in some]
            return _table(["class", "AP"], rows)
    return ""


def _code(provenance: Provenance) -> str:
    if not provenance.commit:
        return "commit not known"
    return f"commit `{provenance.commit[:12]}`" + (" with changes" if provenance.dirty else "")


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "/").replace("\n", " ") for cell in line) + " |" for line in lines)


def _images(profile: str | None) -> int | None:
    try:
        return int(json.loads(profile or "")["images"])
    except (ValueError, TypeError, KeyError):
        return None


def _document(client: MlflowClient, run_id: str, path: str) -> dict[str, Any] | None:
    """A JSON object among the run's artifacts; None where it is not to be had, which a card can live without."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            found = json.loads(Path(client.download_artifacts(run_id, path, folder)).read_text())
        except (MlflowException, OSError, ValueError):
            return None
    return found if isinstance(found, dict) else None
