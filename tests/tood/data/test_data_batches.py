"""Batches: who comes together, who comes when, and that loading is the same whatever processes do it."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tood.config import BackboneConfig, DataConfig, build
from tood.data.batches import MEAN, PIXELS, STD, TrainLoader, TrainSampler, buckets, collate, eval_loader, normalise, stack_images
from tood.data.coco import CocoData
from tood.data.record import ImageRecord
from tood.data.transforms import Sample
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


# -- tensors ---------------------------------------------------------------------------------------------------------


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


TRAINER = """
import os, signal, sys
from pathlib import Path
from typing import get_args, get_type_hints
import numpy as np
from tood.config import BackboneConfig, DataConfig
from tood.data.batches import TrainLoader
from tood.data.coco import CocoData
from tood.data.record import ImageRecord

if __name__ == "__main__":
    record = ImageRecord(1, Path(sys.argv[1]), 30, 40, np.float32([[1, 1, 9, 9]]), np.array([0]), np.array([False]))
    data = CocoData((record,), ("a",), (1,), Path("a.json"), "")
    loader = TrainLoader(data, DataConfig(long_side=64, short_side=48, workers=1), batch_size=1, seed=0)
    next(loader.epoch(0))
    children = {p for p in os.listdir("/proc") if p.isdigit() and os.getsid(int(p)) == os.getpid()} - {str(os.getpid())}
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    print(*children, flush=True)
    sys.stdin.read()
    next(loader.epoch(1))  # and away, with the loader open
"""


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("end", ["killed", "told to stop", "done"])
def test_loader_processes_end_with_the_trainer_and_not_before(data, tmp_path, end):
    """It may be killed, exit with its loader open, or do so in its own time after a SIGTERM to its process group."""
    script = tmp_path / "trainer.py"
    script.write_text(TRAINER)
    trainer = subprocess.Popen(
        [sys.executable, str(script), str(data.images[0].path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])},
    )  # fmt: skip
    try:
        children = [int(child) for child in trainer.stdout.readline().split()]
        assert len(children) >= 2  # the fork server and the loader process
        if end == "killed":
            os.kill(trainer.pid, signal.SIGKILL)
        else:
            if end == "told to stop":
                os.killpg(trainer.pid, signal.SIGTERM)
            trainer.stdin.close()
        assert trainer.wait(30) == (-signal.SIGKILL if end == "killed" else 0)
        deadline = time.monotonic() + 30
        while any(_runs(child) for child in children):
            assert time.monotonic() < deadline, "loader processes outlive their trainer"
            time.sleep(0.05)
    finally:
        os.killpg(trainer.pid, signal.SIGKILL)
        trainer.stdout.close()
        trainer.wait()


def _runs(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


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
