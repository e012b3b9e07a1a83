"""Every objective against its formula over dense one-hot targets, pair by pair, with torch's and torchvision's own functions."""

import math

import pytest
import torch
import torch.nn.functional as F
import torchvision.ops as ops
from torch import Tensor

from tests.tood.dense import CORNERS, OBJECTS, SIZES, K, everywhere, make_predictions
from tood.boxes import box_to_delta
from tood.data.targets import Targets, boxes_of, labels_of
from tood.losses import centerness
from tood.objectives.atss import ATSS
from tood.objectives.ddod import DDOD
from tood.objectives.fcos import FCOS
from tood.objectives.foveabox import FoveaBox
from tood.objectives.gfl import GFL
from tood.objectives.paa import PAA
from tood.objectives.retinanet import RetinaNet
from tood.objectives.soft_label import SoftLabel
from tood.objectives.task_aligned import TaskAligned
from tood.objectives.vfnet import VFNet
from tood.predictions import Predictions
from tood.priors import PRIORS, STRIDES, PriorGrid, make_priors

MIDDLES = make_priors(SIZES, torch.device("cpu"), PriorGrid(centre_offset=0.5))
NINE = make_priors(SIZES, torch.device("cpu"), PriorGrid(PRIORS["nine_anchors"]))
ONE_EMPTY = OBJECTS._replace(valid=OBJECTS.valid & torch.tensor([[True], [False]]))  # the second image holds nothing


def owned(objective, predictions: Predictions, targets: Targets = OBJECTS, at_least: int = 4) -> Tensor:
    owner = objective.assign(predictions, targets, everywhere(predictions.priors), 9).object
    assert at_least <= (owner >= 0).sum() < owner.numel() / 2
    return owner


def one_hot(owner: Tensor, value: Tensor | float = 1.0) -> Tensor:
    """[B, N, K]: `value` at the class of each point's object."""
    return F.one_hot(labels_of(OBJECTS, owner), K) * ((owner >= 0) * value).unsqueeze(-1)


def cross_entropy(p: Tensor, target: Tensor) -> Tensor:
    return F.binary_cross_entropy(p, target, reduction="none")


def focal(p: Tensor, target: Tensor, alpha: float, gamma: float) -> Tensor:
    wrong, share = torch.where(target > 0, 1 - p, p), torch.where(target > 0, alpha, 1 - alpha)
    return share * wrong**gamma * cross_entropy(p, target)


def quality_focal(p: Tensor, target: Tensor, gamma: float) -> Tensor:
    return (target - p).abs() ** gamma * cross_entropy(p, target)


def pairs(boxes: Tensor, owner: Tensor) -> list[tuple[Tensor, Tensor]]:
    return list(zip(boxes[owner >= 0], boxes_of(OBJECTS, owner)[owner >= 0], strict=True))


def gious(boxes: Tensor, owner: Tensor) -> Tensor:
    """GIoU losses of the positives, in order."""
    return torch.stack([1 - ops.generalized_box_iou(a[None], b[None])[0, 0] for a, b in pairs(boxes, owner)])


def ious(boxes: Tensor, owner: Tensor) -> Tensor:
    """[B, N], 0 where there is no object."""
    out = torch.zeros(owner.shape)
    out[owner >= 0] = torch.stack([ops.box_iou(a[None], b[None])[0, 0] for a, b in pairs(boxes.detach(), owner)])
    return out


def quality_entropy(predictions: Predictions, owner: Tensor, target: Tensor) -> Tensor:
    positive = owner >= 0
    return F.binary_cross_entropy_with_logits(predictions.quality.logits[positive], target[positive], reduction="sum")


def check(objective, predictions: Predictions, expected: dict[str, Tensor], targets: Targets = OBJECTS, *memory: Tensor) -> None:
    losses = objective.losses(predictions, targets, everywhere(predictions.priors), 9, *memory)
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-5)


BOX_LOSSES = {
    "giou": ops.generalized_box_iou_loss,
    "iou": lambda a, b: -ops.box_iou(a, b).diagonal().log(),
    "diou": ops.distance_box_iou_loss,
}


