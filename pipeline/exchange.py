"""Models from and to other programs: checkpoints of mmdetection in and out, programs of torch.export and ONNX out."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torchvision
from torch import Tensor

from pipeline.config import experiment_of, merge
from pipeline.detect import evaluate_model, image_files, open_model
from pipeline.experiment_files import load_values, parse_overrides
from pipeline.registry.models import Version
from pipeline.registry.registration import register_folder
from pipeline.site import tracking_address
from pipeline.storage.opening import open_store
from tood import __version__
from tood.checkpoint import ModelInfo, save_model
from tood.config import config_hash, identity
from tood.data.coco import read_split
from tood.data.coco_classes import category_ids
from tood.data.decoding import decode
from tood.data.transforms import resize, resize_shape
from tood.errors import CheckpointError, ConfigError, DataError, ToodError
from tood.export.files import FORMATS, Deviation, export_detector, fit, sample_images
from tood.mmdet.conversion import class_names, describe, mmdet_weights, our_weights
from tood.mmdet.files import read_foreign, write_mmdet
from tood.results import read_json
from tood.run_state import val_metrics

UNMEASURED = "none"  # the data set of a model that nobody has measured here


class Imported(NamedTuple):
    folder: Path
    objective: str
    source: str  # where its recipe comes from
    assumed: tuple[str, ...]  # settings that nothing in the file says
    names: tuple[str, ...]
    tensors: int
    version: Version | None


class Exported(NamedTuple):
    file: Path
    form: str
    tensors: int  # of mmdet; 0 for programs
    deviation: Deviation | None  # of a program from the detector


def import_model(
    file: Path, output: Path, *, config: str | None, settings: Sequence[str], classes: str | None, register: str | None
) -> Imported:
    """Make a model folder of a checkpoint of mmdetection's or of TOOD's first code; nothing in the file is run.

    config: an experiment that describes the detector, instead of what the file says; settings: over either; classes: names,
    or a JSON file of them; register: a name in the model registry, under which it goes once it is measured on the val split
    of `data`. Raises CheckpointError, which lists every parameter that does not fit, and ConfigError.
    """
    overrides = parse_overrides(settings)
    foreign = read_foreign(file)
    wanted = (overrides.get("model") or {}).get("detector")
    with _naming(file):
        described = None if config else describe(foreign, wanted)
    values = merge(described.values, overrides) if described else load_values(config, settings)
    experiment = experiment_of({**values, "init": "none", "sweep": None})
    given, ids = _classes(classes) if classes else (foreign.classes, None)
    with _naming(file):
        names = class_names(foreign.state, experiment.model, given)
        weights = our_weights(foreign.state, experiment.model, len(names))
    recipe = experiment.recipe
    info = ModelInfo(
        config=identity(recipe),
        config_hash=config_hash(recipe),
        names=list(names),
        category_ids=list(ids or category_ids(names)),
        epoch=foreign.epoch,
        step=foreign.step,
        metrics={},
        dataset=UNMEASURED,
        versions={"tood": __version__, "torch": torch.__version__, "torchvision": torchvision.__version__},
    )
    save_model(output, weights, info)
    version = None
    if register:
        figures, _ = evaluate_model(output, values)
        measured = {"metrics": val_metrics(figures), "dataset": read_split(recipe.data, "val").fingerprint}
        save_model(output, weights, ModelInfo(**{**info.__dict__, **measured}))
        folder = Path(experiment.output).expanduser().absolute()
        tracking, store = tracking_address(experiment, folder), open_store(experiment.storage.url or str(folder / "store"))
        version = register_folder(tracking, store, output, register, experiment=experiment.tracking.experiment)
    source, assumed = (described.source, described.assumed) if described else (config, ())
    given_keys = {word.partition("=")[0] for word in settings}
    assumed = tuple(setting for setting in assumed if setting.partition("=")[0] not in given_keys)
    return Imported(output, recipe.model.objective.name, source, assumed, names, len(weights), version)


@contextlib.contextmanager
def _naming(file: Path) -> Iterator[None]:
    """What does not fit is said of the file that was given."""
    try:
        yield
    except (CheckpointError, ConfigError) as error:
        raise type(error)(f"{file}: {error}") from None


def export_model(
    path: Path,
    form: str,
    file: Path,
    *,
    nms: bool = True,
    size: tuple[int, int] | None = None,
    any_size: bool = False,
    images: Sequence[str] = (),
    values: dict[str, Any] | None = None,
) -> Exported:
    """Write a model in another form: "mmdet", or a program of FORMATS, which is run beside the model and compared.

    size: (height, width) of the images that a program is for, by default the recipe's; any_size: for all. images: what to
    compare on; values: as in `open_model`. Raises ExportError, ConfigError for what a form cannot express, and then leaves no file.
    """
    model, recipe, detector = open_model(path, values)
    if form == "mmdet":
        state = mmdet_weights(model.weights, recipe.model)
        about = {"classes": model.info.names, "epoch": model.info.epoch, "step": model.info.step}
        said = {key: identity(recipe)[key] for key in ("model", "predict", "data")}  # no path of this machine
        write_mmdet(file, state, recipe=said, **about)
        return Exported(file, form, len(state), None)
    height, width = size or (recipe.data.short_side, recipe.data.long_side)
    pictures = [decode(found) for found in image_files(images)] if images else sample_images()
    if any_size:
        sides = {"long_side": max(height, width), "short_side": min(height, width)}
        pictures = [_resized(picture, **sides) for picture in pictures]
        pictures = [*pictures, pictures[0].transpose(1, 2).contiguous()]  # another size, the same content
    else:
        pictures = [fit(picture, height, width) for picture in pictures]
    about = {"classes": model.info.names, "category_ids": model.info.category_ids, "config_hash": model.info.config_hash}
    deviation = export_detector(detector, file, form, pictures, with_nms=nms, any_size=any_size, about=about)
    return Exported(file, form, 0, deviation)


def check_file_name(form: str, file: Path) -> None:
    """Raises ToodError for a name that the form's own programs would not take."""
    ending = {**FORMATS, "mmdet": ".pth"}[form]
    if file.suffix != ending:
        raise ToodError(f"--output: {file.name}: a file of --format {form} ends in {ending}; name one that does")
    if file.is_dir():
        raise ToodError(f"--output: {file} is a folder; name a file in it")


def _resized(image: Tensor, *, long_side: int, short_side: int) -> Tensor:
    return resize(image, resize_shape(*image.shape[1:], long_side, short_side))


def _classes(text: str) -> tuple[tuple[str, ...], tuple[int, ...] | None]:
    """Names and category ids: of COCO annotations or a list in a JSON file, or names with commas between them."""
    if not text.endswith(".json"):
        return tuple(name.strip() for name in text.split(",")), None
    content: Any = read_json(Path(text))
    rows = content.get("categories") if isinstance(content, dict) else content
    if isinstance(rows, list) and rows and all(isinstance(row, str) for row in rows):
        return tuple(rows), None
    fits = isinstance(rows, list) and rows and all(isinstance(row, dict) for row in rows)
    if not fits or not all(isinstance(row.get("name"), str) and type(row.get("id")) is int for row in rows):
        raise DataError(f"{text}: neither a list of names nor COCO annotations with categories")
    rows = sorted(rows, key=lambda row: row["id"])
    return tuple(row["name"] for row in rows), tuple(row["id"] for row in rows)
