"""From dense predictions to detections: threshold, the best of each level, class-wise NMS, the best of the image.

Of several views of an image (test-time augmentation) all that was found, mapped back, goes through one NMS.

B images, N priors, K classes, M candidates. The order is mmdetection's: rescale to the original image, drop small boxes, then NMS.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tood.assign.ownership import smallest_of_groups
from tood.boxes import clip, pairwise_iou
from tood.config import PredictConfig
from tood.data.transforms import flip_boxes
from tood.predictions import Predictions

ONE = 0x3F800000  # the bits of 1 in float32
VOTING_WIDTH = 0.025  # of the Gaussian over 1 - IoU by which boxes vote (PAA)
VOTING_IOU = 0.01  # a box below has no vote


class Candidates(NamedTuple):
    """(prior, class) pairs of the batch, by falling confidence."""

    image: Tensor  # int64 [M]
    point: Tensor  # int64 [M]
    label: Tensor  # int64 [M]
    score: Tensor  # [M] confidence

    def at(self, index: Tensor) -> "Candidates":
        return Candidates(*(values[index] for values in self))


class Found(NamedTuple):
    """What a view offers to NMS, by falling confidence."""

    image: Tensor  # int64 [M]
    boxes: Tensor  # [M, 4] px of the original image
    label: Tensor  # int64 [M]
    score: Tensor  # [M]


def detections(
    predictions: Predictions, sizes: Tensor, scales: Tensor, config: PredictConfig, fusion: str = "none"
) -> list[dict[str, Tensor]]:
    """One dict an image: boxes [D, 4] px of the original image, scores [D] falling, labels int64 [D].

    sizes [B, 2] (height, width) of the network's input before padding, scales [B, 2] (x, y) of input over original;
    `fusion`: how a quality branch enters the score. Without NMS a one-to-one predictor speaks, where there is one. Every
    prior takes part, also those beyond a smaller image's own padding. Equal scores are ordered by image, prior and class.
    """
    return merged([found_in_view(predictions, sizes, scales, config, fusion)], len(sizes), config)


@torch.no_grad()
def found_in_view(
    predictions: Predictions, sizes: Tensor, scales: Tensor, config: PredictConfig, fusion: str = "none", mirrored: bool = False
) -> Found:
    """All that one view of the images offers; `mirrored`: the view shows them from right to left. See `detections`."""
    if not config.nms and predictions.one_to_one is not None:
        predictions = predictions.one_to_one
    found = _candidates(predictions, config, fusion)
    boxes = predictions.boxes[found.image, found.point]
    if mirrored:
        boxes = flip_boxes(boxes, sizes[found.image, 1])
    if config.clip:
        boxes = clip(boxes, sizes[found.image, 0], sizes[found.image, 1])
    boxes = boxes / scales[found.image].repeat(1, 2)
    large = ((boxes[:, 2:] - boxes[:, :2]) > config.min_size).all(1)
    found, boxes = found.at(large), boxes[large]
    return Found(found.image, boxes, found.label, found.score)


@torch.no_grad()
def merged(views: Sequence[Found], images: int, config: PredictConfig) -> list[dict[str, Tensor]]:
    """Detections of the images 0 .. images - 1 from their views; equal scores of several go by the view."""
    image, boxes, label, score = views[0] if len(views) == 1 else _together(views)
    results = []
    for i in range(images):
        mine = image == i
        b, s, k = boxes[mine], score[mine], label[mine]
        keep = class_wise_nms(b, s, k, config.nms_iou) if config.nms else torch.arange(len(s), device=s.device)
        keep = keep[: config.max_detections]
        kept = _vote(b, s, k, keep) if config.score_voting else b[keep]
        results.append({"boxes": kept, "scores": s[keep], "labels": k[keep]})
    return results


def _together(views: Sequence[Found]) -> Found:
    both = Found(*(torch.cat(column) for column in zip(*views, strict=True)))
    order = both.score.sort(descending=True, stable=True).indices
    return Found(*(column[order] for column in both))


def class_wise_nms(boxes: Tensor, scores: Tensor, labels: Tensor, iou: float) -> Tensor:
    """Indices kept, by falling score: a box goes if its IoU with a better one of its class exceeds `iou`.

    Classes are moved apart in float64: exact for any coordinates, where float32 would round boxes of high classes.
    """
    from torchvision.ops import nms  # here: see tood.backbone

    if not len(boxes):
        return torch.zeros(0, dtype=torch.int64, device=boxes.device)
    apart = boxes.double()
    span = apart.amax() - apart.amin() + 1
    return nms(apart + (labels * span).unsqueeze(1), scores.double(), iou)


def _candidates(predictions: Predictions, config: PredictConfig, fusion: str) -> Candidates:
    """Pairs above the threshold, the best of each level; the peer's two ways.

    Most heads choose the best pairs by their class score and multiply by the quality afterwards. PAA (geometric mean)
    chooses the best priors by the score that the quality is part of already.
    """
    counts = predictions.priors.counts
    if fusion == "geometric_mean":
        confidence = predictions.log_confidence(fusion).exp()
        keep = _best_priors(confidence.amax(-1), counts, config.per_level)
        chosen = confidence.masked_fill(~keep.unsqueeze(-1), 0.0)
        return _by_score(_pairs(chosen, config.score_threshold))
    found = _pairs(predictions.log_scores.exp(), config.score_threshold)
    found = _by_score(found.at(_best_of_levels(found, len(predictions.boxes), counts, config.per_level)))
    if predictions.quality is None or fusion == "none":
        return found
    confidence = predictions.log_confidence(fusion).exp()  # equal ones go by class score
    return _by_score(found._replace(score=confidence[found.image, found.point, found.label]))


def _pairs(scores: Tensor, threshold: float) -> Candidates:
    """All above the threshold, by image, prior and class."""
    image, point, label = (scores > threshold).nonzero(as_tuple=True)
    return Candidates(image, point, label, scores[image, point, label])


def _by_score(found: Candidates) -> Candidates:
    return found.at(found.score.sort(descending=True, stable=True).indices)


def _best_priors(score: Tensor, counts: tuple[int, ...], limit: int) -> Tensor:
    """bool [B, N]: the `limit` best priors of each level, ties to the lower one. score [B, N]."""
    levels = []
    for level in score.split(counts, dim=1):
        rank = level.sort(dim=1, descending=True, stable=True).indices.argsort(dim=1)
        levels.append(rank < limit)
    return torch.cat(levels, dim=1)


def _best_of_levels(found: Candidates, images: int, counts: tuple[int, ...], limit: int) -> Tensor:
    """Indices of the `limit` best entries of each image and level, in order; equal scores: the first ones."""
    ends = torch.tensor(counts, device=found.point.device).cumsum(0)
    group = found.image * len(counts) + torch.bucketize(found.point, ends, right=True)
    # scores lie in [0, 1], where a float's bits order as it does: taken from those of 1 they rise as scores fall
    cost = (ONE - found.score.view(torch.int32)).view(torch.float32)
    return smallest_of_groups(cost, group, images * len(counts), limit)[0].sort().values


def _vote(boxes: Tensor, scores: Tensor, labels: Tensor, keep: Tensor) -> Tensor:
    """Each kept box as the mean of all boxes of its class around it, weighted by score and exp(-(1 - IoU)^2 / width)."""
    iou = pairwise_iou(boxes[keep], boxes)
    votes = (labels[keep].unsqueeze(1) == labels) & (iou > VOTING_IOU)
    weight = torch.where(votes, (-(1 - iou).square() / VOTING_WIDTH).exp() * scores, 0.0)
    return weight @ boxes / weight.sum(1, keepdim=True)