@pytest.mark.parametrize("class_loss", ["qfl", "vfl", "mal"])
def test_task_aligned_learns_t_hat_and_weighs_giou_by_it(class_loss):
    predictions = make_predictions()
    objective = TaskAligned(gamma=1.5, box_weight=3.0, m=6, class_loss=class_loss, vfl_alpha=0.6, mal_gamma=1.2)
    found = objective.assign(predictions, OBJECTS, everywhere(CORNERS), 4)
    owner, t_hat = found.object, found.target
    assert t_hat.sum() > 1  # else the normaliser would be held at 1
    p, dense = predictions.log_scores.exp(), one_hot(owner, t_hat)
    cls = {
        "qfl": quality_focal(p, dense, 1.5),
        "vfl": torch.where(dense > 0, dense, 0.6 * p**1.5) * cross_entropy(p, dense),
        "mal": torch.where(dense > 0, 1.0, p**1.5) * cross_entropy(p, dense**1.2),
    }[class_loss]
    box = (3 * gious(predictions.boxes, owner) * t_hat[owner >= 0]).sum()
    check(objective, predictions, {"loss_cls": cls.sum() / t_hat.sum(), "loss_box": box / t_hat.sum()})


@pytest.mark.parametrize("count_empty", [True, False])
def test_atss_is_focal_loss_giou_weighted_by_centerness_and_a_centerness_branch(count_empty):
    predictions = make_predictions(quality="centerness")
    objective = ATSS(focal_alpha=0.3, focal_gamma=1.5, box_weight=3.0, quality_weight=0.7, count_empty=count_empty)
    owner = owned(objective, predictions, ONE_EMPTY)
    count = (owner >= 0).sum() + (1 if count_empty else 0)
    middle = centerness(CORNERS.centres, boxes_of(OBJECTS, owner))
    weight = middle[owner >= 0]
    expected = {
        "loss_cls": focal(predictions.log_scores.exp(), one_hot(owner), 0.3, 1.5).sum() / count,
        "loss_box": 3 * (gious(predictions.boxes, owner) * weight).sum() / weight.sum(),
        "loss_quality": 0.7 * quality_entropy(predictions, owner, middle) / count,
    }
    check(objective, predictions, expected, ONE_EMPTY)


@pytest.mark.parametrize("box_loss", BOX_LOSSES)
@pytest.mark.parametrize("radius", [0.0, 1.5])
def test_fcos_is_focal_loss_a_box_loss_weighted_by_centerness_and_a_centerness_branch(box_loss, radius):
    predictions = make_predictions(MIDDLES, quality="centerness")
    objective = FCOS(radius=radius, box_loss=box_loss, box_weight=1.5, focal_alpha=0.3, focal_gamma=1.5, quality_weight=0.7)
    owner = owned(objective, predictions)
    count, middle = (owner >= 0).sum(), centerness(MIDDLES.centres, boxes_of(OBJECTS, owner))
    weight, unit = middle[owner >= 0], MIDDLES.strides.expand(2, -1)[owner >= 0]
    a, b = (torch.stack(side) / unit[:, None] for side in zip(*pairs(predictions.boxes, owner), strict=True))
    expected = {
        "loss_cls": focal(predictions.log_scores.exp(), one_hot(owner), 0.3, 1.5).sum() / count,
        "loss_box": 1.5 * (BOX_LOSSES[box_loss](a, b) * weight).sum() / weight.sum(),
        "loss_quality": 0.7 * quality_entropy(predictions, owner, middle) / count,
    }
    check(objective, predictions, expected)


@pytest.mark.parametrize("moved", [False, True], ids=["raw", "aligned"])
def test_foveabox_is_focal_loss_and_smooth_l1_of_log_distances_in_base_edges(moved):
    """Of boxes that alignment has moved, which have no raw numbers, the distances themselves."""
    predictions = make_predictions(MIDDLES, raw=not moved)
    objective = FoveaBox(sigma=0.5, focal_alpha=0.3, focal_gamma=1.2, box_beta=0.2, box_weight=1.5)
    owner = owned(objective, predictions)
    total = 0.0
    for image, point in (owner >= 0).nonzero().tolist():
        x, y = MIDDLES.centres[point].tolist()
        edge = 2 * MIDDLES.strides[point].item()

        def log_distances(box: Tensor, x=x, y=y, edge=edge) -> Tensor:
            x1, y1, x2, y2 = box
            return (torch.stack([x - x1, y - y1, x2 - x, y2 - y]) / edge).clamp(1 / 16, 16).log()

        target = log_distances(OBJECTS.boxes[image, owner[image, point]])
        said = log_distances(predictions.boxes[image, point]) if moved else predictions.raw[image, point]
        total = total + F.smooth_l1_loss(said, target, beta=0.2, reduction="sum")
    count = (owner >= 0).sum()
    cls = focal(predictions.log_scores.exp(), one_hot(owner), 0.3, 1.2).sum() / (count + 2)  # two images
    check(objective, predictions, {"loss_cls": cls, "loss_box": 1.5 * total / count})


