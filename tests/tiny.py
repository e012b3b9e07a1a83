"""The smallest real work: coloured squares as a COCO data set, and a detector that a CPU trains in seconds."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (50, 60, 220)}
SIDE = 64

EXPERIMENT = """
data:
  root: {root}
  train: {{annotations: train.json, images: train}}
  val: {{annotations: val.json, images: val}}
  long_side: 64
  short_side: 64
  workers: 0
init: none
output: {output}
model:
  layers: 2
  channels: 16
  groups: 4
  neck: {{channels: 16}}
  backbone: {{depth: 18, frozen_stages: 0, norm_eval: false}}
  objective: {{name: task_aligned, warmup_epochs: 1}}
train: {{epochs: 4, milestones: [3], batch_size: 4, lr: 0.01, lr_batch_size: 4, warmup_steps: 4, log_every: 2}}
predict: {{score_threshold: 0.01}}
"""


def write_dataset(folder: Path, train: int = 16, val: int = 8) -> Path:
    """Squares on noise: one to three an image, the same for the same arguments."""
    generator = np.random.default_rng(7)
    for split, count in (("train", train), ("val", val)):
        (folder / split).mkdir(parents=True)
        images, annotations = [], []
        for image_id in range(1, count + 1):
            pixels = generator.integers(90, 140, (SIDE, SIDE, 3)).astype(np.uint8)
            for _ in range(generator.integers(1, 4)):
                side, category = int(generator.integers(16, 30)), int(generator.integers(1, 4))
                x, y = (int(v) for v in generator.integers(0, SIDE - side, 2))
                pixels[y : y + side, x : x + side] = list(COLOURS.values())[category - 1]
                box = {"bbox": [x, y, side, side], "area": side * side, "iscrowd": 0}
                annotations.append({"id": len(annotations) + 1, "image_id": image_id, "category_id": category, **box})
            Image.fromarray(pixels).save(folder / split / f"{image_id}.png")
            images.append({"id": image_id, "file_name": f"{image_id}.png", "width": SIDE, "height": SIDE})
        categories = [{"id": i, "name": name} for i, name in enumerate(COLOURS, start=1)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / f"{split}.json").write_text(json.dumps(content))
    return folder


def write_experiment(folder: Path, more: str = "") -> Path:
    """An experiment on such a data set, both made in `folder`; `more` is YAML added at the end."""
    if not (folder / "data").exists():
        write_dataset(folder / "data")
    file = folder / "tiny.yaml"
    file.write_text(EXPERIMENT.format(root=folder / "data", output=folder / "runs") + more)
    return file
