"""Mosaic and mixup: every pixel and box against a plain loop, and that what is drawn depends on seed, epoch and image alone."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tood.config import AugmentConfig, DataConfig
from tood.data.batches import Batch
from tood.data.coco import CocoData
from tood.data.decoding import decode
from tood.data.loaders import TrainLoader
from tood.data.mixing import FILL, Pairing, Partners, Picture, mixup, mosaic, plan_mixup, plan_mosaic
from tood.data.record import ImageRecord
from tood.data.transforms import flip_boxes, load_sample, resize

SIDES = {"long_side": 64, "short_side": 48}
MIXED = AugmentConfig(mosaic=0.6, mixup=0.5)


def picture(height: int, width: int, seed: int, objects: int = 4, crowds: int = 2) -> Picture:
    draw = np.random.default_rng(seed)
    image = torch.from_numpy(draw.integers(256, size=(height, width, 3), dtype=np.uint8)).permute(2, 0, 1)
    corners = draw.random((objects + crowds, 2, 2), dtype=np.float32) * np.float32([width, height])
    boxes = torch.from_numpy(np.concatenate([corners.min(1), corners.max(1)], axis=1))
    return Picture(image, boxes[:objects], torch.arange(objects) + 10 * seed, boxes[objects:])


# -- plain loops -----------------------------------------------------------------------------------------------------


def slow_boxes(boxes, corner, size, least):
    """(index, box) of those that keep more than `least` px in both directions after a move and a cut."""
    kept = []
    for i, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
        moved = [x1 + corner[0], y1 + corner[1], x2 + corner[0], y2 + corner[1]]
        cut = [min(max(v, 0), limit) for v, limit in zip(moved, (size[1], size[0]) * 2, strict=True)]
        if cut[2] - cut[0] > least and cut[3] - cut[1] > least:
            kept.append((i, cut))
    return kept


def slow_objects(pictures, corners, size):
    boxes, labels, crowds = [], [], []
    for p, corner in zip(pictures, corners, strict=True):
        kept = slow_boxes(p.boxes, corner, size, 2)
        boxes += [box for _, box in kept]
        labels += [p.labels[i].item() for i, _ in kept]
        crowds += [box for _, box in slow_boxes(p.crowds, corner, size, 0)]
    return boxes, labels, crowds


def pixel(p: Picture, corner, y: int, x: int):
    """The colour that a picture has at a place of the canvas, or the canvas's grey where it does not reach."""
    inside = 0 <= y - corner[1] < p.image.shape[1] and 0 <= x - corner[0] < p.image.shape[2]
    return p.image[:, y - corner[1], x - corner[0]].tolist() if inside else [FILL] * 3


def assert_objects(found: Picture, expected) -> None:
    boxes, labels, crowds = expected
    torch.testing.assert_close(found.boxes, torch.tensor(boxes).reshape(-1, 4))
    torch.testing.assert_close(found.crowds, torch.tensor(crowds).reshape(-1, 4))
    assert found.labels.tolist() == labels


# -- pixels and boxes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("centre", [(11, 7), (3, 14), (0, 9), (20, 16), (20, 0)])
def test_a_mosaic_is_the_plain_loop(centre):
    size, shapes = (16, 20), [(9, 13), (12, 6), (5, 14), (15, 3)]
    four = [picture(*shape, seed) for seed, shape in enumerate(shapes)]
    found = mosaic(four, centre, size)
    assert found.image.dtype == torch.uint8
    assert found.image.permute(1, 2, 0).is_contiguous()
    corners = [(centre[0] - 13, centre[1] - 9), (centre[0], centre[1] - 12), (centre[0] - 14, centre[1]), centre]
    for y in range(16):
        for x in range(20):
            quarter = (x >= centre[0]) + 2 * (y >= centre[1])
            assert found.image[:, y, x].tolist() == pixel(four[quarter], corners[quarter], y, x)
    assert_objects(found, slow_objects(four, corners, size))


