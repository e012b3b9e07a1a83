"""TOOD and its relatives: one-stage object detectors as combinations of five choices. Needs torch and torchvision alone."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tood.trained import TrainedDetector

__version__ = "0.1.0"


def load(path, device=None) -> "TrainedDetector":
    """A trained model from its folder or .safetensors file, ready for use; see `tood.trained`.

    `load("runs/demo/model").predict([image])`, an image being uint8 [3, H, W], answers as torchvision's detectors do:
    [{"boxes", "scores", "labels"}].
    """
    from tood.trained import load  # torch is loaded only where a model is

    return load(path, device)
