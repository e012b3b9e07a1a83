"""A whole detector as one program of fixed output sizes, for torch.export and ONNX: pixels in, detections out.

What `tood.postprocess` does with as many candidates as there happen to be is done here with a fixed number, a score of 0
standing for none; the detections are the same. N priors, K classes, M candidates, D detections of one image.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torchvision.ops import nms

from tood.boxes import pairwise_iou
from tood.config import PredictConfig
from tood.data.batches import MULTIPLE, PIXELS
from tood.detector import Detector
from tood.errors import ConfigError
from tood.postprocess import VOTING_IOU, VOTING_WIDTH
from tood.priors import STRIDES

OUTPUTS = ("boxes", "scores", "labels")
MOST_PER_LEVEL = 10_000  # candidates a level that a program may be made for
# boxes [M, 4], scores [M], labels [M], IoU, most wanted, K -> bool [M], those that no better one of their class suppresses
Suppression = Callable[[Tensor, Tensor, Tensor, float, int, int], Tensor]


class Candidates(NamedTuple):
    prior: Tensor  # int64 [M]
    label: Tensor  # int64 [M]
    score: Tensor  # [M] confidence; 0 for places that are not filled


class ExportedDetector(nn.Module):
    """u8 RGB image [3, H, W], resized as the recipe says, of any size -> boxes [D, 4], scores [D], labels int64 [D].

    Boxes in px of that image (divide by resized / original for the original's), by falling score. D is max_detections
    after NMS, and all candidates without; places that are not filled have score 0 and label -1. `any_size`: one program
    serves images of all sizes, instead of those of the size that it was traced with.
    """

    def __init__(self, detector: Detector, *, suppress: Suppression | None, any_size: bool = False):
        super().__init__()
        config = detector.predict_config
        if config.tta.on:
            raise ConfigError("predict.tta: an exported program has one view; set predict.tta.flip=false predict.tta.scales=[1]")
        if config.per_level > MOST_PER_LEVEL:
            raise ConfigError(
                f"predict.per_level: {config.per_level} candidates a level are more than an exported program can keep; "
                f"set predict.per_level=1000, or at most {MOST_PER_LEVEL}"
            )
        self.detector, self.suppress, self.any_size = detector.eval(), suppress, any_size
        self.num_classes = detector.head.predictor.num_classes
        pixels = PIXELS[detector.backbone.pixels]
        self.bgr = pixels.bgr
        for name, values in (("mean", pixels.mean), ("std", pixels.std)):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        config, fusion = self.detector.predict_config, self.detector.objective.FUSION
        height, width = image.shape[1:]
        values = ((image.flip(0) if self.bgr else image).float() - self.mean) / self.std
        predictions = self.detector.dense(pad(values, (0, _missing(width), 0, _missing(height))).unsqueeze(0))
        if not config.nms and predictions.one_to_one is not None:
            predictions = predictions.one_to_one
        confidence = predictions.log_confidence(fusion)[0].exp()
        if fusion == "geometric_mean":
            found = best_priors(confidence, predictions.priors.counts, config, self.any_size)
        else:
            class_scores = predictions.log_scores[0].exp()
            found = best_pairs(class_scores, confidence, predictions.priors.counts, config, self.any_size)
        boxes = predictions.boxes[0][found.prior]
        if config.clip:
            x, y = boxes[:, 0::2].clamp(0, width), boxes[:, 1::2].clamp(0, height)
            boxes = torch.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], dim=1)
        large = ((boxes[:, 2:] - boxes[:, :2]) > config.min_size).all(1)
        scores = torch.where(large, found.score, 0.0)
        if self.suppress is None:
            return _filled(*_best(scores, len(scores)), boxes, found.label)
        kept = scores
        if config.nms:
            keep = self.suppress(boxes, scores, found.label, config.nms_iou, config.max_detections, self.num_classes)
            kept = torch.where(keep, scores, 0.0)
        best, order = _best(kept, config.max_detections)
        if config.score_voting:
            return _filled(best, order, vote(boxes, scores, found.label, order), found.label, voted=True)
        return _filled(best, order, boxes, found.label)


def _missing(side: int) -> int:
    """Pixels up to the next multiple of 32; a symbol's `-side % 32` is more than torch.export can bound."""
    return (side + MULTIPLE - 1) // MULTIPLE * MULTIPLE - side


def best_pairs(
    class_scores: Tensor, confidence: Tensor, counts: tuple[int, ...], config: PredictConfig, any_size: bool
) -> Candidates:
    """The best (prior, class) pairs of each level by their class score. class_scores, confidence [N, K]."""
    classes = class_scores.shape[1]
    above = torch.where(class_scores > config.score_threshold, class_scores, 0.0)
    pair, filled = _best_of_levels(above.flatten(), tuple(count * classes for count in counts), config.per_level, any_size)
    some = filled & (above.flatten()[pair] > 0)
    return Candidates(pair // classes, pair % classes, torch.where(some, confidence.flatten()[pair], 0.0))


def best_priors(confidence: Tensor, counts: tuple[int, ...], config: PredictConfig, any_size: bool) -> Candidates:
    """The pairs above the threshold of each level's best priors; of more than per_level * levels, the best."""
    classes = confidence.shape[1]
    prior, filled = _best_of_levels(confidence.amax(1), counts, config.per_level, any_size)
    chosen = confidence[prior]
    chosen = torch.where((chosen > config.score_threshold) & filled.unsqueeze(1), chosen, 0.0).flatten()
    score, pair = chosen.topk(min(config.per_level * len(STRIDES), len(chosen)))
    return Candidates(prior[pair // classes], pair % classes, score)


def _best_of_levels(values: Tensor, counts: tuple[int, ...], limit: int, any_size: bool) -> tuple[Tensor, Tensor]:
    """Indices of the best `limit` of each level and which of these places are filled. values >= 0, level after level.

    A level of fewer gives all it has; with any_size places that stay empty.
    """
    indices, filled, first = [], [], 0
    for level, count in zip(values.split(counts), counts, strict=True):
        if any_size:
            best, index = pad(level, (0, limit), value=-1.0).topk(limit)
            indices.append(torch.where(best < 0, 0, index) + first)
            filled.append(best >= 0)
        else:
            index = level.topk(min(limit, count)).indices
            indices.append(index + first)
            filled.append(torch.ones_like(index, dtype=torch.bool))
        first = first + count
    return torch.cat(indices), torch.cat(filled)


def _best(scores: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    return scores.topk(min(limit, scores.shape[0]))


def _filled(scores: Tensor, order: Tensor, boxes: Tensor, labels: Tensor, voted: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """boxes [M, 4], or those of `order` already where `voted`."""
    some = scores > 0
    boxes = boxes if voted else boxes[order]
    return torch.where(some.unsqueeze(1), boxes, 0.0), scores, torch.where(some, labels[order], -1)


def suppress(boxes: Tensor, scores: Tensor, labels: Tensor, iou: float, limit: int, classes: int) -> Tensor:
    """A `Suppression` by torchvision's operator, exact like `tood.postprocess.class_wise_nms`.

    Two more boxes, far from all others and so always kept: a traced program takes for granted that it keeps two or more.
    """
    some = scores > 0
    apart = boxes.double()
    span = apart.amax() - apart.amin() + 1
    unfilled = apart.new_tensor([0.0, 0.0, 1.0, 1.0])  # one box for all: the first of them, after the others, ends the rest
    apart = torch.where(some.unsqueeze(1), apart + (labels * span).unsqueeze(1), unfilled)
    far = apart.new_tensor([[2.0, 2.0, 3.0, 3.0], [5.0, 5.0, 6.0, 6.0]]) * (classes + 1) * span + apart.abs().amax()
    ranks = torch.cat([torch.where(some, scores, -1.0).double(), apart.new_tensor([-2.0, -3.0])])
    keep = nms(torch.cat([apart, far]), ranks, iou)
    return torch.zeros_like(ranks, dtype=torch.bool).index_fill(0, keep, True)[:-2] & some


def vote(boxes: Tensor, scores: Tensor, labels: Tensor, keep: Tensor) -> Tensor:
    """`tood.postprocess`'s vote where some of the boxes [M, 4] have the score 0: those say nothing."""
    iou = pairwise_iou(boxes[keep], boxes)
    votes = (labels[keep].unsqueeze(1) == labels) & (iou > VOTING_IOU)
    weight = torch.where(votes, (-(1 - iou).square() / VOTING_WIDTH).exp() * scores, 0.0)
    return weight @ boxes / weight.sum(1, keepdim=True).clamp(min=1e-12)
