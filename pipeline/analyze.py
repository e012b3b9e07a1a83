"""`tood analyze`: what a detector does well and where it fails, as figures, a table and pictures, here and in MLflow."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.cache import cache_of, local_data
from pipeline.detect import open_model, require_same_classes
from pipeline.plots import analysis as plots
from pipeline.refusals import make_folder
from pipeline.tracking.log_to import log_to
from tood.analysis import SIZES, analyse, figures_of
from tood.config import identity
from tood.data.coco import read_split

SHOWN_CONFUSIONS = 5


def analyze_model(
    path: Path, values: Mapping[str, Any], target: Path, *, name: str, threshold: float, tracking: str, run_id: str | None
) -> tuple[dict[str, Any], str]:
    """Figures (plain JSON values) and table of a model on the val split that `values` describe.

    Written into the folder `target`: analysis.json, analysis.txt and three pictures. `name`: the model's, for a person.
    """
    model, recipe, detector = open_model(path, values)
    data = read_split(local_data(recipe.data, cache_of(values), ["val"]), "val")
    require_same_classes(model, data)
    make_folder(target, "--output")
    info = model.info
    about = [info.config_hash, info.step, data.fingerprint, identity(recipe.data), identity(recipe.predict), threshold]
    with log_to(tracking, values, run_id, kind="analyze", name=name, identity=about) as run:
        result = analyse(detector, data, recipe, threshold=threshold, on_batch=_progress)
        figures = {"model": name, "config_hash": info.config_hash, "epoch": info.epoch, "step": info.step}
        figures |= {"annotations": data.annotations.name, "fingerprint": data.fingerprint, **figures_of(result)}
        text = table(figures)
        pictures = {
            "alignment.png": plots.alignment(result.objects.pcc, result.objects.iou),
            "errors.png": plots.error_costs(result.errors.costs, result.errors.ap50),
            "confusions.png": plots.confusions(result.confusion, result.names, threshold),
        }
        (target / "analysis.json").write_text(json.dumps(figures, indent=1))
        (target / "analysis.txt").write_text(text)
        for file, figure in pictures.items():
            figure.savefig(target / file)
        if run:
            run.metrics(metrics_of(figures), step=info.step)
            if not run_id:
                run.params({"model": name, "config_hash": info.config_hash, "epoch": info.epoch, "threshold": threshold})
                run.dataset(data.annotations.stem, data.fingerprint, "validation", len(data.images))
                run.description(f"```\n{text}```")
            run.document(figures, "analysis/analysis.json")
            run.text(text, "analysis/analysis.txt")
            for file, figure in pictures.items():
                run.figure(figure, f"analysis/{file}")
    return figures, text


def metrics_of(figures: Mapping[str, Any]) -> dict[str, float]:
    """The figures as MLflow's flat metrics; what is not defined is left out."""
    flat = {"AP50": figures["AP50"]} | {f"{kind}_boxes": count for kind, count in figures["boxes"].items()}
    for size, of_size in figures["objects"].items():
        end = "" if size == "all" else f"_{size}"
        flat |= {f"{key}{end}": of_size[key] for key in ("pcc_top50", "iou_top10", "share_without_positive", "positives")}
    for kind, cost in figures["errors"].items():
        flat |= {f"{kind}_errors": cost["count"], f"{kind}_AP50_gain": cost["AP50_gain"]}
    return {f"analysis/{key}": float(value) for key, value in flat.items() if value is not None}


def table(figures: Mapping[str, Any]) -> str:
    """The figures for a person."""
    sizes = [figures["objects"][size] for size in SIZES]
    lines = [f"{figures['model']} on {figures['annotations']}: {figures['images']} images", ""]
    rows = {
        "objects": [f"{s['objects']:,}" for s in sizes],
        "PCC of rankings, top 50": [_number(s["pcc_top50"], ".3f") for s in sizes],
        "mean IoU, top 10": [_number(s["iou_top10"], ".3f") for s in sizes],
        "points that learn an object": [_number(s["positives"], ".1f") for s in sizes],
        "objects without such a point": [f"{s['without_positive']:,}" for s in sizes],
        "their share": [_number(s["share_without_positive"], ".1%") for s in sizes],
    }
    lines += [f"{'task alignment':<30}" + "".join(f"{size:>9}" for size in SIZES)]
    lines += [f"{name:<30}" + "".join(f"{cell:>9}" for cell in cells) for name, cells in rows.items()]
    boxes = figures["boxes"]
    lines += ["", f"{'boxes after NMS':<30}{'count':>9}"]
    lines += [
        f"{name:<30}{boxes[key]:>9,}"
        for key, name in (("correct", "correct (IoU >= .5)"), ("redundant", "redundant"), ("error", "error (.1 < IoU < .5)"))
    ]
    lines += ["", f"{'errors at IoU .50':<30}{'count':>9}{'AP50 gained if mended':>24}"]
    lines += [f"{kind:<30}{cost['count']:>9,}{cost['AP50_gain']:>24.4f}" for kind, cost in figures["errors"].items()]
    lines += [f"{'(AP50 now)':<30}{'':>9}{figures['AP50']:>24.4f}"]
    lines += _confusions(**figures["confusion"])
    return "\n".join(lines) + "\n"


def _confusions(threshold: float, names: list[str], matrix: list[list[int]]) -> list[str]:
    between = np.array(matrix)[:-1, :-1]
    np.fill_diagonal(between, 0)
    order = np.argsort(-between, axis=None, kind="stable")[:SHOWN_CONFUSIONS]
    pairs = [(int(row), int(column)) for row, column in zip(*np.unravel_index(order, between.shape), strict=True)]
    found = [f"{names[row]} taken for {names[column]}" for row, column in pairs if between[row, column]]
    counts = [between[row, column] for row, column in pairs if between[row, column]]
    if not found:
        return ["", f"no confusions between classes (scores from {threshold:g})"]
    head = ["", f"{f'confusions (scores from {threshold:g})':<30}{'count':>9}"]
    return head + [f"{name:<30}{count:>9,}" for name, count in zip(found, counts, strict=True)]


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:{form}}"


def _progress(done: int, total: int) -> None:
    """One line that renews itself, for a person who watches."""
    if sys.stderr.isatty():
        print(f"\r{done}/{total} images", end="\n" if done == total else "", file=sys.stderr, flush=True)
