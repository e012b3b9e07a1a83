"""Detections against a plain loop over points, classes and pairs of boxes."""

import math

import pytest
import torch

from tood.config import PredictConfig
from tood.postprocess import class_wise_nms, detections
from tood.predictions import FUSIONS, Predictions, Quality
from tood.priors import make_priors

PRIORS = make_priors(((6, 6), (3, 3), (2, 2), (1, 1), (1, 1)), torch.device("cpu"))
N, K = len(PRIORS.centres), 4
SIZES = torch.tensor([[48, 40], [33, 48]])
SCALES = torch.tensor([[0.5, 0.4], [2.0, 1.6]])


def iou_of(a, b):
    overlap = max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    return overlap / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - overlap)


def slow_nms(candidates, limit):
    """Candidates (score, box, label), best first -> those that no better one of their class overlaps by more than limit."""
    kept = []
    for score, box, label in candidates:
        if all(label != other or iou_of(box, better) <= limit for _, better, other in kept):
            kept.append((score, box, label))
    return kept


def slow_pairs(scores, quality, fusion, config):
    """(-confidence, p, k) of the pairs that are looked at, best first."""
    chosen, start = [], 0
    for count in PRIORS.counts:
        level = range(start, start + count)
        if fusion == "geometric_mean":  # the best priors of a level by their confidence
            level = sorted(level, key=lambda p: (-max(math.sqrt(s * quality[p]) for s in scores[p]), p))[: config.per_level]
            fused = [(-math.sqrt(scores[p][k] * quality[p]), p, k) for p in level for k in range(K)]
            chosen += [pair for pair in fused if -pair[0] > config.score_threshold]
        else:  # the best pairs of a level by their score
            pairs = [(-scores[p][k], p, k) for p in level for k in range(K) if scores[p][k] > config.score_threshold]
            chosen += sorted(pairs)[: config.per_level]
        start += count
    if fusion == "product":
        chosen = [(s * quality[p], p, k) for s, p, k in chosen]
    return sorted(chosen)


def slow_vote(score, box, label, candidates):
    """PAA: the mean of all boxes of the class, weighted by score * exp(-(1 - IoU)^2 / 0.025), from an IoU above 0.01."""
    total, weights = [0.0] * 4, 0.0
    for other_score, other, other_label in candidates:
        iou = iou_of(box, other)
        if other_label == label and iou > 0.01:
            weight = other_score * math.exp(-((1 - iou) ** 2) / 0.025)
            total, weights = [t + weight * v for t, v in zip(total, other, strict=True)], weights + weight
    return score, [t / weights for t in total], label


def slow_detections(scores, boxes, size, scale, config, quality=None, fusion="none"):
    """One image, plain lists: scores[p][k], boxes[p], quality[p]."""
    candidates = []
    for negative, p, k in slow_pairs(scores, quality, fusion, config):
        box = list(boxes[p])
        if config.clip:
            box = [min(max(v, 0), limit) for v, limit in zip(box, (size[1], size[0]) * 2, strict=True)]
        box = [v / s for v, s in zip(box, scale * 2, strict=True)]
        if min(box[2] - box[0], box[3] - box[1]) > config.min_size:
            candidates.append((-negative, box, k))
    kept = slow_nms(candidates, config.nms_iou) if config.nms else candidates
    kept = kept[: config.max_detections]
    return [slow_vote(*one, candidates) for one in kept] if config.score_voting else kept


def make_predictions(seed: int, ties: bool = False) -> Predictions:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(2, N, K, generator=generator)
    if ties:
        scores = (scores * 4).ceil() / 5
    reach = torch.rand(2, N, 4, generator=generator) * 25 * torch.tensor([-1, -1, 1, 1])
    quality = Quality("iou", torch.randn(2, N, generator=generator))
    return Predictions(scores.log(), PRIORS.centres.repeat(1, 2) + reach, PRIORS, quality)


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"score_threshold": 0.55},
        {"per_level": 5},
        {"per_level": 1, "nms_iou": 1.0},
        {"max_detections": 3},
        {"nms_iou": 0.2},
        {"min_size": 12.0},
        {"clip": True},
        {"score_voting": True, "nms_iou": 0.3},
        {"score_voting": True, "per_level": 5, "max_detections": 4},
        {"nms": False, "max_detections": 30},
        {"clip": True, "min_size": 8.0, "per_level": 20, "max_detections": 12, "score_threshold": 0.3},
    ],
)
def test_detections_are_the_plain_loop(options, ties, fusion):
    predictions, config = make_predictions(3, ties), PredictConfig(**options)
    found = detections(predictions, SIZES, SCALES, config, fusion)
    for i, image in enumerate(found):
        expected = slow_detections(
            predictions.log_scores[i].exp().tolist(),
            predictions.boxes[i].tolist(),
            SIZES[i].tolist(),
            SCALES[i].tolist(),
            config,
            predictions.quality.logits[i].sigmoid().tolist(),
            fusion,
        )
        assert expected
        assert image["labels"].tolist() == [label for _, _, label in expected]
        torch.testing.assert_close(image["scores"], torch.tensor([score for score, _, _ in expected]))
        torch.testing.assert_close(image["boxes"], torch.tensor([box for _, box, _ in expected]))


