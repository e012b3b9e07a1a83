"""Training images that travel as files and are decoded where they arrive (data.decode=device)."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tood.config import DataConfig, build
from tood.data import decoding
from tood.data.batches import arriving
from tood.data.coco import CocoData
from tood.data.decoding import Jpeg
from tood.data.loaders import TrainLoader
from tood.data.record import ImageRecord
from tood.errors import ConfigError, DataError

HERE = DataConfig(long_side=64, short_side=48, short_side_min=32, workers=0)
THERE = replace(HERE, resize="device", decode="device")
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
KINDS = ("a.jpg", "b.png", "grey.jpg", "c.jpg", "d.jpg", "e.jpg")


@pytest.fixture
def records(tmp_path) -> list[ImageRecord]:
    draw, made = np.random.default_rng(0), []
    for number, name in enumerate(KINDS):
        coarse = Image.fromarray(draw.integers(256, size=(6, 8, 3), dtype=np.uint8))
        picture = coarse.resize((80, 60) if number % 2 else (64, 48), Image.Resampling.BICUBIC)
        (picture.convert("L") if name.startswith("grey") else picture).save(tmp_path / name)
        boxes = np.float32([[2, 3, 30, 33]])
        made.append(ImageRecord(number, tmp_path / name, *picture.size[::-1], boxes, np.array([0]), np.array([False])))
    return made


def loader(records: list[ImageRecord], config: DataConfig) -> TrainLoader:
    return TrainLoader(CocoData(tuple(records), ("a",), (1,), Path("annotations.json"), ""), config, batch_size=3, seed=0)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("more", [{}, {"buckets": 2}, {"workers": 2}])
def test_they_arrive_as_those_decoded_by_the_loader(records, device, more):
    apart, kinds = loader(records, replace(THERE, **more)), []
    here = loader(records, replace(HERE, **more | {"workers": 0}))
    for epoch in range(2):
        for expected, batch in zip(here.epoch(epoch), apart.epoch(epoch), strict=True):
            kinds += [isinstance(image, Jpeg) for image in batch.images]
            (found,) = arriving([batch], torch.device(device))
            assert found.images.device.type == device
            apart_by = (found.images.cpu().int() - expected.images.int()).abs()
            assert apart_by.max() <= (0 if device == "cpu" else 16)  # another decoder, and another way to resize
            assert apart_by.float().mean() < 1
            assert torch.equal(found.sizes.cpu(), expected.sizes)
            assert torch.equal(found.targets.boxes.cpu(), expected.targets.boxes)
            assert found.image_ids.tolist() == expected.image_ids.tolist()
    apart.close()
    assert sum(kinds) == 2 * 4  # but for the PNG and the grey one, which the loader has decoded


def test_without_torchvisions_decoder_the_loader_decodes(records, monkeypatch):
    monkeypatch.setattr(decoding, "_jpeg_decoder", lambda: None)
    there = next(loader(records, THERE).epoch(0))
    assert not any(isinstance(image, Jpeg) for image in getattr(there, "images", ()))
    assert torch.equal(there.to("cpu").images, next(loader(records, HERE).epoch(0)).images)


def test_what_a_device_refuses_the_processor_decodes_and_the_others_stay_as_they_are(records, monkeypatch):
    expected = next(loader(records, HERE).epoch(0)).images
    own, refused, alone = decoding._decode_on, [], []

    def decode_on(device, files):
        if any(file.path.name in ("a.jpg", "c.jpg") for file in files):
            refused.append(len(files))
            raise RuntimeError("no such JPEG")
        alone.extend(file.path.name for file in files)
        return own(device, files)

    batch = next(loader(records, THERE).epoch(0))
    monkeypatch.setattr(decoding, "_decode_on", decode_on)
    with pytest.warns(UserWarning, match=r"jpg: decoded by the processor, as the device refuses it \(no such JPEG\)"):
        assert torch.equal(batch.to("cpu").images, expected)
    assert refused[0] > 1
    assert set(refused[1:]) == {1}
    assert alone
    monkeypatch.setattr(decoding, "_decode_on", lambda device, files: (_ for _ in ()).throw(torch.OutOfMemoryError("full")))
    with pytest.raises(torch.OutOfMemoryError):
        batch.to("cpu")


def test_what_is_wrong_with_a_file_is_told_as_ever(records):
    short = records[0].path
    short.write_bytes(short.read_bytes()[:-300])
    with pytest.raises(DataError, match=r"a\.jpg: cannot be decoded: .*; restore the image"):
        [batch.to("cpu") for batch in loader(records, THERE).epoch(0)]
    with pytest.raises(DataError, match=r"c\.jpg: image 3 is 80 pixels wide and 60 high, its annotations say 80 x 61"):
        list(loader([records[3]._replace(height=61)] * 3, THERE).epoch(0))
    with pytest.raises(DataError, match=r"gone\.jpg: no such file"):
        list(loader([records[3]._replace(path=Path("gone.jpg"))] * 3, THERE).epoch(0))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, r"decode: 'device' leaves nothing to resize in the loader; set resize=device, or decode=cpu"),
        (
            {"resize": "device", "cache": "x"},
            r"decode: 'device' leaves nothing to cache in the loader; set cache=''",
        ),
        ({"resize": "device", "augment": {"mosaic": 1}}, r"resize: 'device' leaves nothing to mix"),
    ],
)
def test_settings_that_it_would_leave_without_effect_are_refused(values, said):
    with pytest.raises(ConfigError, match=said):
        build(DataConfig, {"decode": "device", **values})
