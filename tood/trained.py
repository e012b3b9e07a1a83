"""A trained model ready for use, as whoever knows torchvision's detectors expects it. Needs torch and torchvision alone."""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor

from tood.checkpoint import Model, ModelInfo, load_into, load_model
from tood.data.decoding import decode
from tood.detector import Detector
from tood.detectors import build_detector
from tood.errors import CheckpointError, ConfigError
from tood.finetune import require_fit
from tood.given_images import listed, pixels_of
from tood.recipe import Recipe, recipe_of


class TrainedDetector:
    """A detector with its weights, its classes' names by label, and the image size it was trained for."""

    def __init__(self, model: Model, recipe: Recipe, detector: Detector):
        self.info: ModelInfo = model.info
        self.names: list[str] = model.info.names
        self.recipe, self.detector = recipe, detector

    def predict(self, images: Sequence[Tensor | str | Path], threshold: float = 0.0) -> list[dict[str, Tensor]]:
        """RGB images [3, H, W], uint8 or float in [0, 1], or image files -> an image each {"boxes", "scores", "labels"}.

        boxes [D, 4] are xyxy in pixels of the image, scores [D] descend, labels [D] index `names`; on the CPU. Images are
        resized as in training. threshold: lowest score. Raises DataError for anything else, and for files that cannot be decoded.
        """
        sides = {"long_side": self.recipe.data.long_side, "short_side": self.recipe.data.short_side}
        found = []
        for place, image in enumerate(listed(images)):  # one by one: each with the padding of its own size, and little memory
            pixels = pixels_of([decode(Path(image)) if isinstance(image, str | PathLike) else image], first=place)
            (result,) = self.detector.predict(pixels, **sides)
            keep = result["scores"] >= threshold
            found.append({key: value[keep].cpu() for key, value in result.items()})
        return found

    __call__ = predict

    def to(self, device: str | torch.device) -> "TrainedDetector":
        self.detector.to(device)
        return self


def load(path: str | Path, device: str | torch.device | None = None) -> TrainedDetector:
    """A model from its folder, a checkpoint's folder or a .safetensors file; on the GPU if there is one, or on `device`.

    Every byte is verified and no code is read. Raises CheckpointError.
    """
    path = Path(path).expanduser()
    model = load_model(path)
    recipe = recipe_in(model, path)
    detector = detector_of(model, recipe, path)
    return TrainedDetector(model, recipe, detector).to(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def recipe_in(model: Model, path: Path) -> Recipe:
    """The recipe that a model was trained by. Raises CheckpointError, which names the model, for one that is not understood."""
    try:
        return recipe_of(model.info.config)
    except ConfigError as error:
        raise CheckpointError(f"{path}: its recipe is not one that this version of tood reads: {error}; update tood") from None


def detector_of(model: Model, recipe: Recipe, path: Path) -> Detector:
    """The detector that a recipe describes with a model's weights, in eval mode. Raises CheckpointError where they do not fit.

    They are compared before the detector gets any memory: a recipe of a few words can describe one of any size.
    """
    names = model.info.names
    with torch.device("meta"):
        outline = build_detector(recipe.model, len(names), recipe.predict)
    try:
        require_fit(outline, model.weights)
        detector = build_detector(recipe.model, len(names), recipe.predict)
        load_into(detector, model.weights, names_from=names, names=names, class_layers=detector.CLASS_LAYERS)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    return detector.eval()