@pytest.mark.parametrize(("shape", "corner"), [((9, 13), (4, 2)), ((30, 40), (-7, -11)), ((9, 40), (-3, 5)), ((16, 20), (0, 0))])
def test_a_mixup_is_the_plain_loop(shape, corner):
    first, second = picture(16, 20, 0), picture(*shape, 1)
    found = mixup(first, second, corner)
    assert found.image.dtype == torch.uint8
    assert found.image.permute(1, 2, 0).is_contiguous()
    for y in range(16):
        for x in range(20):
            both = zip(first.image[:, y, x].tolist(), pixel(second, corner, y, x), strict=True)
            assert found.image[:, y, x].tolist() == [(a + b) // 2 for a, b in both]
    boxes, labels, crowds = slow_objects([second], [corner], (16, 20))
    assert_objects(found, (first.boxes.tolist() + boxes, first.labels.tolist() + labels, first.crowds.tolist() + crowds))
    torch.testing.assert_close(found.boxes[:4], first.boxes, rtol=0, atol=0)


def test_of_an_object_two_pixels_are_too_few_and_of_a_crowd_the_last_one_counts():
    empty = picture(16, 20, 0, objects=0, crowds=0)
    edge = torch.tensor([[0.0, 0, 6, 9], [0, 0, 6.5, 9], [0, 0, 4, 9]])
    second = Picture(picture(9, 13, 1).image, edge, torch.tensor([5, 6, 7]), edge)
    found = mixup(empty, second, (-4, 0))
    assert found.labels.tolist() == [6]
    assert found.boxes.tolist() == [[0, 0, 2.5, 9]]
    assert found.crowds.tolist() == [[0, 0, 2, 9], [0, 0, 2.5, 9]]


def test_images_without_objects_make_a_picture_without_objects():
    four = [picture(8, 8, seed, objects=0, crowds=0) for seed in range(4)]
    found = mixup(mosaic(four, (8, 8), (16, 16)), four[0], (0, 0))
    assert (found.boxes.shape, found.labels.shape, found.crowds.shape) == ((0, 4), (0,), (0, 4))
    assert (found.boxes.dtype, found.labels.dtype) == (torch.float32, torch.int64)


# -- what is drawn ---------------------------------------------------------------------------------------------------

SIZES = st.tuples(st.integers(1, 300), st.integers(1, 300))


@given(size=SIZES, images=st.tuples(SIZES, SIZES, SIZES, SIZES), seed=st.integers(0, 99))
def test_a_mosaic_meets_inside_and_no_tile_is_larger_than_the_picture(size, images, seed):
    plan = plan_mosaic(np.random.default_rng(seed), size, images)
    assert 0 <= plan.centre[0] <= size[1]
    assert 0 <= plan.centre[1] <= size[0]
    for (height, width), (tall, wide) in zip(plan.sizes, images, strict=True):
        assert 1 <= height <= max(1, size[0])
        assert 1 <= width <= max(1, size[1])
        fit = min(size[0] / tall, size[1] / wide)  # half of that to all of it, to the nearest pixel
        assert height >= 0.5 * fit * tall - 0.5
        assert width >= 0.5 * fit * wide - 0.5


@given(size=SIZES, image=SIZES, seed=st.integers(0, 99))
def test_a_second_image_lies_in_the_picture_or_covers_it(size, image, seed):
    (height, width), (x, y) = plan_mixup(np.random.default_rng(seed), size, image)
    for place, side, room in ((x, width, size[1]), (y, height, size[0])):
        assert 0 <= place <= room - side or room - side <= place <= 0


def test_centres_scales_and_places_are_spread():
    draw = np.random.default_rng(0)
    plans = [plan_mosaic(draw, (100, 200), [(100, 200)] * 4) for _ in range(400)]
    x, y = np.array([p.centre for p in plans]).T
    assert (x.min() < 25, x.max() > 175, y.min() < 12, y.max() > 88) == (True,) * 4
    assert abs(x.mean() - 100) < 5
    assert {p.sizes[0] for p in plans} == {p.sizes[3] for p in plans}
    second = [plan_mixup(draw, (100, 200), (100, 200)) for _ in range(400)]
    heights = [p.size[0] for p in second]
    assert (min(heights) < 55, max(heights) > 145, min(p.corner[0] for p in second) < -50) == (True,) * 3


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> CocoData:
    """24 images of three shapes; of every third one object is a crowd, and images 4 and 5 have nothing."""
    folder, draw, records = tmp_path_factory.mktemp("images"), np.random.default_rng(0), []
    for number in range(24):
        height, width = [(30, 40), (40, 30), (20, 60)][number % 3]
        path = folder / f"{number}.png"
        Image.fromarray(draw.integers(256, size=(height, width, 3), dtype=np.uint8)).save(path)
        count = 0 if number in (4, 5) else 1 + number % 3
        boxes = np.tile(np.float32([2, 3, 12, 13]), (count, 1)) + np.arange(count, dtype=np.float32)[:, None]
        records.append(ImageRecord(1000 + number, path, height, width, boxes, np.arange(count), np.arange(count) == 2))
    return CocoData(tuple(records), ("a", "b", "c"), (1, 2, 3), Path("annotations.json"), "0" * 64)


def test_pairs_are_drawn_from_seed_and_epoch_in_the_shares_that_are_asked_for(data):
    many = data.images * 50
    one = Pairing(many, MIXED, seed=1, epoch=2)
    again, later, other = (Pairing(many, MIXED, seed, epoch) for seed, epoch in ((1, 2), (1, 3), (2, 2)))
    pairs = [one.of(i) for i in range(len(many))]
    assert pairs == [again.of(i) for i in range(len(many))]
    for different in (later, other):
        assert sum(a != different.of(i) for i, a in enumerate(pairs)) > 600
    assert np.mean([bool(p.mosaic) for p in pairs]) == pytest.approx(0.6, abs=0.05)
    assert np.mean([p.mixup is not None for p in pairs]) == pytest.approx(0.5, abs=0.05)
    assert np.mean([bool(p.mosaic) and p.mixup is not None for p in pairs]) == pytest.approx(0.3, abs=0.05)
    assert {len(p.mosaic) for p in pairs} == {0, 3}
    assert {r.image_id for p in pairs for r in p.mosaic} == {r.image_id for r in data.images}
    second = {p.mixup.image_id for p in pairs if p.mixup}
    assert second == {r.image_id for r in data.images if len(r.boxes)}  # an image without objects adds nothing
    always, nothing = AugmentConfig(mosaic=1.0, mixup=1.0), Pairing(data.images[4:6], AugmentConfig(mixup=1.0), 0, 0)
    assert all(p.mosaic and p.mixup for p in map(Pairing(many, always, 0, 0).of, range(len(many))))
    assert [nothing.of(i) for i in (0, 1)] == [Partners()] * 2


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_a_sample_is_made_of_its_partners_and_keeps_its_own_size(data, flip):
    config = DataConfig(**SIDES, flip=flip)
    record, partners = data.images[0], Partners(data.images[1:4], data.images[8])
    plain = load_sample(record, config, training=True, seed=(0, 1, 2))
    sample = load_sample(record, config, training=True, seed=(0, 1, 2), partners=partners)
    assert sample.image.shape == plain.image.shape == (3, 48, 64)
    assert sample[3:6] == plain[3:6]
    draw = np.random.default_rng((0, 1, 2))
    draw.random()  # the flip
    tiles = [record, *partners.mosaic]
    first = plan_mosaic(draw, (48, 64), [(t.height, t.width) for t in tiles])
    then = plan_mixup(draw, (48, 64), (20, 60))

    def resized(r: ImageRecord, size) -> Picture:
        boxes = torch.from_numpy(r.boxes) * torch.tensor([size[1] / r.width, size[0] / r.height] * 2)
        crowd = torch.from_numpy(r.crowd)
        return Picture(resize(decode(r.path), size), boxes[~crowd], torch.from_numpy(r.labels)[~crowd], boxes[crowd])

    made = mosaic([resized(t, s) for t, s in zip(tiles, first.sizes, strict=True)], first.centre, (48, 64))
    made = mixup(made, resized(data.images[8], then.size), then.corner)
    assert torch.equal(sample.image, made.image.flip(-1) if flip else made.image)
    torch.testing.assert_close(sample.boxes, flip_boxes(made.boxes, 64) if flip else made.boxes)
    torch.testing.assert_close(sample.crowds, flip_boxes(made.crowds, 64) if flip else made.crowds)
    assert torch.equal(sample.labels, made.labels)
    assert len(made.crowds)


# -- batches ---------------------------------------------------------------------------------------------------------


def loader(data: CocoData, workers: int = 0, augment: AugmentConfig = MIXED, batch_size: int = 4, **place) -> TrainLoader:
    config = DataConfig(**SIDES, short_side_min=32, workers=workers, keep_empty=True, augment=augment)
    return TrainLoader(data, config, batch_size=batch_size, seed=3, epochs=5, **place)


def same(a: Batch, b: Batch) -> bool:
    pairs = zip([*a[:2], *a.targets, *a[3:]], [*b[:2], *b.targets, *b[3:]], strict=True)
    return all(torch.equal(x, y) for x, y in pairs if x is not None)


def test_mixed_batches_are_the_same_after_a_stop_and_whatever_loads_them(data):
    whole = list(loader(data).epoch(2))
    assert all(same(a, b) for a, b in zip(whole[3:], loader(data).epoch(2, start_batch=3), strict=True))
    ranks = [list(loader(data, batch_size=2, rank=r, world=2).epoch(2)) for r in (0, 1)]
    for batch, *parts in zip(whole, *ranks, strict=True):
        for i in range(4):
            part, j = parts[i // 2], i % 2
            height, width = batch.sizes[i].tolist()
            assert torch.equal(part.images[j, :, :height, :width], batch.images[i, :, :height, :width])
            assert torch.equal(part.targets.boxes[j][part.targets.valid[j]], batch.targets.boxes[i][batch.targets.valid[i]])
    processes = loader(data, workers=2)
    try:
        assert all(same(a, b) for a, b in zip(whole, processes.epoch(2), strict=True))
    finally:
        processes.close()
    assert not any(same(a, b) for a, b in zip(whole, loader(data).epoch(1), strict=True))


def test_mixing_changes_what_is_in_a_batch_and_nothing_of_its_shape(data):
    plain, mixed = list(loader(data, augment=AugmentConfig()).epoch(0)), list(loader(data).epoch(0))
    for a, b in zip(plain, mixed, strict=True):
        assert a.images.shape == b.images.shape
        assert torch.equal(a.sizes, b.sizes)
        assert torch.equal(a.image_ids, b.image_ids)
        assert b.images.dtype == torch.uint8
        assert not same(a, b)


def test_the_last_epochs_are_those_of_a_run_without(data):
    closing = AugmentConfig(mosaic=1.0, mixup=1.0, last_epochs_off=2)
    mixed, plain = loader(data, augment=closing), loader(data, augment=AugmentConfig())
    equal = [all(same(a, b) for a, b in zip(mixed.epoch(e), plain.epoch(e), strict=True)) for e in range(5)]
    assert equal == [False, False, False, True, True]
