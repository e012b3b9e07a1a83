"""What several verbs say or need."""

import argparse
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tood.errors import ToodError

EXPERIMENT = "a shipped experiment's name (`tood experiments`) or a YAML file"
MODEL = "models:/NAME@alias, a model or checkpoint folder, or a .safetensors file"
RUN = "MLflow run to log to; else tracking.uri, tracking.experiment or MLFLOW_TRACKING_URI make it a run of its own"
SECONDS = {"m": 60, "h": 3600, "d": 86_400, "w": 604_800}
SETTINGS = "overrides such as train.epochs=24 data.root=/data/coco"


def show(experiment) -> None:
    from pipeline.config import to_yaml
    from tood.optimisation import describe_rate

    print(to_yaml(experiment))
    print(f"# {describe_rate(experiment.train)}")
    print(f"# hash {experiment.hash}")


def experiment_and_settings(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """["bccd_r18", "data.root=x"] -> ("bccd_r18", ["data.root=x"]); the name may be left out."""
    named = [w for w in words if "=" not in w]
    if len(named) > 1:
        raise ToodError(f"expected one experiment and key=value settings, got {' '.join(named)}")
    return (named[0] if named else None), [w for w in words if "=" in w]


def values_and_places(experiment: str | None, settings: Sequence[str]) -> tuple[dict, str, Path]:
    """What an experiment and settings say, tracking's address and the output folder, for verbs that use a finished model."""
    from pipeline.config import experiment_of
    from pipeline.experiment_files import load_values, parse_overrides
    from pipeline.site import tracking_address

    values = load_values(experiment, settings) if experiment else parse_overrides(settings)
    checked = experiment_of(values)
    output = Path(checked.output).expanduser().absolute()
    return values, tracking_address(checked, output), output


def store_of(options: argparse.Namespace):
    """The object store that a verb's --set names: storage.url, else the folder `store` in `output`."""
    from pipeline.storage.opening import open_store

    values, _, output = values_and_places(None, options.set)
    return open_store((values.get("storage") or {}).get("url") or str(output / "store"))


def duration(text: str) -> float:
    """An argument's `type`: an age in seconds, written 30m, 12h, 7d or 4w."""
    found = re.fullmatch(r"(\d{1,6})([mhdw])", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is not an age such as 30m, 12h, 7d or 4w")
    return float(found[1]) * SECONDS[found[2]]


def table(head: list[str], rows: list[list[str]], nothing: str) -> None:
    if not rows:
        print(nothing)
        return
    widths = [max(len(line[i]) for line in [head, *rows]) for i in range(len(head))]
    for line in [head, *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def json_line(values: Any) -> str:
    """JSON on one line; numbers that JSON does not have, such as the best figure of a run without evaluation, are null."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [plain(inner) for inner in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(plain(values))


def human_bytes(count: int) -> str:
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