def test_retinanet_is_focal_loss_without_ignored_anchors_and_l1_of_deltas():
    predictions = make_predictions(NINE, raw=True)
    objective = RetinaNet(positive_iou=0.45, negative_iou=0.3, focal_alpha=0.3, focal_gamma=1.5, box_weight=1.5)
    found = objective.assign(predictions, OBJECTS, everywhere(NINE), 0)
    owner = found.object
    assert found.ignored.any()
    count = (owner >= 0).sum()
    every = focal(predictions.log_scores.exp(), one_hot(owner), 0.3, 1.5).sum(-1)
    box = 0.0
    for image, point in (owner >= 0).nonzero().tolist():
        target = box_to_delta(NINE.anchors[point], OBJECTS.boxes[image, owner[image, point]], (1.0,) * 4)
        box = box + F.l1_loss(predictions.raw[image, point], target, reduction="sum")
    check(objective, predictions, {"loss_cls": every[~found.ignored].sum() / count, "loss_box": 1.5 * box / count})


@pytest.mark.parametrize("bins", [0, 8])
def test_gfl_is_qfl_of_ious_giou_weighted_by_the_score_and_dfl(bins):
    predictions = make_predictions(bins=bins)
    objective = GFL(gamma=1.5, box_weight=3.0, dfl_weight=0.4)
    owner = owned(objective, predictions, ONE_EMPTY)
    p, positive = predictions.log_scores.exp(), owner >= 0
    weight = p.detach().amax(-1)[positive]
    count = positive.sum() + 1  # the empty image counts as one
    expected = {
        "loss_cls": quality_focal(p, one_hot(owner, ious(predictions.boxes, owner)), 1.5).sum() / count,
        "loss_box": 3 * (gious(predictions.boxes, owner) * weight).sum() / weight.sum(),
    }
    if bins:
        total = 0.0
        for (image, point), w in zip(positive.nonzero().tolist(), weight, strict=True):
            (x, y), (x1, y1, x2, y2) = CORNERS.centres[point].tolist(), OBJECTS.boxes[image, owner[image, point]].tolist()
            for side, distance in enumerate((x - x1, y - y1, x2 - x, y2 - y)):
                at = distance / CORNERS.strides[point].item() / 0.5  # bins are half a stride wide
                at = min(max(at, 0), bins - 0.1)
                shared = torch.zeros(bins + 1)
                shared[math.floor(at)], shared[math.floor(at) + 1] = 1 - at % 1, at % 1
                total = total + w * F.cross_entropy(predictions.distribution.logits[image, point, side], shared) / 4
        expected["loss_dfl"] = 0.4 * total / weight.sum()
    check(objective, predictions, expected, ONE_EMPTY)


@pytest.mark.parametrize("coarse", [False, True])
def test_vfnet_is_vfl_of_ious_and_giou_of_refined_and_coarse_boxes_each_weighted_by_its_own(coarse):
    predictions = make_predictions(coarse=coarse)
    objective = VFNet(alpha=0.6, gamma=1.5, coarse_weight=1.2, box_weight=3.0)
    owner = owned(objective, predictions)
    p, iou = predictions.log_scores.exp(), ious(predictions.boxes, owner).clamp(min=1e-6)
    dense = one_hot(owner, iou)
    weight = iou[owner >= 0]
    assert weight.sum() > 1  # else the normaliser would be held at 1
    cls = torch.where(dense > 0, dense, 0.6 * p**1.5) * cross_entropy(p, dense)
    expected = {
        "loss_cls": cls.sum() / (owner >= 0).sum(),
        "loss_box": 3 * (gious(predictions.boxes, owner) * weight).sum() / weight.sum(),
    }
    if coarse:
        own = ious(predictions.coarse, owner).clamp(min=1e-6)[owner >= 0]
        assert own.sum() > 1
        expected["loss_coarse"] = 1.2 * (gious(predictions.coarse, owner) * own).sum() / own.sum()
    check(objective, predictions, expected)


