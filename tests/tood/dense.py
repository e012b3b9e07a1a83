"""What tests of the dense maths share: heads of eight channels on two images of 64 x 64 px, predictions, and objects."""

import torch
from torch import Tensor, nn

from tood.box_forms import BOX_FORMS
from tood.context import DetailContext, SemanticContext
from tood.data.targets import Targets, pad_targets
from tood.head import DenseHead, Predictor
from tood.predictions import Distribution, Predictions, Quality
from tood.priors import PRIORS, PriorGrid, Priors, make_priors
from tood.refinement import StarRefinement
from tood.towers import ConvStyle, build_tower

K = 3  # classes
SIZES = ((8, 8), (4, 4), (2, 2), (1, 1), (1, 1))
CORNERS = make_priors(SIZES, torch.device("cpu"))
OBJECTS = pad_targets(
    [torch.tensor([[4.0, 4, 30, 36], [20, 20, 60, 50]]), torch.tensor([[10.0, 2, 50, 60]])],
    [torch.tensor([0, 2]), torch.tensor([1])],
)
NOBODY = pad_targets([torch.zeros(0, 4)] * 2, [torch.zeros(0)] * 2)
PADDING = Targets(torch.full((2, 3, 4), 7.0), torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 3, dtype=torch.bool))


def everywhere(priors: Priors) -> Tensor:
    return torch.ones(2, len(priors.centres), dtype=torch.bool)


def make_head(
    tower: str = "t_head",
    box: str = "distance",
    aligner: str = "none",
    *,
    prior: str = "point",
    offset: float = 0.0,
    quality: str = "none",
    quality_from: str = "boxes",
    star: bool = False,
    context: str = "none",
    one_to_one: bool = False,
) -> DenseHead:
    torch.manual_seed(0)
    style, wide = ConvStyle(groups=2), context in ("sce", "both")
    stem = build_tower(tower, 8, 8, 2, style, wide)

    def predictor() -> Predictor:
        return Predictor(
            stem,
            num_classes=K,
            box=BOX_FORMS[box],
            priors=len(PRIORS[prior]),
            aligner=aligner,
            quality=quality,
            quality_from=quality_from,
            refinement=StarRefinement(8, style) if star else None,
            cells=2 if wide else 1,
        )

    return DenseHead(
        stem,
        predictor(),
        grid=PriorGrid(PRIORS[prior], offset),
        semantic=SemanticContext(8) if wide else None,
        detail=DetailContext(8, 6) if context in ("dpe", "both") else None,
        one_to_one=predictor() if one_to_one else None,
    )


def make_pyramid(sizes=SIZES, seed: int = 0) -> tuple[list[Tensor], Tensor]:
    """[P3..P7] and C2."""
    generator = torch.Generator().manual_seed(seed)
    pyramid = [torch.randn(2, 8, h, w, generator=generator) for h, w in sizes]
    return pyramid, torch.randn(2, 6, 2 * sizes[0][0], 2 * sizes[0][1], generator=generator)


def stir(head: nn.Module) -> nn.Module:
    """Random weights: at the start offsets and differences between cells are too small to show."""
    torch.manual_seed(1)
    for name, parameter in head.named_parameters():
        if not name.endswith("scales"):
            nn.init.normal_(parameter, std=0.2)
    return head


def make_predictions(
    priors: Priors = CORNERS, *, seed: int = 0, quality: str = "none", bins: int = 0, raw: bool = False, coarse: bool = False
) -> Predictions:
    """Random scores, and boxes of 8 to 56 px a side around their centres; all of them leaves with gradients."""
    generator = torch.Generator().manual_seed(seed)
    n = len(priors.centres)

    def boxes() -> Tensor:
        reach = (4 + 24 * torch.rand(2, n, 4, generator=generator)) * torch.tensor([-1, -1, 1, 1])
        return (priors.centres.repeat(1, 2) + reach).requires_grad_()

    log_scores = torch.rand(2, n, K, generator=generator).clamp(min=0.01).log().requires_grad_()
    predictions = Predictions(log_scores, boxes(), priors)
    if quality != "none":
        predictions = predictions._replace(quality=Quality(quality, torch.randn(2, n, generator=generator).requires_grad_()))
    if bins:
        logits = torch.randn(2, n, 4, bins + 1, generator=generator).requires_grad_()
        predictions = predictions._replace(distribution=Distribution(logits, 0.5))
    if raw:
        predictions = predictions._replace(raw=torch.randn(2, n, 4, generator=generator).requires_grad_())
    return predictions._replace(coarse=boxes()) if coarse else predictions