@pytest.mark.parametrize("fusion", FUSIONS)
def test_without_a_quality_branch_every_fusion_ranks_by_the_score(fusion):
    """But for PAA's, which keeps the best priors of a level and not the best pairs: here all are kept."""
    predictions = make_predictions(3)._replace(quality=None)
    for one, other in zip(
        detections(predictions, SIZES, SCALES, PredictConfig(), fusion),
        detections(predictions, SIZES, SCALES, PredictConfig()),
        strict=True,
    ):
        assert all(torch.equal(one[key], other[key]) for key in ("boxes", "scores", "labels"))


def test_without_nms_the_one_to_one_predictor_speaks():
    one = make_predictions(1)
    both = make_predictions(0)._replace(one_to_one=one)
    for nms, speaks in ((True, make_predictions(0)), (False, one)):
        config = PredictConfig(nms=nms)
        found, expected = detections(both, SIZES, SCALES, config), detections(speaks, SIZES, SCALES, config)
        assert all(torch.equal(a[key], b[key]) for a, b in zip(found, expected, strict=True) for key in a)


def test_a_box_that_nobody_overlaps_keeps_its_place_when_boxes_vote():
    predictions = make_predictions(0)
    predictions.boxes[:] = 500.0 * torch.arange(N).view(1, N, 1) + torch.tensor([0.0, 0, 30, 40])
    plain, voted = (detections(predictions, SIZES, SCALES, PredictConfig(score_voting=voting)) for voting in (False, True))
    for one, other in zip(plain, voted, strict=True):
        torch.testing.assert_close(one["boxes"], other["boxes"])
        assert torch.equal(one["scores"], other["scores"])


def test_boxes_without_area_or_inside_out_are_dropped():
    predictions = make_predictions(0)
    predictions.boxes[0, :, 2] = predictions.boxes[0, :, 0]
    predictions.boxes[1, :, 1] = predictions.boxes[1, :, 3] + 1
    found = detections(predictions, SIZES, SCALES, PredictConfig())
    assert [len(image["scores"]) for image in found] == [0, 0]


def test_an_image_without_detections_is_an_empty_dict_of_the_right_shapes():
    predictions = make_predictions(0)
    predictions.log_scores[0] = -5.0
    empty, full = detections(predictions, SIZES, SCALES, PredictConfig())
    assert [tuple(empty[key].shape) for key in ("boxes", "scores", "labels")] == [(0, 4), (0,), (0,)]
    assert empty["labels"].dtype == full["labels"].dtype == torch.int64
    assert len(full["scores"]) > 0


def test_a_score_at_the_threshold_is_not_above_it():
    predictions = make_predictions(0)
    predictions.log_scores[:] = torch.tensor(0.25).log()
    threshold = predictions.log_scores[0, 0, 0].exp().item()
    at = detections(predictions, SIZES, SCALES, PredictConfig(score_threshold=threshold))
    below = detections(predictions, SIZES, SCALES, PredictConfig(score_threshold=threshold - 1e-6))
    assert [len(image["scores"]) for image in at] == [0, 0]
    assert min(len(image["scores"]) for image in below) > 0


@pytest.mark.parametrize("shift", [0.0, -60.0, -5000.0, 30_000.0])
@pytest.mark.parametrize("classes", [1, 80, 20_000])
def test_nms_keeps_classes_apart_wherever_boxes_lie_and_however_many_classes_there_are(shift, classes):
    generator = torch.Generator().manual_seed(classes)
    corner = (torch.rand(200, 2, generator=generator) * 60).round() + shift
    boxes = torch.cat([corner, corner + 10 + (torch.rand(200, 2, generator=generator) * 30).round()], dim=1)
    boxes[::7] -= 40_000  # negative beside positive coordinates
    labels = classes - 1 - torch.randint(min(classes, 4), (200,), generator=generator)
    scores = torch.rand(200, generator=generator)
    order = scores.argsort(descending=True).tolist()
    kept = slow_nms([(i, boxes[i].tolist(), labels[i].item()) for i in order], 0.5)
    assert 20 < len(kept) < 190
    assert class_wise_nms(boxes, scores, labels, 0.5).tolist() == [i for i, _, _ in kept]


def test_nms_suppresses_above_and_not_at_the_limit():
    boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 2], [0, 0, 4, 3]])  # IoU with the first: 0.5, 0.75
    scores, labels = torch.tensor([0.9, 0.8, 0.7]), torch.zeros(3, dtype=torch.int64)
    assert class_wise_nms(boxes, scores, labels, 0.5).tolist() == [0, 1]
    assert class_wise_nms(boxes, scores, labels, 0.75).tolist() == [0, 1, 2]
