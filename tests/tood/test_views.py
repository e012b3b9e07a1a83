"""Test-time augmentation: mirrored exactly, mapped back exactly, and merged as by hand."""

from dataclasses import replace

import pytest
import torch

from tests.tiny import write_dataset
from tests.tood.test_postprocess import PRIORS, SCALES, SIZES, K, N, make_predictions, slow_nms
from tests.tood.tiny_recipe import recipe
from tood.config import PredictConfig, TTAConfig
from tood.data.batches import normalise, stack_images
from tood.data.coco import read_split
from tood.data.decoding import decode
from tood.data.loaders import eval_loader
from tood.data.transforms import flip_boxes, resize, resize_shape
from tood.detector import Detector
from tood.detectors import build_detector
from tood.errors import ConfigError
from tood.export.program import ExportedDetector
from tood.inference import detect_all
from tood.postprocess import detections, found_in_view, merged
from tood.recipe import Recipe
from tood.views import View, mirror, views_of, with_mirrored

CPU = torch.device("cpu")
TTA = TTAConfig(flip=True, scales=(1.0, 0.5, 1.5))


def same(one: list[dict], other: list[dict]) -> bool:
    return all(torch.equal(a[key], b[key]) for a, b in zip(one, other, strict=True) for key in ("boxes", "scores", "labels"))


@pytest.fixture(scope="module")
def images() -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return [torch.randint(256, (3, *size), generator=draw, dtype=torch.uint8) for size in ((40, 60), (60, 40), (50, 60))]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Recipe:
    config = recipe(write_dataset(tmp_path_factory.mktemp("squares") / "data", train=1, val=5))
    return replace(config, predict=replace(config.predict, max_detections=40))


def build(config: Recipe, **tta) -> Detector:
    torch.manual_seed(0)
    return build_detector(config.model, 3, replace(config.predict, tta=TTAConfig(**tta))).eval()


def test_each_image_is_mirrored_within_its_own_width(images):
    (view,) = views_of(images, long_side=60, short_side=60, scales=(1.0,), device=CPU)
    mirrored = mirror(view)
    assert mirrored.mirrored
    assert mirrored.images.shape == (3, 3, 64, 64)
    for before, after, image in zip(view.images, mirrored.images, images, strict=True):
        height, width = image.shape[1:]
        assert torch.equal(before[:, :height, :width], image)
        assert torch.equal(after[:, :height, :width], image.flip(-1))
        assert not after[:, height:].any()
        assert not after[:, :, width:].any()
    back = mirror(mirrored)
    assert torch.equal(back.images, view.images)
    assert not back.mirrored
    assert [v.mirrored for v in with_mirrored([view, view], flip=True)] == [False, True, False, True]
    assert [v.mirrored for v in with_mirrored([view, view], flip=False)] == [False, False]


def test_a_view_has_the_size_of_its_scale(images):
    scales = (1.0, 0.5, 1.25)
    views = views_of(images, long_side=64, short_side=48, scales=scales, device=CPU)
    for scale, view in zip(scales, views, strict=True):
        for image, size, ratio in zip(images, view.sizes.tolist(), view.scales.tolist(), strict=True):
            height, width = image.shape[1:]
            assert tuple(size) == resize_shape(height, width, 64 * scale, 48 * scale)
            assert ratio == pytest.approx([size[1] / width, size[0] / height])


def test_boxes_of_a_mirrored_view_come_back_to_the_pixel():
    """Predictions mirrored as a mirrored image would have them (exact in float32: whole pixels) give the very same boxes."""
    predictions = make_predictions(0)
    straight = predictions._replace(boxes=predictions.boxes.round())
    widths = SIZES[:, 1].view(2, 1).expand(2, N)
    turned = straight._replace(boxes=flip_boxes(straight.boxes, widths))
    for config in (PredictConfig(), PredictConfig(clip=True, min_size=3.0)):
        one, two = (found_in_view(p, SIZES, SCALES, config, mirrored=m) for p, m in ((straight, False), (turned, True)))
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("options", [{}, {"max_detections": 3}, {"nms_iou": 0.2}, {"per_level": 5}, {"clip": True}])
def test_views_are_merged_by_one_nms_over_all_they_found(options):
    config = PredictConfig(**options)
    parts = [make_predictions(seed) for seed in (0, 1, 2)]
    scales = [SCALES, SCALES * 2, SCALES / 2]
    everything = replace(config, nms=False, max_detections=10**6)  # with neither NMS nor limit: all that a view found
    alone = [detections(p, SIZES, s, everything) for p, s in zip(parts, scales, strict=True)]
    found = merged([found_in_view(p, SIZES, s, config) for p, s in zip(parts, scales, strict=True)], 2, config)
    for i, image in enumerate(found):
        candidates = [
            (score, box, label)
            for view in alone
            for score, box, label in zip(*(view[i][key].tolist() for key in ("scores", "boxes", "labels")), strict=True)
        ]
        kept = slow_nms(sorted(candidates, key=lambda c: -c[0]), config.nms_iou)[: config.max_detections]
        assert image["scores"].tolist() == [score for score, _, _ in kept]
        assert image["labels"].tolist() == [label for _, _, label in kept]
        torch.testing.assert_close(image["boxes"], torch.tensor([box for _, box, _ in kept]))
    assert max(len(view[0]["scores"]) for view in alone) <= N * K


