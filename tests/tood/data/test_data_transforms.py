"""The resize rule, and samples whose randomness is in their seed alone."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tood.config import DataConfig
from tood.data.decoding import decode
from tood.data.record import ImageRecord
from tood.data.transforms import flip_boxes, load_sample, resize, resize_boxes, resize_shape
from tood.errors import DataError

CONFIG = DataConfig(long_side=80, short_side=60, flip=0.5)


def gradient(height: int = 40, width: int = 60) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 4, y * 6, 255 - x * 4], axis=-1).astype(np.uint8)


def record(path: Path, boxes: list, crowd: list[bool] | None = None, size: tuple[int, int] = (40, 60)) -> ImageRecord:
    crowds = np.array(crowd or [False] * len(boxes), dtype=bool)
    return ImageRecord(17, path, *size, np.array(boxes, dtype=np.float32).reshape(-1, 4), np.arange(len(boxes)), crowds)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    Image.fromarray(gradient()).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.mark.parametrize(
    ("size", "bounds", "expected"),
    [
        ((480, 640), (1333, 800), (800, 1067)),
        ((427, 640), (1333, 800), (800, 1199)),
        ((400, 1500), (1333, 800), (355, 1333)),
        ((480, 640), (640, 640), (480, 640)),
        ((1, 5000), (1333, 800), (1, 1333)),
    ],
)
def test_resize_shape_is_the_peers(size, bounds, expected):
    assert resize_shape(*size, *bounds) == expected


def test_resize_is_bilinear_and_keeps_the_memory_layout(photo):
    image = decode(photo)
    larger = resize(image, (80, 120))
    assert larger.dtype == torch.uint8
    assert larger.permute(1, 2, 0).is_contiguous()
    exact = torch.nn.functional.interpolate(image[None].double(), (80, 120), mode="bilinear", align_corners=False)[0]
    assert (larger.double() - exact).abs().max() <= 1
    assert resize(image, (40, 60)) is image


def test_boxes_follow_the_image():
    boxes = torch.tensor([[10.0, 5.0, 60.0, 40.0]])
    scaled = resize_boxes(boxes, (2.0, 1.5), (60, 119))
    assert scaled.tolist() == [[20.0, 7.5, 119.0, 60.0]]
    assert flip_boxes(scaled, 119).tolist() == [[0.0, 7.5, 99.0, 60.0]]


def test_sample_of_evaluation_is_plain_and_without_crowds(photo):
    sample = load_sample(record(photo, [[6, 4, 30, 20], [0, 0, 60, 40]], [False, True]), CONFIG, training=False)
    assert sample.image.shape == (3, 53, 80)
    assert sample.scale == (80 / 60, 53 / 40)
    assert sample.original_size == (40, 60)
    assert sample.image_id == 17
    torch.testing.assert_close(sample.boxes, torch.tensor([[6 * 80 / 60, 4 * 53 / 40, 40.0, 26.5]]))
    assert sample.labels.tolist() == [0]


def test_sample_depends_on_its_seed_alone(photo):
    target = record(photo, [[6, 4, 30, 20]])
    config = DataConfig(long_side=80, short_side=60, short_side_min=30)
    first = [load_sample(target, config, training=True, seed=(3, e, 17)) for e in range(40)]
    again = [load_sample(target, config, training=True, seed=(3, e, 17)) for e in reversed(range(40))][::-1]
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a.image, b.image)
        assert torch.equal(a.boxes, b.boxes)
    heights = {s.image.shape[1] for s in first}
    assert len(heights) > 10
    assert min(heights) >= 30
    assert max(heights) <= 53  # the long side bounds it
    flipped = [bool(s.boxes[0, 0] > s.image.shape[2] / 4) for s in first]
    assert 5 < sum(flipped) < 35


def test_flip_mirrors_pixels_and_boxes(photo):
    target = record(photo, [[6, 4, 30, 20]])
    plain = load_sample(target, CONFIG, training=False)
    mirrored = load_sample(target, DataConfig(long_side=80, short_side=60, flip=1), training=True, seed=(0, 0, 0))
    assert torch.equal(mirrored.image, plain.image.flip(-1))
    torch.testing.assert_close(mirrored.boxes, flip_boxes(plain.boxes, 80))
    never = load_sample(target, DataConfig(long_side=80, short_side=60, flip=0), training=True, seed=(0, 0, 0))
    assert torch.equal(never.image, plain.image)


def test_a_mirrored_image_is_resized_to_the_mirror_image_to_the_bit():
    """So it does not matter what comes first, and the flip comes where there are fewer pixels."""
    draw = np.random.default_rng(0)
    for _ in range(200):
        width, wanted = (int(side) for side in draw.integers(2, 1400, 2))
        image = torch.from_numpy(draw.integers(256, size=(3, width, 3), dtype=np.uint8)).permute(2, 0, 1)
        assert torch.equal(resize(image.flip(-1), (2, wanted)), resize(image, (2, wanted)).flip(-1))


@pytest.mark.parametrize("bounds", [(80, 60), (30, 30)], ids=["larger", "smaller"])
def test_a_flip_before_or_after_the_resize_mirrors_alike(photo, bounds):
    flipped, plain = (
        load_sample(record(photo, [[6, 4, 30, 20]]), DataConfig(long_side=bounds[0], short_side=bounds[1], flip=f),
                    training=True, seed=(0,)) for f in (1, 0)
    )  # fmt: skip
    assert torch.equal(flipped.image, plain.image.flip(-1))
    assert flipped.image.permute(1, 2, 0).is_contiguous()


def test_wrong_size_is_an_error(photo):
    with pytest.raises(DataError, match=r"photo\.png: image 17 is 60 pixels wide and 40 high, its annotations say 40 x 60"):
        load_sample(record(photo, [], size=(60, 40)), CONFIG, training=False)
