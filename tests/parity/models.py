"""Whole detectors on seeded images: features, outputs, losses, gradients, detections (tood_model), and SGD steps."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from tests.parity import seeded_fill
from tests.parity.build import image_scales, image_sizes, seeded_detector, seeded_state
from tests.parity.case import Case, norms, relative
from tests.parity.detections import compare_detections
from tood.detector import Detector
from tood.mmdet.configs import from_mmdet, to_mmdet
from tood.predictions import Predictions

LEVELS = range(3, 8)
ATTEMPTS = 12  # at a trajectory; where one ReLU input lies on the brink, about half of all runs follow


def run(case: Case) -> None:
    spec, detector = case.spec, seeded_detector(case)
    images, sizes = _images(case, spec["image_shape"]), image_sizes(spec["img_metas"])
    seen: dict[str, dict[str, Tensor]] = {}

    detector.eval()
    with _features(detector) as features, torch.no_grad():
        predictions = detector.dense(images)
    seen["eval"] = features | _outputs(predictions, [features[f"P{level}"] for level in LEVELS])
    limit = detector.predict_config.max_detections
    for stage, scales in (("network", torch.ones(len(images), 2)), ("rescaled", image_scales(spec["img_metas"]))):
        for image, found in enumerate(detector.detect(images, sizes, scales)):
            compare_detections(case, f"eval_img{image}_{stage}", found, box=0.02, score=1e-4, limit=limit)

    spread: dict[str, float] = {}
    for name, recorded in spec["losses"].items():
        mode, epoch = re.fullmatch(r"(\w+)_ep(\d+)", name).groups()
        detector.load_state_dict(from_mmdet(seeded_state(case)))
        detector.backbone.norm_eval = {"train_norm_eval": True, "train_batch_stats": False}[mode]
        detector.train()
        with _features(detector) as features:
            losses = detector.losses(images, sizes, case.targets(), int(epoch))
        seen.setdefault(mode, {key: value.detach() for key, value in features.items()})
        detector.zero_grad(set_to_none=True)
        sum(losses.values()).backward()
        if mode == "train_batch_stats" and spec["cfg"]["backbone"].get("dcn"):
            _compare_within_own_spread(case, detector, images, sizes, int(epoch), losses, recorded)
            spread = spread or _spread_of_features(case, detector, images, seen[mode])
            continue
        _compare_losses(case, losses, recorded, 1e-4)
        _compare_gradients(case, detector, recorded)
        _compare_statistics(case, mode, detector)

    for name, probe in spec["probes"].items():
        mode, what = re.fullmatch(rf"({'|'.join(seen)})_(\w+)", name).groups()
        values = seen[mode][what]
        case.same(f"shape of {name}", values.shape, probe["shape"])
        allowed = max(1e-3 * probe["std"], 4 * spread[what] if mode == "train_batch_stats" and spread else 0.0)
        case.close(re.sub(r"\d", "", what), values.flatten()[probe["index"]], probe["value"], allowed)
        moments = [values.double().mean(), values.double().std(), values.min(), values.max()]
        recorded = [probe[key] for key in ("mean", "std", "min", "max")]
        case.close(
            f"moments of {re.sub(r'[0-9]', '', what)}",
            torch.stack([m.double() for m in moments]),
            recorded,
            allowed,
        )
    for name, recorded in case.arrays.items():
        if found := re.fullmatch(r"eval_((?:C|P|cls_score_P|bbox_pred_P)\d)", name):
            case.close(re.sub(r"\d", "", found[1]), seen["eval"][found[1]], recorded, 1e-3 * recorded.std())


def _compare_within_own_spread(
    case: Case, detector: Detector, images: Tensor, sizes: Tensor, epoch: int, losses: dict[str, Tensor], recorded: dict
) -> None:
    """Batch statistics under random deformable layers amplify a rounding a thousandfold, in the peer as here.

    So what is allowed is measured: of a loss four times, of a gradient's norm twice the largest share by which weights
    moved by at most a unit of their last place change it, at least the usual. Without batch statistics the same detector
    is compared at the usual tolerance.
    """

    def figures(result: dict[str, Tensor]) -> dict[str, float]:
        slopes = to_mmdet({n: p.grad for n, p in detector.named_parameters() if p.grad is not None}, "TOODHead")
        return {name: value.item() for name, value in result.items()} | {n: norms([g])[0] for n, g in slopes.items()}

    ours = figures(losses)
    spread = dict.fromkeys(ours, 0.0)
    for seed in range(1, 4):
        detector.load_state_dict(from_mmdet(seeded_state(case)))
        _move_last_places(detector, seed)
        moved = detector.losses(images, sizes, case.targets(), epoch)
        detector.zero_grad(set_to_none=True)
        sum(moved.values()).backward()
        spread = {name: max(spread[name], abs(value - ours[name])) for name, value in figures(moved).items()}
    largest = max(spread[name] / abs(value) for name, value in ours.items() if value)
    theirs = {"loss_cls": recorded["loss_cls"], "loss_box": recorded["loss_bbox"]} | recorded["param_grad_norms"]
    for name, value in theirs.items():
        is_loss = name.startswith("loss")
        allowed = max(4 * spread[name], 1e-4 * abs(value)) if is_loss else max(2 * largest * abs(value), 1e-6)
        case.close(f"{name if is_loss else 'gradient norms'} within our own spread", ours[name], value, allowed)


def _spread_of_features(case: Case, detector: Detector, images: Tensor, ours: dict[str, Tensor]) -> dict[str, float]:
    """By how much weights moved by at most a unit of their last place change each feature map."""
    detector.load_state_dict(from_mmdet(seeded_state(case)))
    _move_last_places(detector, 1)
    with _features(detector) as moved, torch.no_grad():
        detector.dense(images)
    return {name: (moved[name] - value).abs().max().item() for name, value in ours.items()}


def run_steps(case: Case) -> None:
    """A few steps at a large learning rate, one batch each."""
    spec, detector = case.spec, seeded_detector(case).train()
    optimizer = _sgd(detector, spec["lr"], spec)
    for recorded in spec["steps"]:
        step = recorded["step"]
        images = _images(case, spec["image_shape"], step=step)
        losses = _step(case, detector, optimizer, images, f"step{step}_", recorded["epoch"])
        share = 1e-3 if step < 2 else 2e-2
        _compare_losses(case, losses, recorded, share, f" of {'early' if step < 2 else 'late'} steps")
        total = np.linalg.norm(norms(p.grad for p in detector.parameters() if p.grad is not None))
        case.close("total gradient norm", total, recorded["total_grad_norm"], share * recorded["total_grad_norm"])
    if "final_param_norms" in spec:
        _compare_norms(case, detector, spec["final_param_norms"])


def run_trajectory(case: Case) -> None:
    """A short run over a few fixed batches, through the switch of phases.

    Training is chaotic: one ReLU input that rounds to the other side of 0 parts two runs of the same code, sooner or later
    (after step 15 the peer from itself, ours from ours with another number of threads at times after step 2). So a run
    that parts early is repeated from weights moved by at most a unit of their last place: one of these runs must follow
    the recorded one. An error in a formula would show in all of them, from the first steps on.
    """
    failures = []
    for attempt in range(ATTEMPTS):
        try:
            return _trajectory(case, attempt)
        except AssertionError as failure:
            failures.append(str(failure))
    raise AssertionError(f"in none of {ATTEMPTS} runs:\n" + "\n".join(failures))


def _trajectory(case: Case, attempt: int) -> None:
    spec, detector = case.spec, seeded_detector(case).train()
    if attempt:
        _move_last_places(detector, attempt)
    ramp = re.fullmatch(r"lr \* min\(1, \(step\+1\)/(\d+)\), step from 0", spec["lr_rule"])
    assert ramp, f"unknown lr_rule {spec['lr_rule']!r}"
    optimizer = _sgd(detector, spec["lr"], spec)
    switch = detector.objective.warmup_epochs
    for step in range(min(spec["steps"], 16)):
        batch = step % spec["n_batches"]
        optimizer.param_groups[0]["lr"] = spec["lr"] * min(1, (step + 1) / int(ramp[1]))
        epoch = 0 if step < spec["switch_step"] else switch
        losses = _step(case, detector, optimizer, _images(case, spec["shape"], batch=batch), f"batch{batch}_", epoch)
        recorded = {name: case.arrays[name][step].item() for name in ("loss_cls", "loss_bbox")}
        when = "steps 0-9" if step < 10 else "steps 10-15"
        _compare_losses(case, losses, recorded, 1e-4 if step < 10 else 5e-3, f" of {when}")


@torch.no_grad()
def _move_last_places(detector: Detector, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in detector.parameters():
        parameter *= 1 + (2 * torch.rand(parameter.shape, generator=generator) - 1) * 2**-24


def _step(case: Case, detector: Detector, optimizer, images: Tensor, prefix: str, epoch: int) -> dict[str, Tensor]:
    """One step on images that fill the batch; its losses."""
    sizes = torch.tensor([images.shape[-2:]]).expand(len(images), 2)
    losses = detector.losses(images, sizes, case.targets(prefix), epoch)
    optimizer.zero_grad()
    sum(losses.values()).backward()
    optimizer.step()
    return losses


def _sgd(detector: Detector, lr: float, spec: dict) -> torch.optim.SGD:
    trained = [p for p in detector.parameters() if p.requires_grad]
    return torch.optim.SGD(trained, lr, momentum=spec["momentum"], weight_decay=spec["weight_decay"])


def _images(case: Case, shape: list[int], **numbers: int) -> Tensor:
    """Seeded normalised images [B, 3, H, W]; `numbers` fill the tag's place holders."""
    tag, mean, std = (case.spec["tag_format"][key] for key in ("image", "mean", "std"))
    return seeded_fill.tensor(tag.format(**numbers), shape, mean, std)