def test_two_equal_views_find_what_one_finds_but_for_duplicates():
    view = found_in_view(make_predictions(0), SIZES, SCALES, PredictConfig())
    assert same(merged([view, view], 2, PredictConfig()), merged([view], 2, PredictConfig()))
    assert len(PRIORS.centres) == N


def test_boxes_vote_over_all_views():
    config = PredictConfig(score_voting=True, nms_iou=0.3)
    parts = [found_in_view(make_predictions(seed), SIZES, SCALES, config) for seed in (0, 1)]
    both, one = merged(parts, 2, config), merged(parts[:1], 2, config)
    alike = [(b["boxes"][0], o["boxes"][0]) for b, o in zip(both, one, strict=True) if torch.equal(b["scores"][0], o["scores"][0])]
    assert alike  # the best box of an image, which hears the second view too
    assert not any(torch.equal(b, o) for b, o in alike)


def test_off_it_is_the_detector_as_it_was_to_the_bit(tiny, images):
    detector = build(tiny)
    stacked, sizes = stack_images([resize(i, resize_shape(*i.shape[1:], 64, 64)) for i in images])
    scales = torch.tensor([[s[1] / i.shape[2], s[0] / i.shape[1]] for s, i in zip(sizes.tolist(), images, strict=True)])
    expected = detector.detect(normalise(stacked, sizes), sizes, scales)
    assert same(detector.predict(images, long_side=64, short_side=64), expected)
    assert same(detector.detect_views([View(stacked, sizes, scales)]), expected)
    assert min(len(e["scores"]) for e in expected) > 5


def test_an_image_is_looked_at_in_all_ways_by_hand(tiny, images):
    detector = build(tiny, flip=True, scales=TTA.scales)
    everything = replace(tiny.predict, nms=False, max_detections=10**6)
    for image in images:
        height, width = image.shape[1:]
        candidates = []
        for scale in TTA.scales:
            shape = resize_shape(height, width, 64 * scale, 64 * scale)
            for turned in (False, True):
                pixels = resize(image, shape)
                stacked, sizes = stack_images([pixels.flip(-1) if turned else pixels])
                ratio = torch.tensor([[shape[1] / width, shape[0] / height]])
                predictions = detector.dense(normalise(stacked, sizes))
                (found,) = detections(predictions, sizes, ratio, everything, detector.objective.FUSION)
                boxes = flip_boxes(found["boxes"], width) if turned else found["boxes"]
                candidates += zip(found["scores"].tolist(), boxes.tolist(), found["labels"].tolist(), strict=True)
        kept = slow_nms(sorted(candidates, key=lambda c: -c[0]), 0.6)[:40]
        (result,) = detector.predict([image], long_side=64, short_side=64)
        torch.testing.assert_close(result["scores"], torch.tensor([score for score, _, _ in kept]))
        torch.testing.assert_close(result["boxes"], torch.tensor([box for _, box, _ in kept]), rtol=1e-4, atol=1e-3)
        assert result["labels"].tolist() == [label for _, _, label in kept]


def test_an_exported_program_has_one_view(tiny):
    with pytest.raises(ConfigError, match=r"^predict\.tta: an exported program has one view; set predict\.tta\.flip=false"):
        ExportedDetector(build(tiny, flip=True), suppress=None)


def test_evaluation_looks_as_prediction_does_whatever_the_batch(tiny):
    data = read_split(tiny.data, "val")
    detector = build(tiny, flip=True, scales=(1.0, 0.75))
    found = {}
    for batch_size in (1, 4):
        config = replace(tiny, train=replace(tiny.train, batch_size=batch_size), predict=detector.predict_config)
        found[batch_size] = detect_all(detector, data, config, CPU)
    plain = detect_all(build(tiny), data, tiny, CPU)
    for one, four in zip(found[1], found[4], strict=True):
        torch.testing.assert_close(torch.from_numpy(one), torch.from_numpy(four), rtol=1e-4, atol=1e-3)
    assert found[1].scores.tolist() != plain.scores.tolist()
    for record in data.images:
        (result,) = detector.predict([decode(record.path)], long_side=64, short_side=64)
        scores = found[1].scores[found[1].image_ids == record.image_id]
        torch.testing.assert_close(result["scores"].double(), torch.from_numpy(scores))


def test_batches_of_several_scales_follow_each_other_and_add_no_padding(tiny):
    data = read_split(tiny.data, "val")
    sizes = [(64, 64), (64, 48), (50, 64), (64, 64), (30, 64)]
    data = replace(data, images=tuple(r._replace(height=h, width=w) for r, (h, w) in zip(data.images, sizes, strict=True)))
    orders = []
    for rank in (0, 1):
        loader = eval_loader(data, tiny.data, batch_size=2, rank=rank, world=2, scales=(1.0, 0.7))
        for first, second in zip(loader.work[::2], loader.work[1::2], strict=True):
            assert [o.record for o in first] == [o.record for o in second]
            assert ({o.scale for o in first}, {o.scale for o in second}) == ({1.0}, {0.7})
            for scale, batch in ((1.0, first), (0.7, second)):
                shapes = [resize_shape(o.record.height, o.record.width, 64 * scale, 64 * scale) for o in batch]
                assert len({tuple(-(-side // 32) for side in shape) for shape in shapes}) == 1
            orders += first
    assert sorted(o.record.image_id for o in orders) == [1, 2, 3, 4, 5]