@pytest.mark.parametrize("quality", ["none", "iou", "centerness"])
def test_paa_is_focal_loss_giou_weighted_by_iou_and_a_quality_branch(quality):
    predictions = make_predictions(quality=quality)
    objective = PAA(focal_alpha=0.3, focal_gamma=1.5, box_weight=1.2, quality_weight=0.4)
    owner = owned(objective, predictions)
    iou, count = ious(predictions.boxes, owner), (owner >= 0).sum()
    weight = iou[owner >= 0]
    expected = {
        "loss_cls": focal(predictions.log_scores.exp(), one_hot(owner), 0.3, 1.5).sum() / count,
        "loss_box": 1.2 * (gious(predictions.boxes, owner) * weight).sum() / weight.sum(),
    }
    if quality != "none":
        target = iou if quality == "iou" else centerness(CORNERS.centres, boxes_of(OBJECTS, owner))
        expected["loss_quality"] = 0.4 * quality_entropy(predictions, owner, target) / count
    check(objective, predictions, expected)


def test_ddod_weighs_levels_by_their_positives_so_far_and_picks_positives_task_by_task():
    predictions = make_predictions(quality="iou")
    objective = DDOD(topk=4, class_alpha=0.9, box_alpha=0.2, focal_alpha=0.3, focal_gamma=1.5, box_weight=3.0, quality_weight=0.7)
    memory = torch.tensor([[5.0, 1, 0, 2, 0], [0, 3, 0, 0, 9]])
    before = memory.clone()
    classes = owned(objective, predictions)
    boxes = owned(DDOD(topk=4, class_alpha=0.2), predictions)
    assert not torch.equal(classes, boxes)
    weights = []
    for row, owner in enumerate((classes, boxes)):
        so_far = before[row] + torch.stack([(level >= 0).sum() for level in owner.split(CORNERS.counts, dim=1)])
        share = (so_far - so_far.min()) / (so_far.max() - so_far.min())
        weights.append((2 - share).repeat_interleave(torch.tensor(CORNERS.counts)))
    p, count = predictions.log_scores.exp(), (boxes >= 0).sum()
    level, iou = weights[1].expand(2, -1)[boxes >= 0], ious(predictions.boxes, boxes)[boxes >= 0]
    logits = predictions.quality.logits[boxes >= 0]
    quality = (F.binary_cross_entropy_with_logits(logits, iou, reduction="none") * level).sum()
    expected = {
        "loss_cls": (focal(p, one_hot(classes), 0.3, 1.5).sum(-1) * weights[0]).sum() / (classes >= 0).sum(),
        "loss_box": 3 * (gious(predictions.boxes, boxes) * level).sum() / count,
        "loss_quality": 0.7 * quality / count,
    }
    check(objective, predictions, expected, OBJECTS, memory)
    grown = memory - before
    assert grown.sum(1).tolist() == [(classes >= 0).sum(), count]
    assert len(STRIDES) == memory.shape[1]


def test_ddods_positives_are_atss_by_how_well_boxes_and_scores_are_predicted():
    """score^(1 - alpha) * IoU^alpha takes the anchors' IoU's place: alpha 1 is ATSS on the predicted boxes."""
    predictions = make_predictions()
    anchors = predictions._replace(boxes=CORNERS.anchors.expand(2, -1, 4))
    here = everywhere(CORNERS)
    found = DDOD(class_alpha=1.0).assign(anchors, OBJECTS, here, 0).object
    assert torch.equal(found, ATSS().assign(anchors, OBJECTS, here, 0).object)
    assert not torch.equal(DDOD(class_alpha=0.5).assign(anchors, OBJECTS, here, 0).object, found)


def test_soft_label_is_qfl_of_ious_and_giou_weighted_by_them():
    predictions, objective = make_predictions(), SoftLabel(gamma=1.5, box_weight=3.0)
    owner = owned(objective, predictions)
    iou = ious(predictions.boxes, owner)
    total = iou.sum()
    assert total > 1
    cls = quality_focal(predictions.log_scores.exp(), one_hot(owner, iou), 1.5).sum() / total
    box = 3 * (gious(predictions.boxes, owner) * iou[owner >= 0]).sum() / total
    check(objective, predictions, {"loss_cls": cls, "loss_box": box})
