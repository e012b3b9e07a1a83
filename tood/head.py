"""The dense head: context -> tower -> predictor, the same weights at every level.

B images, N priors of all levels, K classes, A priors a location, H x W cells of one level.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, pixel_shuffle
from torch.utils.checkpoint import checkpoint

from tood.alignment import AlignmentMap, aligned_boxes, aligned_log_scores
from tood.box_forms import MAX_LOG_DISTANCE, BoxForm, Location
from tood.boxes import box_to_distance, distance_to_box
from tood.context import DetailContext, SemanticContext
from tood.precision import full_precision
from tood.predictions import Distribution, Predictions, Quality
from tood.priors import SQUARE, STRIDES, PriorGrid, make_priors
from tood.refinement import StarRefinement, star_offsets
from tood.towers import TowerFeatures

PRIOR_PROBABILITY = 0.01  # what a class's probability starts from
PRIOR_LOGIT = -math.log((1 - PRIOR_PROBABILITY) / PRIOR_PROBABILITY)


class LevelPredictions(NamedTuple):
    """One level; P = H * W * A priors."""

    log_scores: Tensor  # [B, K, P]
    boxes: Tensor  # [B, 4, P] px
    quality: Tensor | None  # [B, P]
    raw: Tensor | None  # [B, channels of the box form, P]
    coarse: Tensor | None  # [B, 4, P] px


class Predictor(nn.Module):
    """A tower's features -> scores, boxes and what else the choices ask for.

    `quality`: a branch of its own, read from the features of "boxes" or "classes"; `aligner`: which of the two tasks is
    aligned with the other, by maps read from the tower's interactive features; `refinement`: boxes are predicted twice;
    `cells`: cells of the level, by side, that one cell of the class features stands for (2 with SCE's context).
    """

    def __init__(
        self,
        tower: nn.Module,
        *,
        num_classes: int,
        box: BoxForm,
        priors: int = 1,
        aligner: str = "none",
        quality: str = "none",
        quality_from: str = "boxes",
        refinement: StarRefinement | None = None,
        cells: int = 1,
    ):
        super().__init__()
        self.num_classes, self.box, self.cells = num_classes, box, cells
        self.quality_kind, self.quality_from = quality, quality_from
        self.classes = _predictor(tower.class_channels, priors * num_classes * cells**2, PRIOR_LOGIT)
        self.boxes = _predictor(tower.box_channels, priors * box.channels)
        self.quality = None
        if quality != "none":
            self.quality = _predictor(tower.class_channels if quality_from == "classes" else tower.box_channels, priors)
        self.scales = nn.Parameter(torch.ones(len(STRIDES))) if box.scaled else None
        wide, hidden = tower.interactive_channels, max(tower.box_channels // 4, 1)
        self.score_map = AlignmentMap(wide, hidden, 1, std=0.01, bias=PRIOR_LOGIT) if aligner in ("cls", "both") else None
        self.side_offsets = AlignmentMap(wide, hidden, 8, std=0.001) if aligner in ("box", "both") else None
        self.refinement = refinement

    def forward(self, features: TowerFeatures, at: Location, size: tuple[int, int], level: int) -> LevelPredictions:
        """Features of one level of `size` (H, W) cells, whose priors are `at`."""
        coarse = None
        class_features, box_features = features.classes, features.boxes
        scale = None if self.scales is None else self.scales[level]
        raw = self.boxes(box_features if self.refinement is None else self.refinement.coarse(box_features))
        with full_precision(raw.device.type):
            raw = raw.float().unflatten(1, (-1, self.box.channels)).permute(0, 3, 4, 1, 2).flatten(1, 3)  # [B, P, channels]
            boxes = self.box.decode(raw, scale, at)  # [B, P, 4] in strides
        if self.refinement is not None:
            coarse = boxes
            distances = box_to_distance(at.centres, boxes)
            offsets = star_offsets(distances.transpose(1, 2).unflatten(2, size))
            factors = self.refinement.boxes(self.refinement.box_star(box_features, offsets))
            class_features = self.refinement.class_star(class_features, offsets)
            with full_precision(raw.device.type):
                factors = (self.refinement.scales[level] * factors.float()).flatten(2).transpose(1, 2)
                boxes = distance_to_box(at.centres, factors.clamp(max=MAX_LOG_DISTANCE).exp() * distances.detach())
        logits = self._logits(class_features, size)
        quality = None
        if self.quality is not None:
            quality = self.quality(class_features if self.quality_from == "classes" else box_features)
        align_by = self.score_map(features.interactive) if self.score_map else None
        offsets = self.side_offsets(features.interactive) if self.side_offsets else None
        with full_precision(raw.device.type):
            logits = logits.float()
            log_scores = logsigmoid(logits) if align_by is None else aligned_log_scores(logits, align_by.float())
            boxes = boxes.transpose(1, 2)  # [B, 4, P]
            if offsets is not None:
                boxes = aligned_boxes(boxes.unflatten(2, size), offsets.float()).flatten(2)
            return LevelPredictions(
                log_scores=log_scores.unflatten(1, (-1, self.num_classes)).permute(0, 2, 3, 4, 1).flatten(2),
                boxes=boxes * at.stride,
                quality=None if quality is None else quality.float().permute(0, 2, 3, 1).flatten(1),
                raw=self._kept(raw, scale),
                coarse=None if coarse is None else coarse.transpose(1, 2) * at.stride,
            )

    def _kept(self, raw: Tensor, scale: Tensor | None) -> Tensor | None:
        """What the box form decoded; not where boxes were moved on afterwards, but a distribution stays one."""
        if not self.box.keeps_raw or (self.side_offsets is not None and self.box.channels == 4):
            return None
        return (raw if scale is None else scale * raw).transpose(1, 2)

    def _logits(self, features: Tensor, size: tuple[int, int]) -> Tensor:
        """[B, A * K, H, W]. A coarser cell speaks for four: TSCODE, Eq. 4."""
        logits = self.classes(features)
        if self.cells == 1:
            return logits
        apart = logits.unflatten(1, (self.cells**2, -1)).transpose(1, 2).flatten(1, 2)
        return _cut(pixel_shuffle(apart, self.cells), *size)


def _cut(maps: Tensor, height: int, width: int) -> Tensor:
    """maps[..., :height, :width]. Traced for all sizes, by indices: whether a slice has gaps would tie the program to a size."""
    if not isinstance(height, torch.SymInt) and not isinstance(width, torch.SymInt):
        return maps[..., :height, :width]
    rows, columns = (torch.arange(side, device=maps.device) for side in (height, width))
    return maps.index_select(-2, rows).index_select(-1, columns)


class DenseHead(nn.Module):
    """Pyramid [P3..P7] and C2 -> Predictions.

    `one_to_one` is a second predictor that reads the same features without sending gradients back.
    """

    def __init__(
        self,
        tower: nn.Module,
        predictor: Predictor,
        *,
        grid: PriorGrid = SQUARE,
        semantic: SemanticContext | None = None,
        detail: DetailContext | None = None,
        one_to_one: Predictor | None = None,
        bin_width: float = 1.0,
    ):
        super().__init__()
        self.tower, self.predictor, self.one_to_one = tower, predictor, one_to_one
        self.semantic, self.detail = semantic, detail
        self.grid, self.bin_width = grid, bin_width
        self.checkpointing = False  # in training, compute each level again for its backward pass instead of keeping its maps

    def forward(self, pyramid: Sequence[Tensor], finer: Tensor | None = None) -> Predictions:
        """`finer` is C2; only DPE's context reads it."""
        sizes = tuple((p.shape[2], p.shape[3]) for p in pyramid)
        priors = make_priors(sizes, pyramid[0].device, self.grid)
        class_inputs = pyramid if self.semantic is None else self.semantic(pyramid)
        box_inputs = pyramid if self.detail is None else self.detail(pyramid, finer)
        many, one = [], []
        locations = zip(priors.centres.split(priors.counts), priors.anchors.split(priors.counts), STRIDES, strict=True)
        for level, (centres, anchors, stride) in enumerate(locations):
            at = Location(centres / stride, anchors / stride, stride)
            arguments = (class_inputs[level], box_inputs[level], at, sizes[level], level)
            if self.checkpointing and torch.is_grad_enabled():
                found, alone = checkpoint(self._level, *arguments, use_reentrant=False, preserve_rng_state=False)
            else:
                found, alone = self._level(*arguments)
            many.append(found)
            if alone is not None:
                one.append(alone)
        predictions = self._join(many, priors, self.predictor)
        return predictions._replace(one_to_one=self._join(one, priors, self.one_to_one)) if one else predictions

    def _level(
        self, class_input: Tensor, box_input: Tensor, at: Location, size: tuple[int, int], level: int
    ) -> tuple[LevelPredictions, LevelPredictions | None]:
        """What both predictors say of one level."""
        features = self.tower(class_input, box_input)
        found = self.predictor(features, at, size, level)
        if self.one_to_one is None:
            return found, None
        alone = TowerFeatures(*(f if f is None else f.detach() for f in features))
        return found, self.one_to_one(alone, at, size, level)

    def _join(self, levels: list[LevelPredictions], priors, predictor: Predictor) -> Predictions:
        def join(name: str) -> Tensor | None:
            parts = [getattr(level, name) for level in levels]
            return None if parts[0] is None else torch.cat(parts, dim=-1)

        log_scores, boxes, quality, raw, coarse = map(join, LevelPredictions._fields)
        distribution = None
        if raw is not None and predictor.box.channels > 4:
            logits = raw.transpose(1, 2).unflatten(2, (4, -1))
            raw, distribution = None, Distribution(logits, self.bin_width)
        return Predictions(
            log_scores.transpose(1, 2),
            boxes.transpose(1, 2),
            priors,
            quality=None if quality is None else Quality(predictor.quality_kind, quality),
            distribution=distribution,
            raw=None if raw is None else raw.transpose(1, 2),
            coarse=None if coarse is None else coarse.transpose(1, 2),
        )


def _predictor(in_channels: int, channels: int, bias: float = 0.0) -> nn.Conv2d:
    conv = nn.Conv2d(in_channels, channels, 3, padding=1)
    nn.init.normal_(conv.weight, std=0.01)
    nn.init.constant_(conv.bias, bias)
    return conv
