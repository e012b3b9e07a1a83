"""`tood data stats`: what a data set is like and what a recipe makes of it, as figures, a table and pictures."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.config import Experiment
from pipeline.data.cache import SPLITS, local_data
from pipeline.plots import data as plots
from tood.data.coco import CocoData, read_coco, read_split
from tood.data.stats import SIZES, Statistics, figures_of, statistics
from tood.errors import DataError

SHOWN_CLASSES = 30


def stats_of_experiment(experiment: Experiment, output: Path) -> tuple[dict[str, Any], str]:
    """Figures (plain JSON values) and table of both splits; written into `output` with the pictures."""
    config = local_data(experiment.data, experiment.cache, images=False, say=lambda line: None)
    if config.source == "digits":
        return _stats({split: read_split(config, split) for split in SPLITS}, experiment, output)
    root, files = Path(config.root).expanduser(), {split: getattr(config, split) for split in SPLITS}
    return _stats({n: _read(root / f.annotations, root / f.images, experiment) for n, f in files.items()}, experiment, output)


def stats_of_file(annotations: Path, images: Path, experiment: Experiment, output: Path) -> tuple[dict[str, Any], str]:
    """The same of one COCO file, at the experiment's resize."""
    return _stats({annotations.stem: _read(annotations, images, experiment)}, experiment, output)


def _read(annotations: Path, images: Path, experiment: Experiment) -> CocoData:
    """The annotations alone: whether the images are there does not matter here."""
    return read_coco(annotations, images, invalid_boxes=experiment.data.invalid_boxes, check_files=False)


def _stats(splits: Mapping[str, CocoData], experiment: Experiment, output: Path) -> tuple[dict[str, Any], str]:
    data, model = experiment.data, experiment.model
    m = getattr(model.objective, "m", 13)
    found = {
        name: statistics(split, long_side=data.long_side, short_side=data.short_side, centre_offset=model.centre_offset)
        for name, split in splits.items()
    }
    figures = {"long_side": data.long_side, "short_side": data.short_side}
    figures["splits"] = {name: {"fingerprint": splits[name].fingerprint} | figures_of(s, m) for name, s in found.items()}
    text = table(figures)
    try:
        output.mkdir(parents=True, exist_ok=True)
        (output / "stats.json").write_text(json.dumps(figures, indent=1))
        (output / "stats.txt").write_text(text)
        for file, figure in _pictures(found, m).items():
            figure.savefig(output / file)
    except OSError as error:
        raise DataError(f"--output: {output} cannot be written ({error.strerror}); choose another folder") from None
    return figures, text


def _pictures(found: Mapping[str, Statistics], m: int) -> dict[str, Any]:
    return {
        "classes.png": plots.classes(found),
        "sizes.png": plots.sizes(found),
        "shapes.png": plots.shapes(found),
        "points.png": plots.points(found, m),
    }


def table(figures: Mapping[str, Any]) -> str:
    """The figures for a person, a column a split."""
    splits = figures["splits"]
    rows: list[tuple[str, list[str]]] = []

    def add(name: str, cell) -> None:
        rows.append((name, [cell(of_split) for of_split in splits.values()]))

    add("images", lambda f: f"{f['images']:,}")
    add("  without objects", lambda f: f"{f['images_without_objects']:,}")
    add("objects", lambda f: f"{f['objects']:,}")
    add("crowds", lambda f: f"{f['crowds']:,}")
    add("objects an image, mean (max)", lambda f: _pair(f["objects_an_image"], "mean", "max"))
    add("width : height, 5 % - 95 %", lambda f: _pair(f["aspect_ratio"], "p05", "p95", "{} - {}"))
    add("side, px, 5 % - 95 %", lambda f: _pair(f["side"], "p05", "p95", "{} - {}"))
    add("resize, median", lambda f: _number(f["resize"]["median"]))
    for size in SIZES:
        add(f"{size}, in the file", lambda f, size=size: _share(f["sizes"][size], f["objects"]))
    for size in SIZES:
        add(f"{size}, resized", lambda f, size=size: _share(f["sizes_after_resize"][size], f["objects"]))
    for stride in next(iter(splits.values()))["levels"]:
        add(
            f"a point of stride {stride} inside",
            lambda f, s=stride: _share(f["levels"][s]["objects_with_a_point"]["all"], f["objects"]),
        )
    add("no point inside at all", lambda f: _share(f["objects_without_a_point"]["all"], f["objects"]))
    for size in SIZES:
        add(f"  {size}", lambda f, size=size: _share(f["objects_without_a_point"][size], f["sizes"][size]))
    m = next(iter(splits.values()))["m"]
    add(f"fewer than m = {m} points", lambda f: _share(f["objects_with_fewer_points_than_m"]["all"], f["objects"]))
    first = next(iter(splits.values()))["classes"]
    common = sorted(first, key=lambda name: -first[name]["objects"])
    for name in common[:SHOWN_CLASSES]:
        add(f"class {name:.40}", lambda f, name=name: f"{f['classes'].get(name, {'objects': 0})['objects']:,}")
    if len(common) > SHOWN_CLASSES:
        add(f"{len(common) - SHOWN_CLASSES} more classes", lambda f: "")
    width = max(len(name) for name, _ in rows) + 2
    column = max(14, *(len(cell) + 2 for _, cells in rows for cell in cells), *(len(name) + 2 for name in splits))
    said = f"resize to {figures['long_side']} x {figures['short_side']}"
    head = f"{said:<{width}}" + "".join(f"{name:>{column}}" for name in splits)
    lines = [f"{name:<{width}}" + "".join(f"{cell:>{column}}" for cell in cells) for name, cells in rows]
    return "\n".join(line.rstrip() for line in [head, *lines]) + "\n"


def _share(count: int, total: int) -> str:
    return f"{count:,} ({count / total:.1%})" if total else "-"


def _pair(spread: Mapping[str, float | None], one: str, other: str, form: str = "{} ({})") -> str:
    return "-" if spread[one] is None else form.format(_number(spread[one]), _number(spread[other]))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}" if value >= 100 or value == int(value) else f"{value:.2f}"
