"""The head alone on recorded or seeded features: outputs, taps on the way, losses and gradients (kind tood_head)."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch import Tensor

import tood.head
from tests.parity import seeded_fill
from tests.parity.build import seeded_head
from tests.parity.case import Case, norms, of_largest, read_spec, relative
from tood.alignment import aligned_boxes, sample_sides
from tood.head import DenseHead
from tood.mmdet.configs import to_mmdet
from tood.priors import inside_image


def run(case: Case) -> None:
    head, config = seeded_head(case)
    features = [f.requires_grad_() for f in _features(case, config.neck.channels)]
    with _taps(head) as taps:
        predictions = head(features)
    case.close("probabilities", predictions.log_scores.exp(), case.flat("cls_score"), 2e-6)
    boxes = predictions.boxes / predictions.priors.strides.unsqueeze(1)
    case.close("boxes", boxes, case.flat("bbox_pred"), 1e-4)
    for name in case.arrays:
        if found := re.fullmatch(r"tap_P(\d)_(\w+)", name):
            recorded = case.arrays[name]
            allowed = 1e-4 if "sampling" in name else of_largest(recorded, 1e-4)
            case.close(found[2], taps[found[2]][int(found[1]) - 3], recorded, allowed)

    sizes = torch.tensor([case.spec["image"]]).expand(len(features[0]), 2)
    valid, targets = inside_image(predictions.priors, sizes), case.targets()
    for epoch in _epochs(case):
        losses = config.objective.losses(predictions, targets, valid, epoch)
        for ours, theirs in (("loss_cls", "loss_cls"), ("loss_box", "loss_bbox")):
            recorded = case.arrays[f"ep{epoch}_{theirs}"].sum(dtype="float64")
            case.close(ours, losses[ours], recorded, relative(recorded, 1e-5, 1e-6))
        head.zero_grad()
        slopes = torch.autograd.grad(sum(losses.values()), features, retain_graph=True)
        sum(losses.values()).backward(retain_graph=True, inputs=list(head.parameters()))
        _compare_gradients(case, f"ep{epoch}", head, list(slopes))


def run_stored_state(case: Case) -> None:
    """The tensors that a seed stands for, stored in full."""
    stored = {name.removeprefix("sd/"): value for name, value in case.arrays.items()}
    of_same_seed = [
        spec
        for spec in map(read_spec, sorted(case.path.parent.glob("*.json")))
        if isinstance(spec, dict) and spec.get("seed") == case.spec["seed"] and "anchor_free" in spec
    ]
    anchor_free = of_same_seed[0]["anchor_free"] if of_same_seed else True
    filled = seeded_fill.fill({name: list(v.shape) for name, v in stored.items()}, case.spec["seed"], anchor_free)
    for name, value in stored.items():
        case.same(name, filled[name], value)


def _features(case: Case, channels: int) -> list[Tensor]:
    if "feat_P3" in case.arrays:
        return [feature.clone() for feature in case.levels("feat")]
    spec = case.spec
    tag, mean, std = (spec["tag_format"][key] for key in ("feats", "mean", "std"))
    return [
        seeded_fill.tensor(tag.format(i=i), [spec["batch"], channels, *output.shape[-2:]], mean, std)
        for i, output in enumerate(case.levels("cls_score"))
    ]


@contextmanager
def _taps(head: DenseHead) -> Iterator[dict[str, list[Tensor]]]:
    """What passes on the way, level after level, under the names that cases record."""
    modules = {
        "cls_layer_attention": head.tower.class_view.attention,
        "reg_layer_attention": head.tower.box_view.attention,
        "cls_decomp": head.tower.class_view,
        "reg_decomp": head.tower.box_view,
        "tood_cls": head.predictor.classes,
        "tood_reg": head.predictor.boxes,
        "cls_prob": head.predictor.score_map,
        "reg_offset": head.predictor.side_offsets,
    }
    taps = {name: [] for name in (*modules, "reg_bbox_before_sampling", "bbox_after_sampling")}

    def sample(boxes: Tensor, offsets: Tensor) -> Tensor:
        taps["reg_bbox_before_sampling"].append(boxes)
        taps["bbox_after_sampling"].append(sample_sides(boxes, offsets))
        return aligned_boxes(boxes, offsets)

    hooks = [
        module.register_forward_hook(lambda _m, _i, output, name=name: taps[name].append(output))
        for name, module in modules.items()
    ]
    try:
        with patch.object(tood.head, "aligned_boxes", sample):
            yield taps
    finally:
        for hook in hooks:
            hook.remove()


def _epochs(case: Case) -> list[int]:
    return sorted(int(found[1]) for name in case.arrays if (found := re.fullmatch(r"ep(\d+)_loss_cls", name)))


def _compare_gradients(case: Case, phase: str, head: DenseHead, slopes: list[Tensor]) -> None:
    ours = {f"head.{name}": p.grad for name, p in head.named_parameters() if p.grad is not None}
    ours = {name.removeprefix("bbox_head."): value for name, value in to_mmdet(ours, "TOODHead").items()}
    for name, recorded in case.spec.get(f"{phase}_param_grad_norms", {}).items():
        assert (name in ours) == (recorded is not None), f"{phase}: gradient of {name}: {recorded} recorded"
        if recorded is not None:
            case.close("gradient norms", norms([ours[name]])[0], recorded, relative(recorded, 1e-3, 1e-6))
    if f"{phase}_feat_grad_norms" in case.spec:
        recorded = case.spec[f"{phase}_feat_grad_norms"]
        case.close("gradient norms", norms(slopes), recorded, relative(recorded, 1e-3, 1e-6))
    for name in case.arrays:
        recorded = case.arrays[name]
        if found := re.fullmatch(rf"{phase}_grad_param_(.+)", name):
            case.close("gradients", ours[found[1]], recorded, of_largest(recorded, 1e-3))
        elif found := re.fullmatch(rf"{phase}_grad_feat_P(\d)", name):
            case.close("gradients", slopes[int(found[1]) - 3], recorded, of_largest(recorded, 1e-3))
