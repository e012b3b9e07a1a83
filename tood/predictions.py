"""What a head says of a batch. float32 always: losses and assignment start from here.

B images, N priors of all levels, K classes, n bins of a distance.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from tood.priors import Priors

QUALITIES = ("none", "centerness", "iou")  # what a branch of its own says of a box, beside its class


class Quality(NamedTuple):
    kind: str  # of QUALITIES
    logits: Tensor  # [B, N]


class Distribution(NamedTuple):
    logits: Tensor  # [B, N, 4, n + 1] of each side's distance
    width: float  # of a bin, in strides


class Predictions(NamedTuple):
    log_scores: Tensor  # [B, N, K] natural logarithm of the class probability
    boxes: Tensor  # [B, N, 4] px of the network's input
    priors: Priors
    quality: Quality | None = None
    distribution: Distribution | None = None
    raw: Tensor | None = None  # [B, N, 4] what the box form decodes, where its objective regresses that
    coarse: Tensor | None = None  # [B, N, 4] px, boxes before their refinement
    one_to_one: Predictions | None = None  # of the second predictor, which gives an object one box

    def log_confidence(self, fusion: str) -> Tensor:
        """[B, N, K] logarithm of what detections are ranked by; `fusion` is the objective's (see FUSIONS)."""
        if self.quality is None or fusion == "none":
            return self.log_scores
        both = self.log_scores + logsigmoid(self.quality.logits).unsqueeze(-1)
        return 0.5 * both if fusion == "geometric_mean" else both


# how a quality branch enters the confidence: not at all, score * quality, sqrt(score * quality)
FUSIONS = ("none", "product", "geometric_mean")


def detached(predictions: Predictions) -> Predictions:
    """The same values without their gradients."""

    def cut(value):
        if isinstance(value, Tensor):
            return value.detach()
        if isinstance(value, tuple) and hasattr(value, "_fields") and not isinstance(value, Priors):
            return type(value)(*(cut(v) for v in value))
        return value

    with torch.no_grad():
        return cut(predictions)
