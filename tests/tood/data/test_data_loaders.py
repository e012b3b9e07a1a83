"""Loaders: who comes together, who comes when, and that loading is the same whatever processes do it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tood.config import DataConfig, build
from tood.data.batches import buckets
from tood.data.coco import CocoData
from tood.data.loaders import TrainLoader, eval_loader
from tood.data.record import ImageRecord
from tood.data.sampler import TrainSampler
from tood.errors import ConfigError, DataError

CONFIG = DataConfig(long_side=64, short_side=48, short_side_min=32, workers=0)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> CocoData:
    """23 images of three shapes, 15 landscape and 8 portrait. Image 4 has a crowd alone, image 5 nothing."""
    folder, draw, records = tmp_path_factory.mktemp("images"), np.random.default_rng(0), []
    for number in range(23):
        height, width = [(30, 40), (40, 30), (20, 60)][number % 3]
        path = folder / f"{number}.png"
        Image.fromarray(draw.integers(256, size=(height, width, 3), dtype=np.uint8)).save(path)
        count = 0 if number == 5 else 1 + number % 3
        boxes = np.tile(np.float32([2, 3, 12, 13]), (count, 1)) + np.arange(count, dtype=np.float32)[:, None]
        crowd = np.full(count, number == 4)
        records.append(ImageRecord(1000 + number, path, height, width, boxes, np.arange(count), crowd))
    return CocoData(tuple(records), ("a", "b", "c"), (1, 2, 3), Path("annotations.json"), "0" * 64)


def test_crowds_reach_the_batch_apart_from_the_objects(data):
    (batch,) = [b for b in eval_loader(data, CONFIG, batch_size=1) if b.image_ids.tolist() == [1004]]
    assert batch.targets.valid.sum() == 0
    assert batch.targets.crowds.shape == (1, 2, 4)
    assert (batch.targets.crowds[..., 2:] > batch.targets.crowds[..., :2]).all()


def ids(batches) -> list[list[int]]:
    return [batch.image_ids.tolist() for batch in batches]


def same(a, b) -> bool:
    tensors = [(x, y) for x, y in zip([*a[:2], *a.targets, *a[3:]], [*b[:2], *b.targets, *b[3:]], strict=True) if x is not None]
    return all(torch.equal(x, y) for x, y in tensors)


# -- the order of training -------------------------------------------------------------------------------------------


@given(
    wide=st.integers(0, 40), tall=st.integers(1, 40), batch_size=st.integers(1, 7), world=st.integers(1, 4), epoch=st.integers(0, 9)
)
def test_sampler_serves_every_image_and_repeats_few(wide, tall, batch_size, world, epoch):
    total = wide + tall
    landscape = np.arange(total) < wide
    parts = [TrainSampler(landscape, batch_size=batch_size, seed=1, rank=r, world=world) for r in range(world)]
    ranks = [part.batches(epoch) for part in parts]
    assert {r.shape for r in ranks} == {(len(parts[0]), batch_size)}
    together = np.concatenate(ranks, axis=1)
    whole = TrainSampler(landscape, batch_size=batch_size * world, seed=1)
    np.testing.assert_array_equal(together, whole.batches(epoch))
    counts = np.bincount(together.ravel(), minlength=total)
    assert counts.min() >= 1
    assert counts.sum() - total == whole.repeats < batch_size * world
    assert counts.max() <= 1 + -(-whole.repeats // total)
    mixed = [batch for batch in together if 0 < landscape[batch].sum() < len(batch)]
    assert len(mixed) <= 2


def test_sampler_depends_on_seed_and_epoch_alone():
    landscape = np.arange(50) % 3 > 0
    first = TrainSampler(landscape, batch_size=4, seed=5)
    np.testing.assert_array_equal(first.batches(3), TrainSampler(landscape, batch_size=4, seed=5).batches(3))
    assert (first.batches(3) != first.batches(4)).any()
    assert (first.batches(3) != TrainSampler(landscape, batch_size=4, seed=6).batches(3)).any()


# -- loading ---------------------------------------------------------------------------------------------------------


def test_empty_images_are_left_out_unless_kept(data):
    with_objects = {r.image_id for r in data.images} - {1004, 1005}
    loader = TrainLoader(data, CONFIG, batch_size=7, seed=0)
    assert len(loader) == 3
    assert loader.sampler.repeats == 0
    assert {i for batch in ids(loader.epoch(0)) for i in batch} == with_objects
    kept = TrainLoader(data, DataConfig(long_side=64, short_side=48, keep_empty=True, workers=0), batch_size=7, seed=0)
    assert {i for batch in ids(kept.epoch(0)) for i in batch} == {r.image_id for r in data.images}
    nothing = CocoData(data.images[4:6], data.names, data.category_ids, data.annotations, "")
    with pytest.raises(DataError, match="no image has an object"):
        TrainLoader(nothing, CONFIG, batch_size=2, seed=0)


def test_an_epoch_resumes_with_equal_batches(data):
    loader = TrainLoader(data, CONFIG, batch_size=4, seed=0)
    whole = list(loader.epoch(2))
    assert len(whole) == len(loader) == 6
    rest = list(TrainLoader(data, CONFIG, batch_size=4, seed=0).epoch(2, start_batch=4))
    assert len(rest) == 2
    assert all(same(a, b) for a, b in zip(whole[4:], rest, strict=True))
    assert not any(same(a, b) for a, b in zip(whole, loader.epoch(3), strict=True))


def test_skipped_batches_are_not_read(data):
    loader = TrainLoader(data, CONFIG, batch_size=4, seed=0)
    first = loader.sampler.batches(0)[0]
    gone = [loader.images[i]._replace(path=Path("gone.png")) if i in first else r for i, r in enumerate(loader.images)]
    missing = CocoData(tuple(gone), data.names, data.category_ids, data.annotations, "")
    assert len(list(TrainLoader(missing, CONFIG, batch_size=4, seed=0).epoch(0, start_batch=1))) == 5


def test_images_resized_on_the_device_are_the_same_and_travel_as_decoded(data):
    apart = TrainLoader(data, replace(CONFIG, resize="device"), batch_size=4, seed=0)
    for here, there in zip(TrainLoader(data, CONFIG, batch_size=4, seed=0).epoch(1), apart.epoch(1), strict=True):
        decoded = {r.image_id: (r.height, r.width) for r in data.images}
        assert there.shapes == tuple(decoded[i] for i in here.image_ids.tolist())
        assert there.images.shape[2:] == tuple(map(max, zip(*there.shapes, strict=True)))
        assert there.images.permute(0, 2, 3, 1).is_contiguous()
        assert there.batch.images.numel() == 0
        assert same(here, there.to("cpu"))


@pytest.mark.parametrize("where", ["cpu", "device"])
def test_buckets_pad_batches_to_a_few_shapes_and_change_nothing_else(data, where):
    config = replace(CONFIG, long_side=320, short_side=64, short_side_min=40)
    bucketed, found = TrainLoader(data, replace(config, buckets=2, resize=where), batch_size=2, seed=0), set()
    assert buckets(replace(config, buckets=2)) == ((64, 192), (192, 64), (64, 320), (320, 64), (320, 320))
    assert buckets(DataConfig(buckets=1)) == ((800, 1344), (1344, 800), (1344, 1344))
    for epoch in range(3):
        for tight, batch in zip(TrainLoader(data, config, batch_size=2, seed=0).epoch(epoch), bucketed.epoch(epoch), strict=True):
            batch = batch.to("cpu")
            height, width = tight.images.shape[2:]
            found.add(tuple(batch.images.shape[2:]))
            assert torch.equal(batch.images[:, :, :height, :width], tight.images)
            assert batch.images.sum() == tight.images.sum()
            assert same(batch._replace(images=tight.images), tight)
    assert {(64, 192), (192, 64)} <= found <= set(buckets(replace(config, buckets=2)))
    alone = eval_loader(data, replace(config, buckets=2), batch_size=4)
    assert all(same(a, b) for a, b in zip(alone, eval_loader(data, config, batch_size=4), strict=True))


def test_what_is_mixed_is_resized_by_the_loader():
    with pytest.raises(ConfigError, match=r"resize: 'device' leaves nothing to mix.*resize=cpu, or augment\.mosaic=0"):
        build(DataConfig, {"resize": "device", "augment": {"mixup": 0.5}})


def test_ranks_share_the_global_batches(data):
    whole = ids(TrainLoader(data, CONFIG, batch_size=4, seed=0).epoch(1))
    ranks = [ids(TrainLoader(data, CONFIG, batch_size=2, seed=0, rank=r, world=2).epoch(1)) for r in range(2)]
    assert [a + b for a, b in zip(*ranks, strict=True)] == whole


def test_loading_leaves_the_global_generator_alone(data):
    torch.manual_seed(0)
    state = torch.get_rng_state()
    list(TrainLoader(data, CONFIG, batch_size=4, seed=0).epoch(0))
    assert torch.equal(torch.get_rng_state(), state)


def test_loader_processes_give_the_same_batches_and_show_errors(data):
    """One pair of processes for all epochs; a broken epoch does not harm the next."""
    alone = TrainLoader(data, CONFIG, batch_size=4, seed=0)
    config = DataConfig(long_side=64, short_side=48, short_side_min=32, workers=2)
    gone = data.images[0]._replace(path=Path("gone.png"))
    loader = TrainLoader(data, config, batch_size=4, seed=0)
    try:
        for epoch in (0, 1):
            assert all(same(a, b) for a, b in zip(alone.epoch(epoch), loader.epoch(epoch), strict=True))
        abandoned = loader.epoch(2)
        next(abandoned)
        assert ids(loader.epoch(3)) == ids(alone.epoch(3))
        loader.images[0] = gone
        with pytest.raises(DataError, match=r"^gone\.png: no such file"):
            list(loader.epoch(4))
        loader.images[0] = data.images[0]
        assert ids(loader.epoch(5)) == ids(alone.epoch(5))
    finally:
        loader.close()


# -- evaluation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("batch_size", "world"), [(4, 1), (3, 2), (1, 3), (64, 4)])
def test_evaluation_serves_each_image_once_in_its_own_padding(data, batch_size, world):
    found = []
    for rank in range(world):
        loader = eval_loader(data, CONFIG, batch_size=batch_size, rank=rank, world=world)
        batches = list(loader)
        assert len(batches) == len(loader)
        found += batches
    assert sorted(i for batch in ids(found) for i in batch) == [r.image_id for r in data.images]
    for batch in found:
        assert len(batch.image_ids) <= batch_size
        for size in batch.sizes.tolist():
            assert [-(-side // 32) * 32 for side in size] == list(batch.images.shape[2:])


def test_evaluation_can_be_repeated_and_draws_nothing(data):
    loader = eval_loader(data, CONFIG, batch_size=4)
    assert all(same(a, b) for a, b in zip(loader, loader, strict=True))
