"""A registered model as MLflow's pyfunc, for `mlflow.pyfunc.load_model` and `mlflow models serve`. Nothing is pickled.

The files beside the weights name this module, installed with `tood`, as the one that loads them; no code travels with a
model. The weights are verified against their manifest before use, as everywhere.
"""

import base64
import binascii
import io
import json
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from tood.errors import DataError

COLUMN = "image"
MAX_BYTES = 64 << 20  # of one encoded image


class ServedDetector:
    """What MLflow calls: a column `image` -> a list of {"boxes", "scores", "labels", "names"} as plain lists."""

    def __init__(self, folder: Path):
        from tood.trained import load

        self.detector = load(folder)

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> list[dict[str, list]]:
        """model_input: a table whose column `image` holds image files' bytes, their base64, or `pathlib.Path`s.

        A string is base64 and never a path, so that nobody can make a server open its own files. params: `threshold`.
        """
        from tood.data.decoding import decode

        values: list[Any] = []
        for cell in model_input[COLUMN]:  # MLflow makes one cell of {"image": [a, b]}
            values += cell if isinstance(cell, list | tuple) else [cell]
        images = [_file_of(value, f"image {i}") for i, value in enumerate(values)]
        pixels = [decode(image) for image in images]  # all of them before the first is worked on
        found = self.detector.predict(pixels, threshold=float((params or {}).get("threshold", 0.0)))
        return [
            {key: value.tolist() for key, value in result.items()}
            | {"names": [self.detector.names[label] for label in result["labels"].tolist()]}
            for result in found
        ]


def _load_pyfunc(path: str) -> ServedDetector:
    """MLflow calls this with the folder of the model."""
    return ServedDetector(Path(path))


def describing_files(digest: str) -> dict[str, bytes]:
    """What MLflow's own tools look for beside the weights of the model whose manifest has this sha256."""
    from mlflow.models import Model, ModelSignature
    from mlflow.pyfunc import add_to_model
    from mlflow.types.schema import AnyType, ColSpec, ParamSchema, ParamSpec, Schema

    signature = ModelSignature(
        inputs=Schema([ColSpec(AnyType(), COLUMN)]),
        params=ParamSchema([ParamSpec("threshold", "double", 0.0)]),
    )
    model = Model(signature=signature, model_uuid=digest[:32])
    add_to_model(model, loader_module=__name__, python_env="python_env.yaml")
    packages = [f"{name}=={metadata.version(name)}" for name in ("tood", "torch", "torchvision", "mlflow")]
    return {
        "MLmodel": model.to_yaml().encode(),
        "requirements.txt": "\n".join([*packages, ""]).encode(),
        # JSON is YAML as well
        "python_env.yaml": json.dumps({"python": platform.python_version(), "dependencies": ["-r requirements.txt"]}).encode(),
    }


class _Received(io.BytesIO):
    """An image's bytes under the name that an error calls it by."""

    def __init__(self, content: bytes, name: str):
        super().__init__(content)
        self.name = name

    def __str__(self) -> str:
        return self.name


def _file_of(value: Any, name: str) -> Path | _Received:
    if isinstance(value, Path):
        return value
    if isinstance(value, str):
        try:
            value = base64.b64decode(value.partition("base64,")[2] if value.startswith("data:") else value, validate=True)
        except (binascii.Error, ValueError):
            raise DataError(f"{name}: {value[:40]!r} is not base64; a file's path is given as a pathlib.Path") from None
    if not isinstance(value, bytes | bytearray):
        raise DataError(f"{name}: a {type(value).__name__}; give an image file's bytes, their base64, or a pathlib.Path")
    if len(value) > MAX_BYTES:
        raise DataError(f"{name}: {len(value)} bytes; send at most {MAX_BYTES}")
    return _Received(value, name)
