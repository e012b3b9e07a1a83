"""`tood data check`: read and decode data sets whole, and say everything that is wrong with them at once."""

from collections.abc import Callable
from pathlib import Path

from pipeline.config import CacheConfig
from pipeline.data.cache import local_data
from tood.config import DataConfig
from tood.data.coco import CocoData, check_images, read_coco, read_split
from tood.errors import DataError
from tood.training import check_pair


def check_file(annotations: Path, images: Path, say: Callable[[str], None] = print) -> list[str]:
    """The problems of one COCO file and its images; what it holds goes to `say`."""
    return _read("data", lambda: read_coco(annotations, images), say)[1]


def check_experiment(config: DataConfig, cache: CacheConfig, say: Callable[[str], None] = print) -> list[str]:
    """The problems of both splits, apart and together; what they hold goes to `say`.

    Data from an address are fetched into the cache, and what lies there is hashed anew.
    """
    try:
        config = local_data(config, cache, verify=True, say=say)
    except DataError as error:
        return list(error.problems)
    train_data, problems = _read("train", lambda: read_split(config, "train"), say)
    val_data, more = _read("val", lambda: read_split(config, "val"), say)
    if train_data and val_data:
        try:
            check_pair(train_data, val_data, config)
        except DataError as error:
            more += error.problems
    return problems + more


def _read(name: str, read: Callable[[], CocoData], say: Callable[[str], None]) -> tuple[CocoData | None, list[str]]:
    try:
        data = read()
    except DataError as error:
        return None, [f"{name}: {problem}" for problem in error.problems]
    counts = [int((~r.crowd).sum()) for r in data.images]
    crowds = sum(int(r.crowd.sum()) for r in data.images)
    say(
        f"{name}: {len(data.images)} images ({counts.count(0)} without objects), {sum(counts)} objects, {crowds} crowds, "
        f"{len(data.names)} classes, fingerprint {data.fingerprint[:12]}"
    )
    return data, [f"{name}: {problem}" for problem in check_images(data)]
