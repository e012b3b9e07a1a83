"""Use a trained model: detections on images, figures on a data set."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from pipeline.config import merge as deep_merge
from pipeline.data.cache import cache_of, local_data
from pipeline.refusals import make_folder
from pipeline.registry.models import pull, resolve
from tood.checkpoint import Model, load_model
from tood.config import build, to_dict
from tood.data.coco import CocoData, read_split
from tood.data.decoding import decode
from tood.detector import Detector
from tood.draw import draw_detections
from tood.errors import CheckpointError, DataError
from tood.evaluation import Figures, coco_figures, read_truth
from tood.inference import detect_all
from tood.memory import keep_freed_memory
from tood.recipe import Recipe
from tood.results import Detections, merge, results_from_predictions, write_results
from tood.trained import detector_of, recipe_in

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


def find_model(name: str, tracking: str, cache: Path) -> Path:
    """A model by its folder or file, or by its name in the registry; pulled ones stay in `cache`, verified at each use."""
    if not name.startswith("models:/"):
        path = Path(name).expanduser()
        if not path.exists():
            raise CheckpointError(f"{name}: no such model folder or file; give one, or a registered model as models:/NAME@alias")
        return path
    version, digest = resolve(name, tracking)
    # Another registry's model of the same name and number is another one.
    return pull(version, tracking, cache / f"{version.removeprefix('models:/').replace('/', '-')}-{digest[:12]}")


def open_model(path: Path, values: dict | None = None) -> tuple[Model, Recipe, Detector]:
    """A verified model, the recipe it was trained by, and the detector with its weights, on the GPU if there is one.

    values: what to change in the recipe's `data` and `predict`.
    """
    model = load_model(path)
    recipe = recipe_in(model, path)
    if values:
        changed = {key: values[key] for key in ("data", "predict") if key in values}
        changed["data"] = {key: value for key, value in changed.get("data", {}).items() if key != "augment"}  # of training
        recipe = build(Recipe, deep_merge(to_dict(recipe), changed))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        keep_freed_memory()
    return model, recipe, detector_of(model, recipe, path).to(device)


def require_same_classes(model: Model, data: CocoData) -> None:
    """Raises DataError where a data set's classes are not the model's."""
    if tuple(model.info.names) != data.names:
        raise DataError(
            f"{data.annotations}: its categories ({', '.join(data.names[:5])}, ...) are not the model's "
            f"({', '.join(model.info.names[:5])}, ...); use data with the same categories"
        )


def evaluate_model(path: Path, values: dict, output: Path | None = None) -> tuple[Figures, Detections]:
    """COCO figures of a model on the val split that `values` describe; what they leave open is as the model was trained."""
    model, recipe, detector = open_model(path, values)
    val_data = read_split(local_data(recipe.data, cache_of(values), ["val"]), "val")
    require_same_classes(model, val_data)
    found = detect_all(detector, val_data, recipe, next(detector.parameters()).device)
    if output is not None:
        write_results(output, found)
    return coco_figures(read_truth(val_data.annotations, val_data.dropped_ids), found), found


def predict(
    path: Path,
    images: Iterable[str],
    output: Path,
    threshold: float,
    values: dict | None = None,
    on_image: Callable[[dict, int], None] = lambda found, count: None,
) -> list[dict]:
    """Draw detections on images and folders of images into `output`, with predictions.json in COCO's results form.

    values: as in `open_model`. on_image: told of each image as it is done, and how many there are in all.
    The images have no ids of their own: images.json in `output` says which id stands for which file.
    """
    files = image_files(images)
    model, recipe, detector = open_model(path, values)
    make_folder(output, "--output")
    summary, found = [], []
    for image_id, file in enumerate(files, start=1):
        image = decode(file)
        sides = {"long_side": recipe.data.long_side, "short_side": recipe.data.short_side}
        (result,) = detector.predict([image], **sides)
        shown = {key: value[result["scores"] >= threshold].cpu() for key, value in result.items()}
        picture = draw_detections(image, shown["boxes"], shown["labels"], shown["scores"], model.info.names)
        picture.save(output / f"{image_id:04d}-{file.stem}.png")
        found.append(results_from_predictions([image_id], [shown], model.info.category_ids))
        summary.append({"id": image_id, "file_name": str(file), "detections": len(shown["scores"])})
        on_image(summary[-1], len(files))
    write_results(output / "predictions.json", merge(found))
    (output / "images.json").write_text(json.dumps(summary, indent=1))
    return summary


def image_files(images: Iterable[str]) -> list[Path]:
    """The files themselves, every one of which can be decoded. Raises DataError."""
    files: list[Path] = []
    for name in images:
        path = Path(name).expanduser()
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in PICTURES and p.is_file())
            if not inside:
                raise DataError(f"{path}: holds no image ({', '.join(PICTURES)}); give files or another folder")
            files += inside
        elif path.is_file():
            files.append(path)
        else:
            raise DataError(f"{name}: no such image or folder; correct the name")
    problems = []
    for file in files:  # decoded twice rather than leave half of the pictures behind
        try:
            decode(file)
        except DataError as error:
            problems += error.problems
    if problems:
        raise DataError("\n  ".join(problems), problems)
    return files
