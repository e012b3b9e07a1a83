"""Write an exported detector as a file, then run that file beside the detector itself on photographs.

A file that does not give what the detector gives is not kept. Nothing here opens a file that it has not just written.
"""

import json
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.export import Dim

from tood.data.transforms import resize
from tood.detector import Detector
from tood.export.check import Deviation, ExportError, Program, compare, require_same, telling_threshold
from tood.export.program import OUTPUTS, ExportedDetector, suppress

__all__ = ["FORMATS", "Deviation", "export_detector", "fit", "open_program", "sample_images"]

FORMATS = {"torch": ".pt2", "onnx": ".onnx"}
ABOUT = "tood.json"  # what travels beside the program, as JSON: in a .pt2 an extra file, in ONNX a property `tood`
LARGEST = 4096  # side of an image, with any_size


def export_detector(
    detector: Detector,
    file: Path,
    form: str,
    images: list[Tensor],
    *,
    with_nms: bool,
    any_size: bool,
    about: dict[str, Any] | None = None,
) -> Deviation:
    """Write `file` in a form of FORMATS, made for the size of the first of `images` u8 [3, H, W] or for any, checked on all.

    `about`: plain values that travel along. Where the detector finds nothing on the images, what is compared is a second
    program of a lower threshold, made in the same way. Raises ExportError, and then leaves no file, where a form cannot
    express the detector or the program deviates from it.
    """
    detector = detector.cpu().eval()
    if form == "onnx":
        require_onnx()
    least = _least_side(detector)
    beyond = [list(image.shape[1:]) for image in images if not all(least <= side <= LARGEST for side in image.shape[1:])]
    if any_size and beyond:
        raise ExportError(f"--dynamic: images have sides from {least} to {LARGEST} px, one here is {beyond[0]}; use --size")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=file.parent, prefix=f".{file.stem}.") as folder:
            written = Path(folder) / f"detector{FORMATS[form]}"
            _write(detector, written, form, images[0], with_nms, any_size, about or {})
            program = open_program(written, form)
            for image in images:
                program(image)
            deviation = _check(detector, program, Path(folder), form, images, with_nms, any_size)
            os.replace(written, file)
    except OSError as error:
        raise ExportError(f"{file}: cannot be written: {error.strerror or error}") from None
    return deviation


def _least_side(detector: Detector) -> int:
    """Of an image, with any_size: a program counts on maps of two cells and more. P7 has them from 129 on, its half from 257."""
    return 288 if detector.head.predictor.cells > 1 else 160


def _check(
    detector: Detector, program: Program, folder: Path, form: str, images: list[Tensor], with_nms: bool, any_size: bool
) -> Deviation:
    configured = detector.predict_config
    threshold = telling_threshold(detector, images)
    if threshold != configured.score_threshold:
        detector.predict_config = replace(configured, score_threshold=threshold)
    try:
        if threshold != configured.score_threshold:
            twin = folder / f"twin{FORMATS[form]}"
            _write(detector, twin, form, images[0], with_nms, any_size, {})
            program = open_program(twin, form)
        found = compare(detector, program, images, with_nms=with_nms)
    finally:
        detector.predict_config = configured
    require_same(found)
    return found


# -- images ----------------------------------------------------------------------------------------------------------


def fit(image: Tensor, height: int, width: int) -> Tensor:
    """u8 [3, h, w] -> u8 [3, height, width]: the largest of its ratio that fits, 0 right and below."""
    h, w = image.shape[1:]
    scale = min(height / h, width / w)
    resized = resize(image, (min(height, max(1, int(h * scale + 0.5))), min(width, max(1, int(w * scale + 0.5)))))
    framed = torch.zeros(3, height, width, dtype=torch.uint8)
    framed[:, : resized.shape[1], : resized.shape[2]] = resized
    return framed


def sample_images() -> list[Tensor]:
    """Two photographs where scikit-learn is installed, whose they are; else a made picture. u8 [3, H, W]."""
    try:
        from sklearn.datasets import load_sample_images
    except ImportError:
        return [_squares()]
    return [torch.from_numpy(image.copy()).permute(2, 0, 1) for image in load_sample_images().images]


def _squares() -> Tensor:
    """Squares of many colours on noise, always the same."""
    generator = np.random.default_rng(0)
    pixels = generator.integers(90, 140, (427, 640, 3)).astype(np.uint8)
    for side in (16, 32, 64, 128, 200) * 3:
        y, x = generator.integers(0, 427 - side), generator.integers(0, 640 - side)
        pixels[y : y + side, x : x + side] = generator.integers(0, 255, 3)
    return torch.from_numpy(pixels).permute(2, 0, 1)


# -- writing ---------------------------------------------------------------------------------------------------------


def _write(detector: Detector, file: Path, form: str, image: Tensor, with_nms: bool, any_size: bool, about: dict[str, Any]) -> None:
    image = image.contiguous()
    with _quiet():
        if form == "onnx":
            from tood.export.onnx import suppress_by_class, write_onnx

            module = ExportedDetector(detector, suppress=suppress_by_class if with_nms else None, any_size=any_size)
            return write_onnx(_trace(module, image), file, {"tood": json.dumps(about, sort_keys=True)})
        module = ExportedDetector(detector, suppress=suppress if with_nms else None, any_size=any_size)
        return torch.export.save(_trace(module, image), file, extra_files={ABOUT: json.dumps(about, sort_keys=True)})


def _trace(module: ExportedDetector, image: Tensor) -> torch.export.ExportedProgram:
    """The module as a graph. With any_size the sides are symbols, else the numbers that the image has.

    Of symbols torch cannot prove all that convolutions rely on, such as that 8 n is a multiple of n; so it checks it at run
    time.
    """
    shapes = None
    if module.any_size:
        low = _least_side(module.detector)
        shapes = {"image": {1: Dim("height", min=low, max=LARGEST), 2: Dim("width", min=low, max=LARGEST)}}
    try:
        with torch.no_grad():
            return torch.export.export(
                module, (image,), dynamic_shapes=shapes, prefer_deferred_runtime_asserts_over_guards=module.any_size
            )
    except Exception as error:  # of many kinds, most with a report of several pages
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        hint = "; use --size instead of --dynamic" if module.any_size else ""
        raise ExportError(f"torch.export cannot trace this detector: {reason[:300]}{hint}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' advice to their own developers."""
    chatty = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in chatty]
    for logger in chatty:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(chatty, levels, strict=True):
            logger.setLevel(level)


# -- reading again ---------------------------------------------------------------------------------------------------


def require_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ExportError(f"--format onnx needs the package {error.name}; pip install 'tood[export]'") from None


def open_program(file: Path, form: str) -> Program:
    """A file that this project has written, as a function."""
    if form == "torch":
        return torch.export.load(file).module()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its own kinds; an operator that this version does not have, say
        raise ExportError(f"onnxruntime {onnxruntime.__version__} cannot run the file: {str(error)[:200]}; update it") from None
    return lambda image: tuple(torch.from_numpy(value) for value in session.run(list(OUTPUTS), {"image": image.numpy()}))