@contextmanager
def _features(detector: Detector) -> Iterator[dict[str, Tensor]]:
    """C2..C5 and P3..P7 of the next forward pass."""
    features: dict[str, Tensor] = {}
    backbone = detector.backbone
    hooks = [
        layer.register_forward_hook(lambda _m, _i, output, name=name: features.__setitem__(name, output))
        for name, layer in (("C2", backbone.layer1), ("C3", backbone.layer2), ("C4", backbone.layer3), ("C5", backbone.layer4))
    ]
    pyramid = lambda _m, _i, levels: features.update({f"P{i}": level for i, level in enumerate(levels, 3)})  # noqa: E731
    hooks.append(detector.neck.register_forward_hook(pyramid))
    try:
        yield features
    finally:
        for hook in hooks:
            hook.remove()


def _outputs(predictions: Predictions, pyramid: list[Tensor]) -> dict[str, Tensor]:
    """Outputs as the peer has them: probabilities, boxes in strides, each level [B, C, Hl, Wl]."""
    outputs, priors = {}, predictions.priors
    boxes = predictions.boxes / priors.strides.unsqueeze(1)
    for what, values in (("cls_score", predictions.log_scores.exp()), ("bbox_pred", boxes)):
        parts = values.transpose(1, 2).split(priors.counts, dim=2)
        for level, (part, feature) in enumerate(zip(parts, pyramid, strict=True), 3):
            outputs[f"{what}_P{level}"] = part.unflatten(2, feature.shape[-2:])
    return outputs


