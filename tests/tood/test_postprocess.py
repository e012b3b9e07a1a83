"""Detections against a plain loop over points, classes and pairs of boxes."""

import pytest
import torch

from tood.config import PredictConfig
from tood.head import Predictions
from tood.postprocess import class_wise_nms, detections
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


def slow_detections(scores, boxes, size, scale, config):
    """One image, plain lists: scores[p][k], boxes[p]."""
    chosen, start = [], 0
    for count in PRIORS.counts:
        level = [
            (-scores[p][k], p, k) for p in range(start, start + count) for k in range(K) if scores[p][k] > config.score_threshold
        ]
        chosen += sorted(level)[: config.per_level]
        start += count
    candidates = []
    for negative, p, k in sorted(chosen):
        box = list(boxes[p])
        if config.clip:
            box = [min(max(v, 0), limit) for v, limit in zip(box, (size[1], size[0]) * 2, strict=True)]
        box = [v / s for v, s in zip(box, scale * 2, strict=True)]
        if min(box[2] - box[0], box[3] - box[1]) > config.min_size:
            candidates.append((-negative, box, k))
    return slow_nms(candidates, config.nms_iou)[: config.max_detections]


def make_predictions(seed: int, ties: bool = False) -> Predictions:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(2, N, K, generator=generator)
    if ties:
        scores = (scores * 4).ceil() / 5
    reach = torch.rand(2, N, 4, generator=generator) * 25 * torch.tensor([-1, -1, 1, 1])
    return Predictions(scores.log(), PRIORS.centres.repeat(1, 2) + reach, PRIORS)


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
        {"clip": True, "min_size": 8.0, "per_level": 20, "max_detections": 12, "score_threshold": 0.3},
    ],
)
def test_detections_are_the_plain_loop(options, ties):
    predictions, config = make_predictions(3, ties), PredictConfig(**options)
    found = detections(predictions, SIZES, SCALES, config)
    for i, image in enumerate(found):
        expected = slow_detections(
            predictions.log_scores[i].exp().tolist(),
            predictions.boxes[i].tolist(),
            SIZES[i].tolist(),
            SCALES[i].tolist(),
            config,
        )
        assert expected
        assert image["labels"].tolist() == [label for _, _, label in expected]
        torch.testing.assert_close(image["scores"], torch.tensor([score for score, _, _ in expected]))
        torch.testing.assert_close(image["boxes"], torch.tensor([box for _, box, _ in expected]))


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
