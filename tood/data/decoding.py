"""An image file as a tensor, whoever made the file."""

import contextlib
import functools
import importlib
import io
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from tood.errors import DataError

MAX_PIXELS = 178_000_000  # a larger image is taken for a decompression bomb; Pillow refuses from 178.96 million on
MAX_BYTES = 8 * MAX_PIXELS  # of a file: 16 bits of four channels, stored as they are
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM", "GIF")  # Pillow knows more, some run other programs
_JPEG_MODULE = "torchvision.io"


class Jpeg(NamedTuple):
    """A JPEG file in colour that is still to be decoded, by `decode_jpegs`."""

    content: Tensor  # u8 [bytes]
    path: Path
    shape: tuple[int, int, int]  # of the image: 3, height, width
    mirrored: bool = False  # whether the image is to be, once it is decoded


def decode(path: Path | io.BytesIO) -> Tensor:
    """An image file, or the content of one, as u8 [3,H,W] RGB, in memory [H,W,3]. Other modes and 16 bits are converted.

    The pixels are taken as stored: COCO's boxes refer to them, so an EXIF orientation is not applied.
    Raises DataError for files that are missing, broken, truncated or of more than MAX_PIXELS.
    """
    with _opened(path) as (data, picture):
        if _is_jpeg(picture) and (image := _decode_jpeg(data)) is not None:
            return image
        if picture.mode.startswith("I"):  # 16 bits of grey, which `convert` would cut off at 255
            picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
        rgb = picture if picture.mode == "RGB" else picture.convert("RGB")  # which would copy an RGB image too
        return torch.from_numpy(np.array(rgb)).permute(2, 0, 1)


def read_jpeg(path: Path) -> Jpeg | None:
    """A file for `decode_jpegs`; None where it is for `decode` alone. Raises DataError for what the header shows to be wrong."""
    with _opened(path) as (data, picture):
        if not _is_jpeg(picture) or _jpeg_decoder() is None:
            return None
        return Jpeg(torch.from_numpy(data), path, (3, picture.height, picture.width))


def decode_jpegs(files: Sequence[Jpeg], device: torch.device | str) -> list[Tensor]:
    """u8 [3,H,W] RGB of each file, on the device: a GPU decodes them itself, together, and not quite to the pixels of `decode`.

    What the device refuses `decode` decodes, image by image, or raises DataError for.
    """
    if not files:
        return []
    try:
        images = _decode_on(device, files)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:  # at least one of them is broken, or of a kind that a GPU does not know; the others stay as they would be
        images = [_decode_somewhere(device, file) for file in files]
    return [image.flip(-1) if file.mirrored else image for image, file in zip(images, files, strict=True)]


def _decode_on(device: torch.device | str, files: Sequence[Jpeg]) -> list[Tensor]:
    if torch.device(device).type == "cuda":
        # torchvision writes by a stream of its own, which waits for nobody: what is still to be read from the memory that it is
        # given would be lost.
        torch.cuda.current_stream(device).synchronize()
    return _jpeg_decoder()([file.content for file in files], device=device)


def _decode_somewhere(device: torch.device | str, file: Jpeg) -> Tensor:
    try:
        return _decode_on(device, [file])[0]
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        image = decode(file.path).to(device)
        warnings.warn(f"{file.path}: decoded by the processor, as the device refuses it ({error})", stacklevel=2)
        return image


@contextlib.contextmanager
def _opened(path: Path | io.BytesIO) -> Iterator[tuple[np.ndarray, Image.Image]]:
    """A file's bytes and its header. What is wrong with them, or turns out to be, is a DataError."""
    try:
        data = np.frombuffer(path.getbuffer(), dtype=np.uint8) if isinstance(path, io.BytesIO) else _read(path)
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:  # reads the header alone
            if picture.width * picture.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            yield data, picture
            return
    except Image.DecompressionBombError:
        problem = f"more than {MAX_PIXELS // 10**6} million pixels"
    except UnidentifiedImageError:
        problem = f"not an image ({', '.join(FORMATS)})"
    except FileNotFoundError:
        problem = "no such file"
    except (OSError, ValueError, SyntaxError) as error:  # what Pillow raises for bad data
        problem = f"cannot be decoded: {error}"
    raise DataError(f"{path}: {problem}; restore the image, or remove it from the JSON") from None


def _is_jpeg(picture: Image.Image) -> bool:
    return picture.format == "JPEG" and picture.mode == "RGB"


def _read(path: Path) -> np.ndarray:
    if os.path.getsize(path) > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES // 10**6} MB")
    return np.fromfile(path, dtype=np.uint8)


def modules(paths: Iterable[Path]) -> list[str]:
    """What decoding such files imports, in a second or two, with the first of them; for those who would rather do it earlier."""
    return [_JPEG_MODULE] if any(path.suffix.lower() in (".jpg", ".jpeg") for path in paths) else []


def _decode_jpeg(data: np.ndarray) -> Tensor | None:
    """By torchvision: the same pixels as Pillow's in three quarters of the time. None: Pillow is to say what is wrong with it."""
    decoder = _jpeg_decoder()
    try:
        return decoder and decoder(torch.from_numpy(data))
    except RuntimeError:
        return None


@functools.cache
def _jpeg_decoder() -> Callable[..., Any] | None:
    """None where torchvision has no decoder: it is optional in a build, and to be dropped for a package that needs FFmpeg."""
    try:
        jpeg = importlib.import_module(_JPEG_MODULE)
    except ImportError:
        return None
    if not hasattr(torch.ops.image, "decode_jpeg"):
        return None
    return functools.partial(jpeg.decode_jpeg, mode=jpeg.ImageReadMode.RGB)
