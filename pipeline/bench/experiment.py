"""The small experiment whose surroundings are timed, quietly."""

from pathlib import Path

from pipeline.sweep import Values
from tood.bench.files import photographs


def small_experiment(root: Path, *, images: int, epochs: int) -> Values:
    """Of drawn photographs in `root`, where everything else goes too."""
    data = photographs(root, images)
    split = {"annotations": data.train.annotations, "images": data.train.images}
    return {
        "name": "bench",
        "output": str(root),
        "tracking": {"uri": f"sqlite:///{root / 'mlflow.db'}"},  # whatever MLFLOW_TRACKING_URI says
        "init": "none",
        "data": {"root": str(root), "train": split, "val": split, "workers": 0},
        "model": {"channels": 32, "neck": {"channels": 32}, "backbone": {"depth": 18}},
        "train": {"epochs": epochs},
    }


def quietly(text: str) -> None:
    """In place of `print`."""