def _compare_losses(case: Case, losses: dict[str, Tensor], recorded: dict, share: float, when: str = "") -> None:
    for ours, theirs in (("loss_cls", "loss_cls"), ("loss_box", "loss_bbox")):
        case.close(f"{ours}{when}", losses[ours], recorded[theirs], relative(recorded[theirs], share, 1e-6))


def _compare_gradients(case: Case, detector: Detector, recorded: dict) -> None:
    gradients = {name: p.grad for name, p in detector.named_parameters() if p.grad is not None}
    ours = to_mmdet(gradients, "TOODHead")
    for name, norm in recorded["param_grad_norms"].items():
        assert name in ours, f"no gradient of {name}"
        # one ReLU input that rounds to the other side of 0 moves the gradient of a deep layer by up to 2e-3 of its norm
        case.close("gradient norms", norms([ours[name]])[0], norm, relative(norm, 5e-3, 1e-6))
    total = np.linalg.norm(list(recorded["param_grad_norms"].values()))
    case.close("total gradient norm", np.linalg.norm(norms(ours.values())), total, relative(total, 1e-3))
    for name in recorded["params_without_grad"]:
        assert name not in ours, f"{name} has a gradient, recorded none"


def _compare_statistics(case: Case, mode: str, detector: Detector) -> None:
    """Running statistics of BatchNorm after one forward pass in training."""
    ours = to_mmdet({k: v for k, v in detector.state_dict().items() if k.startswith("backbone.")}, "TOODHead")
    for name, recorded in case.arrays.items():
        if name.startswith(f"{mode}_after_1_step/"):
            case.close("running statistics", ours[name.split("/")[1]], recorded, relative(recorded, 1e-3, 1e-4))


def _compare_norms(case: Case, detector: Detector, recorded: dict[str, float]) -> None:
    ours = to_mmdet(detector.state_dict(), "TOODHead")
    for name, norm in recorded.items():
        case.close("final norms", norms([ours[name]])[0], norm, relative(norm, 2e-2, 1e-6))
