"""Decoded images kept in a folder, so that from the second epoch on reading one is a copy.

A file holds the pixels u8 [H, W, 3] of one image and nothing else. Its name says of which file, of which size and date, and how
large the picture is: what does not fit what it is asked for is not found. Whatever is in such a folder can be deleted.
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tood.atomic import write_file
from tood.data.record import ImageRecord
from tood.errors import DataError


def with_cache(images: Sequence[ImageRecord], folder: Path, gigabytes: float) -> list[ImageRecord]:
    """The same images; those that fit into so many gigabytes (1e9 bytes), in order, are to be kept in `folder`."""
    left, records = gigabytes * 1e9, []
    for record in images:
        left -= 3 * record.height * record.width
        records.append(record._replace(cache=folder) if left >= 0 else record)
    return records


def read(record: ImageRecord) -> Tensor | None:
    """u8 [3,H,W], in memory [H,W,3]; None where it is not there, or not whole."""
    try:
        pixels = np.fromfile(_place(record), np.uint8)
    except OSError:
        return None
    if pixels.size != 3 * record.height * record.width:
        return None
    return torch.from_numpy(pixels.reshape(record.height, record.width, 3)).permute(2, 0, 1)


def keep(record: ImageRecord, image: Tensor) -> None:
    """Raises DataError where the folder cannot be written to."""
    try:
        write_file(_place(record), image.permute(1, 2, 0).numpy().tobytes())
    except OSError as error:
        raise DataError(
            f"{record.cache}: decoded images cannot be kept there ({error.strerror}); free space, lower data.cache_gb, or set "
            "data.cache=''"
        ) from None


def _place(record: ImageRecord) -> Path:
    source = os.stat(record.path)
    identity = f"{os.path.realpath(record.path)}\n{source.st_size}\n{source.st_mtime_ns}"
    return record.cache / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}_{record.height}x{record.width}.rgb"
