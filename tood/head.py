"""The dense head: tower -> predictors -> box form -> alignment, the same weights at every level.

B images, N points of all levels, K classes, H x W cells of one level.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from tood.alignment import AlignmentMap, aligned_boxes, aligned_log_scores
from tood.boxes import delta_to_box, distance_to_box
from tood.priors import STRIDES, Priors, make_priors
from tood.towers import TOWERS

BOX_FORMS = ("distance", "delta")
PRIOR_PROBABILITY = 0.01  # what a class's probability starts from
MAX_LOG_DISTANCE = 16.0  # of a distance in strides: far beyond any image, and areas and gradients stay finite
PRIOR_LOGIT = -math.log((1 - PRIOR_PROBABILITY) / PRIOR_PROBABILITY)


class Predictions(NamedTuple):
    """What a head says of a batch. float32 always: losses and assignment start from here."""

    log_scores: Tensor  # [B, N, K] natural logarithm of the class probability
    boxes: Tensor  # [B, N, 4] px of the network's input
    priors: Priors


class DenseHead(nn.Module):
    """pyramid [P3..P7] -> Predictions.

    `tower`: a key of TOWERS; `box`: distance (to the sides of a box around the point) or delta (of the square anchor);
    `aligner`: which of the two tasks is aligned with the other, by maps read from the tower's interactive features.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        channels: int,
        layers: int,
        groups: int,
        num_classes: int,
        tower: str,
        box: str,
        aligner: str,
    ):
        super().__init__()
        self.box = box
        self.tower = TOWERS[tower](in_channels, channels, layers, groups)
        self.classes = nn.Conv2d(channels, num_classes, 3, padding=1)
        self.boxes = nn.Conv2d(channels, 4, 3, padding=1)
        self.scales = nn.Parameter(torch.ones(len(STRIDES)))
        for conv, bias in ((self.classes, PRIOR_LOGIT), (self.boxes, 0.0)):
            nn.init.normal_(conv.weight, std=0.01)
            nn.init.constant_(conv.bias, bias)
        wide, hidden = channels * layers, max(channels // 4, 1)
        self.score_map = AlignmentMap(wide, hidden, 1, std=0.01, bias=PRIOR_LOGIT) if aligner in ("cls", "both") else None
        self.side_offsets = AlignmentMap(wide, hidden, 8, std=0.001) if aligner in ("box", "both") else None

    def forward(self, pyramid: list[Tensor]) -> Predictions:
        sizes = tuple((int(p.shape[2]), int(p.shape[3])) for p in pyramid)
        priors = make_priors(sizes, pyramid[0].device)
        centres, anchors = priors.centres.split(priors.counts), priors.anchors.split(priors.counts)
        levels = [
            self._level(p, scale, centre, anchor, stride)
            for p, scale, centre, anchor, stride in zip(pyramid, self.scales, centres, anchors, STRIDES, strict=True)
        ]
        log_scores, boxes = (torch.cat(parts, dim=2).transpose(1, 2) for parts in zip(*levels, strict=True))
        return Predictions(log_scores, boxes, priors)

    def _level(self, x: Tensor, scale: Tensor, centres: Tensor, anchors: Tensor, stride: int) -> tuple[Tensor, Tensor]:
        """One level -> log scores [B, K, H * W], boxes [B, 4, H * W] in px."""
        features = self.tower(x)
        logits = self.classes(features.classes)
        raw = self.boxes(features.boxes)
        align_by = self.score_map(features.interactive) if self.score_map else None
        offsets = self.side_offsets(features.interactive) if self.side_offsets else None
        with torch.autocast(x.device.type, enabled=False):
            logits = logits.float()
            log_scores = logsigmoid(logits) if align_by is None else aligned_log_scores(logits, align_by.float())
            boxes = self._decode(raw.float(), scale, centres / stride, anchors / stride)
            if offsets is not None:
                boxes = aligned_boxes(boxes, offsets.float())
        return log_scores.flatten(2), boxes.flatten(2) * stride

    def _decode(self, raw: Tensor, scale: Tensor, centres: Tensor, anchors: Tensor) -> Tensor:
        """Raw predictions [B, 4, H, W] -> boxes [B, 4, H, W] in strides; each level has a learnt scale of its own."""
        values = raw.flatten(2).transpose(1, 2)  # [B, H * W, 4]
        if self.box == "distance":
            boxes = distance_to_box(centres, scale * values.clamp(max=MAX_LOG_DISTANCE).exp())
        else:
            boxes = delta_to_box(anchors, scale * values)
        return boxes.transpose(1, 2).reshape(raw.shape)
