"""A picture of what a detector finds on the first images of a data set, beside the truth."""

import numpy as np
import torch
from PIL import Image

from tood.data.coco import CocoData
from tood.data.decoding import decode
from tood.draw import contact_sheet, draw_detections
from tood.results import Detections, merge


def sample_sheet(data: CocoData, found: Detections | None = None, *, images: int = 6, threshold: float = 0.3) -> Image.Image:
    """The first images that hold objects, with the truth and, if there are any, detections above a threshold, as one sheet."""
    found = merge([]) if found is None else found
    label_of = {category: label for label, category in enumerate(data.category_ids)}
    chosen = [record for record in data.images if len(record.boxes)][:images] or list(data.images[:images])
    pictures = []
    for record in chosen:
        mine = (found.image_ids == record.image_id) & (found.scores >= threshold)
        boxes = found.boxes[mine].copy()
        boxes[:, 2:] += boxes[:, :2]
        labels = np.array([label_of[c] for c in found.category_ids[mine].tolist()], dtype=np.int64)
        pictures.append(
            draw_detections(
                decode(record.path),
                torch.from_numpy(boxes),
                torch.from_numpy(labels),
                torch.from_numpy(found.scores[mine]),
                data.names,
                truth=torch.from_numpy(record.boxes),
            )
        )
    return contact_sheet(pictures, columns=3)
