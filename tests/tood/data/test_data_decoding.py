"""Every kind of image file, whole and broken; both decoders of JPEG see the same pixels."""

import io
import multiprocessing.forkserver
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tood.config import DataConfig
from tood.data import decoding
from tood.data.coco import CocoData
from tood.data.decoding import decode
from tood.data.loaders import TrainLoader
from tood.data.record import ImageRecord
from tood.errors import DataError


def gradient(height: int = 40, width: int = 60) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 4, y * 6, 255 - x * 4], axis=-1).astype(np.uint8)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    Image.fromarray(gradient()).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_decodes_rgb_exactly(photo):
    image = decode(photo)
    assert image.dtype == torch.uint8
    np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), gradient())


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_content_is_decoded_as_its_file(tmp_path, suffix):
    Image.fromarray(gradient()).save(tmp_path / f"image.{suffix}")
    content = io.BytesIO((tmp_path / f"image.{suffix}").read_bytes())
    assert torch.equal(decode(content), decode(tmp_path / f"image.{suffix}"))


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [("L", "jpg"), ("CMYK", "jpg"), ("P", "png"), ("RGBA", "png"), ("1", "png"), ("RGB", "webp"), ("RGB", "bmp")],
)
def test_decodes_other_modes(tmp_path, mode, suffix):
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(gradient()).convert(mode).save(path)
    image = decode(path)
    assert image.shape == (3, 40, 60)
    if mode == "L":
        assert (image[0] == image[1]).all()
    if mode == "CMYK":
        assert (image.permute(1, 2, 0).float() - torch.from_numpy(gradient()).float()).abs().mean() < 10


def test_sixteen_bits_of_grey_keep_their_range(tmp_path):
    grey = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) * 16
    Image.fromarray(grey).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(decode(tmp_path / "deep.png")[2].numpy(), grey >> 8)


def test_exif_orientation_is_not_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    Image.fromarray(gradient()).save(tmp_path / "turned.jpg", exif=exif)
    assert decode(tmp_path / "turned.jpg").shape == (3, 40, 60)


def test_broken_files_name_their_path(tmp_path, photo):
    whole = photo.read_bytes()
    Image.fromarray(gradient()).save(tmp_path / "good.jpg")
    jpeg = (tmp_path / "good.jpg").read_bytes()
    for name, content in [
        ("short.png", whole[: len(whole) // 2]),
        ("short.jpg", jpeg[: len(jpeg) // 2]),
        ("text.jpg", b"<html>not found</html>"),
        ("empty.jpg", b""),
        ("script.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n"),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=name):
            decode(tmp_path / name)
    with pytest.raises(DataError, match="no such file"):
        decode(tmp_path / "gone.jpg")


def test_a_file_larger_than_any_image_is_not_read(tmp_path):
    with (tmp_path / "hole.jpg").open("wb") as file:
        file.truncate(10**13)
    with pytest.raises(DataError, match=r"hole\.jpg: cannot be decoded: it has more than 1424 MB"):
        decode(tmp_path / "hole.jpg")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [13_360, 20_000])  # beyond our bound; beyond Pillow's own
def test_decompression_bombs_are_refused(tmp_path, side):
    header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + b"\0\0\0\x08IDAT")
    with pytest.raises(DataError, match=r"bomb\.png: more than 178 million pixels"):
        decode(tmp_path / "bomb.png")


@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"progressive": True}, {"quality": 30, "optimize": True}])
def test_without_torchvisions_decoder_the_pixels_are_the_same(tmp_path, monkeypatch, options):
    noise = np.random.default_rng(0).integers(-20, 20, (67, 93, 3))
    Image.fromarray((gradient(67, 93) // 2 + 60 + noise).astype(np.uint8)).save(tmp_path / "a.jpg", **options)
    assert decoding._jpeg_decoder() is not None
    by_torchvision = decode(tmp_path / "a.jpg")
    monkeypatch.setattr(decoding, "_jpeg_decoder", lambda: None)
    by_pillow = decode(tmp_path / "a.jpg")
    assert torch.equal(by_torchvision, by_pillow)
    assert by_torchvision.stride() == by_pillow.stride() == (1, 93 * 3, 3)


def test_loader_processes_have_the_decoder_of_jpegs_from_the_start(tmp_path, photo, monkeypatch):
    preloads = []
    monkeypatch.setattr(multiprocessing.forkserver, "set_forkserver_preload", lambda names: preloads.append(names))
    config = DataConfig(workers=1)
    for path in (photo, tmp_path / "a.JPG"):
        record = ImageRecord(1, path, 40, 60, np.float32([[1, 1, 9, 9]]), np.array([0]), np.array([False]))
        TrainLoader(CocoData((record,), ("a",), (1,), Path("a.json"), ""), config, batch_size=1, seed=0).close()
    assert preloads == [["tood.data.loader_processes"], ["tood.data.loader_processes", "torchvision.io"]]
