"""Decoded images kept in a folder: read instead of the file, within a bound, and never another image's pixels."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tood.config import DataConfig, config_hash
from tood.data import cache, transforms
from tood.data.coco import CocoData
from tood.data.loaders import TrainLoader
from tood.data.record import ImageRecord
from tood.data.transforms import decode_record
from tood.errors import DataError

CONFIG = DataConfig(long_side=64, short_side=48, workers=0)


def picture(path: Path, seed: int) -> ImageRecord:
    pixels = np.random.default_rng(seed).integers(256, size=(30, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return ImageRecord(seed, path, 30, 40, np.float32([[2, 3, 12, 13]]), np.array([0]), np.array([False]))


@pytest.fixture
def data(tmp_path) -> CocoData:
    records = tuple(picture(tmp_path / f"{number}.png", number) for number in range(4))
    return CocoData(records, ("a",), (1,), Path("annotations.json"), "0" * 64)


@pytest.fixture
def decoded(monkeypatch) -> list[Path]:
    """The files that were decoded."""
    paths, original = [], transforms.decode
    monkeypatch.setattr(transforms, "decode", lambda path: paths.append(path) or original(path))
    return paths


def epoch(data: CocoData, config: DataConfig) -> list:
    return list(TrainLoader(data, config, batch_size=2, seed=0).epoch(0))


def test_the_second_epoch_decodes_only_what_does_not_fit_and_gives_the_same_batches(data, tmp_path, decoded):
    plain = epoch(data, CONFIG)
    decoded.clear()
    config = replace(CONFIG, cache=str(tmp_path / "kept"), cache_gb=3 * 3600e-9)  # three of four pictures of 3600 bytes
    assert config_hash(config) == config_hash(CONFIG)
    first = epoch(data, config)
    assert len(decoded) == 4
    assert sorted(file.stat().st_size for file in (tmp_path / "kept").iterdir()) == [3600] * 3
    decoded.clear()
    second = epoch(data, config)
    assert decoded == [data.images[3].path]
    for a, b, c in zip(plain, first, second, strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.images, c.images)


def test_a_changed_image_or_a_torn_file_is_decoded_again(data, tmp_path, decoded):
    record = data.images[0]._replace(cache=tmp_path / "kept")
    before = decode_record(record)
    (file,) = (tmp_path / "kept").iterdir()
    file.write_bytes(file.read_bytes()[:-1])
    assert torch.equal(decode_record(record), before)
    assert file.stat().st_size == 3600
    picture(record.path, 99)
    os.utime(record.path, ns=(1, 1))
    assert not torch.equal(decode_record(record), before)
    assert len(decoded) == 3
    decode_record(record)
    assert len(decoded) == 3
    with pytest.raises(DataError, match="annotations say 41 x 30"):
        decode_record(record._replace(width=41))


def test_a_missing_image_and_a_folder_that_cannot_be_written_are_said(data, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file: decoded images cannot be kept there.*data\.cache_gb"):
        decode_record(data.images[0]._replace(cache=tmp_path / "file"))
    with pytest.raises(DataError, match="no such file"):
        decode_record(data.images[0]._replace(cache=tmp_path / "kept", path=tmp_path / "gone.png"))
    assert cache.read(data.images[0]._replace(cache=tmp_path / "nothing")) is None
