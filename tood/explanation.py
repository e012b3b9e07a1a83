"""Where on an image a detector is sure, where it is exact, and which points learn what (TOOD, Figures 1 and 4).

G objects that are shown: those annotated, one of them, or the image's best detection. N points of all levels, K classes.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from tood.boxes import inside, pairwise_iou
from tood.data.batches import stack_images
from tood.data.targets import pad_targets
from tood.detector import Detector
from tood.priors import Priors, inside_image
from tood.task_alignment import LAST_PHASE, confidence, dense_predictions


class BestPoint(NamedTuple):
    """For one task, the best of the points inside each object."""

    point: Tensor  # int64 [G], -1 where no point lies inside
    box: Tensor  # float32 [G, 4] px, predicted there
    score: Tensor  # float32 [G], confidence in the object's class
    iou: Tensor  # float32 [G], of the box with the object


class Explanation(NamedTuple):
    """Of one image, on the CPU; px of the network's input."""

    size: tuple[int, int]  # (height, width)
    numbers: tuple[int, ...]  # [G] places of the objects among those annotated, from 1; empty: it is a detection
    objects: Tensor  # float32 [G, 4]
    labels: Tensor  # int64 [G]
    priors: Priors
    valid: Tensor  # bool [N], points in the image or its own padding
    score: Tensor  # float32 [N], highest confidence in a class of the objects
    iou: Tensor  # float32 [N], of the point's box with the object that it overlaps most
    classified: BestPoint  # highest score: the best anchor for classification
    localised: BestPoint  # highest IoU: the best anchor for localisation
    owner: Tensor  # int64 [N], which of the G the point learns by the detector's objective, in its last phase; -1: none


@torch.no_grad()
def explain(
    detector: Detector, image: Tensor, boxes: Tensor | None = None, labels: Tensor | None = None, only: int | None = None
) -> Explanation:
    """image: u8 [3, H, W], resized as the detector expects; boxes [A, 4] px of it and labels [A] of all annotated objects.

    only: the one of them to show. Points are dealt out among all.
    """
    device = next(detector.parameters()).device
    images, sizes = (value.to(device) for value in stack_images([image]))
    predictions = dense_predictions(detector, images, sizes)
    valid = inside_image(predictions.priors, sizes)
    log_confidence, predicted = confidence(detector, predictions)[0], predictions.boxes[0]
    if boxes is None or not len(boxes):
        best = log_confidence.masked_fill(~valid[0].unsqueeze(1), -torch.inf).argmax()
        point, label = best // log_confidence.shape[1], best % log_confidence.shape[1]
        boxes, labels, shown, numbers = predicted[point].unsqueeze(0), label.unsqueeze(0), [0], ()
    else:
        shown = list(range(len(boxes))) if only is None else [only]
        numbers = tuple(i + 1 for i in shown)
    boxes, labels = boxes.to(device), labels.to(device)
    owner = detector.objective.assign(predictions, pad_targets([boxes], [labels]), valid, LAST_PHASE).object[0]
    place = torch.full((len(boxes) + 1,), -1, device=device)  # the last is for points that learn nothing
    place[shown] = torch.arange(len(shown), device=device)
    boxes, labels = boxes[shown], labels[shown]
    scores, iou = log_confidence.t()[labels].exp(), pairwise_iou(boxes, predicted)  # [G, N]
    outside = ~(inside(predictions.priors.centres, boxes.unsqueeze(1)) & valid)

    def best_point(ranking: Tensor) -> BestPoint:
        value, point = ranking.masked_fill(outside, -1.0).max(dim=1)
        at = point.unsqueeze(1)
        found = torch.where(value >= 0, point, -1), predicted[point], scores.gather(1, at).squeeze(1), iou.gather(1, at).squeeze(1)
        return BestPoint(*(x.cpu() for x in found))

    priors = Priors(*(x.cpu() if isinstance(x, Tensor) else x for x in predictions.priors))
    maps = (x.cpu() for x in (boxes, labels, valid[0], scores.amax(0), iou.amax(0), place[owner]))
    boxes, labels, inside_input, score_map, iou_map, owner = maps
    size = (image.shape[1], image.shape[2])
    return Explanation(
        size, numbers, boxes, labels, priors, inside_input, score_map, iou_map, best_point(scores), best_point(iou), owner
    )


def rendered(values: Tensor, priors: Priors, valid: Tensor, size: tuple[int, int], cell: int = 4) -> Tensor:
    """Values [N] >= 0 of points as a map [H / cell, W / cell] of an image of `size`.

    At each place, the value of the nearest point of each level, and of these the highest.
    """
    rows, columns = ((torch.arange(-(-side // cell)) + 0.5) * cell for side in size)
    picture = torch.zeros(len(rows), len(columns))
    values = values.masked_fill(~valid, 0.0)
    for value, centres in zip(values.split(priors.counts), priors.centres.split(priors.counts), strict=True):
        (xs, column), (ys, row) = (axis.unique(return_inverse=True) for axis in centres.unbind(1))
        grid = torch.zeros(len(ys) * len(xs)).scatter_reduce_(0, row * len(xs) + column, value, "amax").view(len(ys), len(xs))
        picture = torch.maximum(picture, grid[_nearest(rows, ys)][:, _nearest(columns, xs)])
    return picture


def _nearest(places: Tensor, ticks: Tensor) -> Tensor:
    """The index of the nearest of ascending ticks, for each place."""
    return torch.bucketize(places, (ticks[1:] + ticks[:-1]) / 2)
