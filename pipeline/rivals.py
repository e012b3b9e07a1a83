"""Measure a version and its champion on the same data, for versions whose own figures do not compare."""

import json
from pathlib import Path
from typing import NamedTuple

from pipeline.data.cache import cache_of, local_data
from pipeline.detect import evaluate_model, find_model
from pipeline.errors import RegistryError
from pipeline.registry.access import CHAMPION, alias_of, find_version, now, parse, registry, who
from pipeline.registry.promotion import MEASURED, figures_of
from tood.config import DataConfig, build
from tood.data.coco import read_split


class Measured(NamedTuple):
    version: int
    value: float
    dataset: str  # fingerprint
    metric: str


def measure(tracking_uri: str, version: str, values: dict, cache: Path, *, metric: str = "val/AP") -> list[Measured]:
    """Figures of the version and of the champion on the val split that `values` name; kept as tags, so measured once.

    cache: folder for pulled models. Raises RegistryError, DataError where the data's classes are not the model's.
    """
    where = local_data(build(DataConfig, values.get("data") or {}), cache_of(values), ["val"])
    data = read_split(where, "val").fingerprint
    with registry(tracking_uri) as client:
        first = find_version(client, parse(version))
        champion = alias_of(client, first.name, CHAMPION)
    found = []
    for number in sorted({int(first.version), champion or int(first.version)}):
        name = f"models:/{first.name}/{number}"
        with registry(tracking_uri) as client:
            known = figures_of(find_version(client, parse(name)).tags).get((data, metric))
        if known is None:
            figures, _ = evaluate_model(find_model(name, tracking_uri, cache), values)
            known = figures.summary.get(metric.removeprefix("val/"), -1.0)
            if known < 0:
                raise RegistryError(f"{name}: {metric} is not defined on these data; name another --metric")
            record = {"dataset": data, "metric": metric, "value": known, "at": now(), "by": who()}
            with registry(tracking_uri) as client:
                key = f"{MEASURED}{data[:12]}.{metric.replace('/', '.')}"
                client.set_model_version_tag(first.name, str(number), key, json.dumps(record))
        found.append(Measured(number, known, data, metric))
    return found
