"""Does an exported detector do what the detector does? Both run on the same images; what they find is compared.

Which of two detections with all but the same score is the last one kept depends on roundings. So a detection that only one
side has is excused where its score is that of the last one kept, or the threshold, within what scores may deviate.
D detections of one image.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from tood.data.batches import normalise, stack_images
from tood.detector import Detector
from tood.errors import ToodError

MAX_SCORE_DEVIATION, MAX_BOX_DEVIATION = 1e-4, 0.05  # probability; px
WANTED = 20  # detections of an image that prove something
UNLIMITED = 100_000  # candidates

Program = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
Detections = dict[str, Tensor]  # boxes [D, 4], scores [D] falling, labels [D]


class ExportError(ToodError):
    """A detector cannot be exported, or the exported one does not do the same."""


class Deviation(NamedTuple):
    """The largest, over all images and detections compared."""

    score: float
    box: float  # px
    compared: int  # detections, of both sides
    excused: int = 0

    def and_of(self, other: "Deviation") -> "Deviation":
        pairs = zip(self, other, strict=True)
        return Deviation(*(combine(pair) for combine, pair in zip((max, max, sum, sum), pairs, strict=True)))


@torch.no_grad()
def compare(detector: Detector, program: Program, images: list[Tensor], *, with_nms: bool) -> Deviation:
    """The detector's own road against the program's, on images u8 [3, H, W]."""
    config, worst = detector.predict_config, Deviation(0.0, 0.0, 0)
    limit = config.max_detections if with_nms else UNLIMITED
    for image in images:
        expected = detect(detector, image, with_nms=with_nms)
        boxes, scores, labels = program(image)
        some = scores > 0
        found = {"boxes": boxes[some], "scores": scores[some], "labels": labels[some]}
        worst = worst.and_of(deviation(expected, found, config.score_threshold, limit))
    return worst


def detect(detector: Detector, image: Tensor, *, with_nms: bool = True, threshold: float | None = None) -> Detections:
    """What the detector finds on an image u8 [3, H, W] as it is; without NMS nothing is suppressed and nothing cut off."""
    configured = detector.predict_config
    threshold = configured.score_threshold if threshold is None else threshold
    config = replace(configured, score_threshold=threshold)
    if not with_nms:
        config = replace(config, nms_iou=1.0, max_detections=UNLIMITED, score_voting=False)
    detector.predict_config = config
    try:
        stacked, sizes = stack_images([image])
        (found,) = detector.detect(normalise(stacked, sizes, detector.backbone.pixels), sizes, torch.ones(1, 2))
        return found
    finally:
        detector.predict_config = configured


def telling_threshold(detector: Detector, images: list[Tensor]) -> float:
    """The detector's own score threshold where it finds something on one of the images; else one low enough that it does."""
    best = torch.cat([detect(detector, image, threshold=0.0)["scores"] for image in images]).sort(descending=True).values
    own = detector.predict_config.score_threshold
    if not len(best):
        raise ExportError("nothing to compare: the detector has no box of any size on these images; give others with --image")
    return own if best[0] > own + MAX_SCORE_DEVIATION else 0.999 * best[: WANTED * len(images)][-1].item()


def deviation(expected: Detections, found: Detections, threshold: float, limit: int) -> Deviation:
    """Each detection beside the nearest of its class on the other side; infinite where there is none and no excuse."""
    sides = [torch.cat([d["boxes"], d["scores"][:, None], d["labels"][:, None].float()], 1) for d in (expected, found)]
    cut = max([threshold, *(side[:, 4].min().item() for side in sides if len(side) >= limit)])
    score = box = 0.0
    compared = excused = 0
    for own, other in (sides, sides[::-1]):
        if not len(own):
            continue
        off = _to_nearest(own, other)
        at_the_cut = own[:, 4] <= cut + MAX_SCORE_DEVIATION
        differs = (off[:, 0] > MAX_SCORE_DEVIATION) | (off[:, 1] > MAX_BOX_DEVIATION)
        told = off[~(differs & at_the_cut)]
        compared, excused = compared + len(told), excused + len(off) - len(told)
        if len(told):
            score, box = max(score, told[:, 0].max().item()), max(box, told[:, 1].max().item())
    return Deviation(score, box, compared, excused)


def _to_nearest(own: Tensor, other: Tensor) -> Tensor:
    """[D, 6] of box, score, label, and [D', 6] -> [D, 2]: how far score and box are from the nearest one of the class."""
    if not len(other):
        return own.new_full((len(own), 2), float("inf"))
    scales = own.new_tensor([MAX_BOX_DEVIATION] * 4 + [MAX_SCORE_DEVIATION, 1e-9])  # another class is never nearer
    nearest = torch.cdist((own / scales).double(), (other / scales).double(), p=float("inf")).argmin(1)
    off = (own - other[nearest]).abs()
    off[off[:, 5] > 0] = float("inf")
    return torch.stack([off[:, 4], off[:, :4].amax(1)], dim=1)


def require_same(found: Deviation) -> None:
    if not found.compared:
        raise ExportError(
            f"nothing to compare: all {found.excused} detections have scores at the threshold; give other images with --image"
        )
    if not (found.score <= MAX_SCORE_DEVIATION and found.box <= MAX_BOX_DEVIATION):
        raise DeviationError(found)


class DeviationError(ExportError):
    """The exported detector does not do the same as the detector."""

    def __init__(self, found: Deviation):
        super().__init__(
            f"the exported file deviates by {found.score:.2g} in scores and {found.box:.2g} px in boxes over {found.compared} "
            f"detections, more than {MAX_SCORE_DEVIATION:g} and {MAX_BOX_DEVIATION:g} px; it was removed"
        )
        self.found = found
