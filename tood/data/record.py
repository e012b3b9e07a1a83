"""One image of a data set: where it lies and what is on it. G objects."""

from pathlib import Path
from typing import NamedTuple

import numpy as np


class ImageRecord(NamedTuple):
    image_id: int
    path: Path
    height: int
    width: int
    boxes: np.ndarray  # f32 [G,4] xyxy px, inside the image, crowds included
    labels: np.ndarray  # i64 [G], 0-based
    crowd: np.ndarray  # bool [G]: a group of objects; never an object to learn
    areas: np.ndarray | None = None  # f64 [G] as annotated: COCO's small, medium and large go by it
    cache: Path | None = None  # folder where its decoded pixels are kept (tood.data.cache)
