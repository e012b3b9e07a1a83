"""Fixed cases that read files: a loader's photographs, and COCO's figures of many detections."""

import json
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tood.bench.cases import COCO_CLASSES, Case, Group, Sizes
from tood.bench.parts import arrival, loading
from tood.config import DataConfig, SplitConfig
from tood.data.coco import read_split
from tood.data.loaders import TrainLoader
from tood.evaluation import coco_figures, read_truth
from tood.results import Detections

BATCH = 8  # photographs
FOUND = 100  # detections an image
WIDTH, HEIGHT = 640, 480
PEER_PHOTOGRAPH = 0.0053  # s
LEFT_TO_THE_DEVICE = {
    "a photograph": {},
    "resized on the device": {"resize": "device"},
    "and decoded there": {"resize": "device", "decode": "device"},
}


def loaders(sizes: Sizes, device: torch.device, data: DataConfig | None = None) -> Iterator[Group]:
    """Photographs read, decoded, resized, flipped and put together, by one process: those of `data`, or drawn ones.

    Of what is left to the device a loader's part is timed; where there is a GPU also until the batch has arrived on it.

    Raises DataError where they cannot be read.
    """
    with tempfile.TemporaryDirectory(prefix="tood-bench-") as folder:
        work = f"photographs of {data.root}" if data else f"drawn photographs of {WIDTH}x{HEIGHT}"
        variants = {"a photograph": {}} if data else LEFT_TO_THE_DEVICE
        data = data or photographs(Path(folder), sizes.photographs)
        split, cases = read_split(data, "train"), []
        for name, choices in variants.items():
            loader = TrainLoader(split, replace(data, workers=0, **choices), batch_size=BATCH, seed=0)
            units = min(BATCH, len(loader.images))
            peer = None if "decode" in choices else PEER_PHOTOGRAPH  # whose loader decodes
            cases.append(Case(name, loading(loader), peer, units))
            if device.type == "cuda":
                cases.append(Case(f"{name}, arrived", arrival(loading(loader), device), units=units))
        yield Group("loader", f"{work} to {data.long_side}x{data.short_side}, by one process", cases)


def evaluations(sizes: Sizes, device: torch.device) -> Iterator[Group]:
    """From detections as arrays to COCO's figures, annotations read before. pycocotools takes long: it is called once."""
    with tempfile.TemporaryDirectory(prefix="tood-bench-") as folder:
        annotations, found = _annotated(Path(folder), sizes.evaluated)
        truth = read_truth(annotations)
        cases = [
            Case(backend, lambda backend=backend: coco_figures(truth, found, backend=backend))
            for backend in ("pycocotools", "hotcoco")
            if _there(backend)
        ]
        for case in cases[1:]:
            case.operation()
        yield Group("eval", f"{sizes.evaluated} images, {FOUND} detections each", cases, warm_ups=0, rounds=1, on_device=False)


def _there(package: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(package) is not None


def photographs(root: Path, count: int) -> DataConfig:
    """JPEGs as large as photographs are: smooth shapes under a little grain, of about 100 kB each, with 7 objects."""
    draw = np.random.default_rng(0)
    (root / "images").mkdir()
    images, objects = [], []
    for number in range(1, count + 1):
        coarse = Image.fromarray(draw.integers(0, 256, (HEIGHT // 20, WIDTH // 20, 3), dtype=np.uint8))
        pixels = np.asarray(coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)) + draw.normal(0, 8, (HEIGHT, WIDTH, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / "images" / f"{number}.jpg", quality=90)
        images.append({"id": number, "file_name": f"{number}.jpg", "width": WIDTH, "height": HEIGHT})
        objects += _objects(draw, number, len(objects), 7)
    (root / "photographs.json").write_text(json.dumps(_document(images, objects)))
    split = SplitConfig("photographs.json", "images")
    return DataConfig(root=str(root), train=split, val=split)


def _annotated(root: Path, count: int) -> tuple[Path, Detections]:
    """Seven objects an image; detections near objects, of the right class mostly, and elsewhere."""
    draw = np.random.default_rng(0)
    images = [{"id": i, "file_name": f"{i}.jpg", "width": WIDTH, "height": HEIGHT} for i in range(1, count + 1)]
    objects: list[dict] = []
    for image in images:
        objects += _objects(draw, image["id"], len(objects), 7)
    path = root / "annotations.json"
    path.write_text(json.dumps(_document(images, objects)))
    boxes = np.array([a["bbox"] for a in objects]).reshape(count, 7, 4)
    classes = np.array([a["category_id"] for a in objects]).reshape(count, 7)
    nearest = draw.integers(0, 7, (count, FOUND))
    near = np.take_along_axis(boxes, nearest[:, :, None], axis=1)
    spread = draw.choice([0.03, 0.1, 0.5], (count, FOUND, 1)) * np.tile(near[..., 2:], 2)
    near = near + spread * draw.normal(size=near.shape)
    near[..., 2:] = near[..., 2:].clip(min=1)
    right = draw.random((count, FOUND)) < 0.7
    found = np.where(right, np.take_along_axis(classes, nearest, axis=1), draw.integers(1, COCO_CLASSES + 1, (count, FOUND)))
    ids = np.repeat(np.arange(1, count + 1), FOUND)
    return path, Detections(ids, near.reshape(-1, 4), draw.random(count * FOUND), found.ravel())


def _objects(draw: np.random.Generator, image: int, before: int, count: int) -> list[dict]:
    size = np.exp(draw.uniform(np.log(12), np.log(240), (count, 2)))
    corner = draw.random((count, 2)) * (np.array([WIDTH, HEIGHT]) - size)
    categories = draw.integers(1, COCO_CLASSES + 1, count).tolist()
    return [
        {"id": before + i + 1, "image_id": image, "category_id": categories[i], "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
        for i, box in enumerate(np.concatenate([corner, size], axis=1).tolist())
    ]


def _document(images: list[dict], objects: list[dict]) -> dict:
    categories = [{"id": i, "name": f"class {i}"} for i in range(1, COCO_CLASSES + 1)]
    return {"images": images, "annotations": objects, "categories": categories}
