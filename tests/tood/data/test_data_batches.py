"""Batches: stacked, padded, and normalised as backbones were trained."""

from typing import get_args, get_type_hints

import pytest
import torch

from tood.config import BackboneConfig
from tood.data.batches import MEAN, PIXELS, STD, arriving, collate, normalise, stack_images
from tood.data.transforms import Sample


def sample(height: int, width: int, objects: int) -> Sample:
    image = torch.full((3, height, width), 200, dtype=torch.uint8)
    boxes = torch.arange(objects * 4, dtype=torch.float32).view(-1, 4)
    return Sample(
        image, boxes, torch.arange(objects), objects, (height * 2, width * 2), (0.5, 0.5), torch.zeros(1, 4), (height, width)
    )


def test_collate_pads_images_and_targets():
    batch = collate([sample(33, 20, 2), sample(10, 64, 0)])
    assert batch.images.shape == (2, 3, 64, 64)
    assert batch.images.dtype == torch.uint8
    assert batch.images[0, :, :33, :20].eq(200).all()
    assert batch.images.sum() == 200 * 3 * (33 * 20 + 10 * 64)
    assert batch.sizes.tolist() == [[33, 20], [10, 64]]
    assert batch.original_sizes.tolist() == [[66, 40], [20, 128]]
    assert batch.targets.boxes.shape == (2, 2, 4)
    assert batch.targets.valid.tolist() == [[True, True], [False, False]]
    assert batch.targets.labels[0].tolist() == [0, 1]
    moved = batch.to("meta")
    assert {t.device.type for t in [*moved[:2], *moved.targets[:3], *moved[3:]]} == {"meta"}


def test_a_batch_without_objects():
    batch = collate([sample(32, 32, 0)])
    assert batch.targets.boxes.shape == (1, 0, 4)
    assert batch.targets.valid.shape == (1, 0)


def test_normalise_then_pads():
    draw = torch.Generator().manual_seed(0)
    images = [torch.randint(256, (3, h, w), generator=draw, dtype=torch.uint8) for h, w in [(30, 64), (32, 50)]]
    stacked, sizes = stack_images(images)
    before = stacked.clone()
    pixels = normalise(stacked, sizes)
    assert pixels.is_contiguous()
    assert torch.equal(stacked, before)
    for image, result in zip(images, pixels, strict=True):
        expected = (image.double() - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
        height, width = image.shape[1:]
        torch.testing.assert_close(result[:, :height, :width].double(), expected, rtol=0, atol=1e-6)
        assert not result[:, height:].any()
        assert not result[:, :, width:].any()
    floats = stacked.float()
    assert torch.equal(normalise(floats, sizes), pixels)
    assert torch.equal(floats, before.float())


@pytest.mark.parametrize(
    ("pixels", "mean"), [("bgr", (103.53, 116.28, 123.675)), ("bgr_detectron", (102.9801, 115.9465, 122.7717))]
)
def test_backbones_from_caffe_read_blue_first_and_only_less_the_mean(pixels, mean):
    draw = torch.Generator().manual_seed(0)
    image = torch.randint(256, (3, 30, 50), generator=draw, dtype=torch.uint8)
    stacked, sizes = stack_images([image])
    before = stacked.clone()
    values = normalise(stacked, sizes, pixels)
    assert torch.equal(stacked, before)
    assert values.is_contiguous()
    for channel, source in enumerate((2, 1, 0)):
        torch.testing.assert_close(values[0, channel, :30, :50], image[source].float() - mean[channel])
    assert not values[:, :, 30:].any()
    assert not values[:, :, :, 50:].any()


def test_every_kind_of_pixels_that_a_configuration_may_name_is_known():
    assert set(get_args(get_type_hints(BackboneConfig)["pixels"])) == set(PIXELS)


def test_batches_arrive_in_their_order_and_no_sooner_than_they_are_wanted():
    made = []
    batches = arriving((made.append(i) or collate([sample(32, 32 * i, i)]) for i in (1, 2, 3)), torch.device("cpu"))
    assert made == []
    assert next(batches).sizes.tolist() == [[32, 32]]
    assert made == [1]
    assert [b.sizes[0, 1].item() for b in batches] == [64, 96]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_batches_are_whole_when_they_are_computed_with():
    there = [collate([sample(800, 1333, i % 5)])._replace(image_ids=torch.tensor([i])) for i in range(20)]
    sums = [b.images.float().mean() + b.image_ids.sum() for b in arriving(there, torch.device("cuda"))]
    expected = [(b.images.float().mean() + b.image_ids.sum()).item() for b in there]
    assert [s.item() for s in sums] == pytest.approx(expected, rel=1e-5)
