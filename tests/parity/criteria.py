"""Single functions: losses, overlaps, score alignment (kind losses) and what samples by offsets (kind deform)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.parity.case import Case, gradient, of_largest, relative
from tood.alignment import aligned_log_scores, sample_sides
from tood.boxes import aligned_giou, aligned_iou, overlap_share, pairwise_iou
from tood.deformable import ModulatedDeformableConv
from tood.losses import BOX_LOSSES, distribution_focal, iou_loss, negative_focal, positive_focal, quality_focal

OVERLAPS = "overlaps"  # the entry for the box/* arrays, which have no parameters


def loss_entries(spec: dict) -> list[str]:
    return [*spec["params"], *([OVERLAPS] if "box/iou_matrix" in spec["arrays"] else [])]


def run_loss(case: Case) -> None:
    params = {"loss": OVERLAPS} if case.entry == OVERLAPS else case.spec["params"][case.entry]
    kind = params["loss"]
    if kind == OVERLAPS:
        _overlaps(case)
    elif kind == "sigmoid_geometric_mean":
        _aligned_scores(case)
    elif kind in ("quality_focal", "sigmoid_focal"):
        _class_loss(case, params)
    elif kind == "distribution_focal":
        _distribution_loss(case, params)
    elif kind in ("giou", "diou", "ciou", "iou_linear", "iou_log"):
        _box_loss(case, params)
    else:
        raise AssertionError(f"unknown loss {kind!r}")


def _class_loss(case: Case, params: dict) -> None:
    prediction = case.tensor(f"{case.entry}/pred").requires_grad_()
    log_p = prediction.log() if params["activated"] else F.logsigmoid(prediction)
    hit = F.one_hot(case.tensor("qfl/labels"), log_p.shape[1] + 1)[:, :-1].bool()  # the last label is background
    if params["loss"] == "sigmoid_focal":
        positive = params["alpha"] * positive_focal(log_p, params["gamma"])
        values = torch.where(hit, positive, (1 - params["alpha"]) * negative_focal(log_p, params["gamma"]))
    else:
        dense = params["target"] == "dense"
        target = case.tensor("qfl/dense_target") if dense else hit * case.tensor("qfl/score").unsqueeze(1)
        values = quality_focal(log_p, target, params["beta"]).sum(1)
    _compare_loss(case, params, prediction, values, case.tensor("qfl/weight"))


def _distribution_loss(case: Case, params: dict) -> None:
    prediction = case.tensor(f"{case.entry}/pred").requires_grad_()
    values = distribution_focal(prediction, case.tensor(f"{case.entry.split('_')[0]}/target"))
    _compare_loss(case, params, prediction, values, case.tensor("qfl/weight"))


def _box_loss(case: Case, params: dict) -> None:
    prediction, target = case.tensor(f"{case.entry}/pred").requires_grad_(), case.tensor("box/target")
    losses = BOX_LOSSES | {"iou_log": iou_loss, "iou_linear": lambda a, b: 1 - aligned_iou(a, b)}
    values = losses[params["loss"]](prediction, target)
    _compare_loss(case, params, prediction, values, case.tensor("box/weight"))


def _compare_loss(case: Case, params: dict, prediction: Tensor, values: Tensor, weight: Tensor) -> None:
    """Weight and reduce as the peer does, then compare value and gradient."""
    if params["weighted"]:
        values = values * (weight.unsqueeze(1) if values.dim() == 2 else weight)
    if params["avg_factor"] is not None:
        values = values.sum() / params["avg_factor"]
    elif params["reduction"] != "none":
        values = values.mean() if params["reduction"] == "mean" else values.sum()
    values = params["loss_weight"] * values
    values.sum().backward()
    recorded, slope = case.arrays[f"{case.entry}/out"], case.arrays[f"{case.entry}/grad_of_sum"]
    case.close(params["loss"], values, recorded, relative(recorded, 1e-5, 1e-6))
    case.close(f"gradient of {params['loss']}", prediction.grad, slope, gradient(slope))


def _overlaps(case: Case) -> None:
    """Of the boxes that the GIoU entries compare, aligned and all with all."""
    target = case.tensor("box/target")
    name = next(name for name, params in case.spec["params"].items() if params["loss"] == "giou")
    boxes = case.tensor(f"{name}/pred")
    case.close("GIoU", aligned_giou(boxes, target), case.arrays["box/giou_aligned"], 1e-6)
    for what, function, recorded in (("IoU", pairwise_iou, "box/iou_matrix"), ("IoF", overlap_share, "box/iof_matrix")):
        rows, columns = case.arrays[recorded].shape
        case.close(what, function(boxes[:rows], target[:columns]), case.arrays[recorded], 1e-6)


def _aligned_scores(case: Case) -> None:
    x, y = (case.tensor(f"{case.entry}/{name}").requires_grad_() for name in ("x", "y"))
    scores = aligned_log_scores(x, y).exp()
    scores.backward(case.tensor(f"{case.entry}/grad_out"))
    case.close("aligned scores", scores, case.arrays[f"{case.entry}/out"], 1e-6)
    for name, leaf in (("x", x), ("y", y)):
        slope = case.arrays[f"{case.entry}/grad_{name}"]
        case.close("gradient of aligned scores", leaf.grad, slope, gradient(slope))


def sampling_entries(spec: dict) -> list[str]:
    return list(dict.fromkeys(name.split("/")[0] for name in spec["arrays"]))


def run_sampling(case: Case) -> None:
    if f"{case.entry}/feat" not in case.arrays:
        return _modulated(case, case.spec[case.entry])
    maps, offsets = (case.tensor(f"{case.entry}/{name}").requires_grad_() for name in ("feat", "offset"))
    sampled = sample_sides(maps, offsets)
    sampled.backward(case.tensor(f"{case.entry}/grad_out"))
    recorded = case.arrays[f"{case.entry}/out"]
    case.close("sampled sides", sampled, recorded, of_largest(recorded, 1e-5))
    for what, leaf in (("feat", maps), ("offset", offsets)):
        slope = case.arrays[f"{case.entry}/grad_{what}"]
        case.close(f"gradient of {what}", leaf.grad, slope, of_largest(slope, 1e-5))


def _modulated(case: Case, spec: dict) -> None:
    """A deformable convolution with its own offsets and masks, and through it the gradients of all that it reads."""
    conv = ModulatedDeformableConv(
        spec["in_channels"],
        spec["out_channels"],
        stride=spec["stride"],
        padding=spec["padding"],
        deform_groups=spec["deform_groups"],
        bias=spec["bias"],
    )
    stored = f"{case.entry}/sd/"
    conv.load_state_dict({name.removeprefix(stored): case.tensor(name) for name in case.arrays if name.startswith(stored)})
    x = case.tensor(f"{case.entry}/x").requires_grad_()
    y = conv(x)
    y.backward(case.tensor(f"{case.entry}/grad_out"))
    recorded = case.arrays[f"{case.entry}/out"]
    case.close("deformable convolution", y, recorded, of_largest(recorded, 1e-5))
    for what, leaf in (("x", x), ("weight", conv.weight), ("conv_offset_weight", conv.conv_offset.weight)):
        slope = case.arrays[f"{case.entry}/grad_{what}"]
        case.close(f"gradient of {what}", leaf.grad, slope, of_largest(slope, 1e-5))
