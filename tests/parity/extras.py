"""Priors, box coder, learning rate, freshly initialised weights (kind extras), and whole configurations (kind config)."""

import math
import re
from collections.abc import Iterable

import torch
from torch import Tensor

from tests.parity import body
from tests.parity.build import model_config
from tests.parity.case import Case, read_spec, relative
from tood.backbone import Backbone
from tood.boxes import clip, delta_to_box
from tood.config import BackboneConfig, TrainConfig, build
from tood.detectors import ModelConfig, build_detector
from tood.mmdet.configs import to_mmdet
from tood.neck import FeaturePyramid
from tood.optimisation import learning_rate
from tood.priors import PRIORS, SQUARE, STRIDES, PriorGrid, make_priors

LEVEL = re.compile(r"(.+_(\d+)x(\d+)/(.+))_level(\d+)")


def entries(spec: dict) -> list[str]:
    """Of a JSON; arrays that stand alone are listed by `array_entries`."""
    return [name for name in spec if name != "kind"]


def array_entries(names: Iterable[str]) -> list[str]:
    groups = (LEVEL.fullmatch(name) for name in names)
    return list(dict.fromkeys(found[1] if found else "coder" for found in groups))


def run(case: Case) -> None:
    if case.entry == "coder":
        _coder(case)
    elif found := LEVEL.fullmatch(f"{case.entry}_level0"):
        _priors(case, int(found[2]), int(found[3]), found[4])
    elif "iter_epoch_lr" in case.spec[case.entry]:
        _learning_rate(case, case.spec[case.entry])
    else:
        _fresh_weights(case, case.spec[case.entry])


def _priors(case: Case, height: int, width: int, family: str) -> None:
    sizes = tuple((math.ceil(height / stride), math.ceil(width / stride)) for stride in STRIDES)
    grid = {
        "tood_atss_gfl": SQUARE,
        "retinanet": PriorGrid(PRIORS["nine_anchors"]),
        "fcos_points": PriorGrid(centre_offset=0.5),
    }[family]
    priors = make_priors(sizes, torch.device("cpu"), grid)
    values = priors.centres if family == "fcos_points" else priors.anchors
    for level, ours in enumerate(values.split(priors.counts)):
        recorded = case.arrays[f"{case.entry}_level{level}"]
        if family == "retinanet":  # sides that no float holds exactly
            case.close(f"priors of level {level}", ours, recorded, relative(recorded, 1e-6, 1e-4))
        else:
            case.same(f"priors of level {level}", ours, recorded)


def _coder(case: Case) -> None:
    priors, deltas = case.tensor("coder/priors"), case.tensor("coder/deltas")
    decoded = delta_to_box(priors, deltas)
    recorded = case.arrays["coder/decoded"]
    case.close("decoded boxes", decoded, recorded, relative(recorded, 1e-5, 1e-4))
    encoded = delta_to_box(priors, case.tensor("coder/encoded"))
    case.close("decoded codes", encoded, case.arrays["coder/gts"], 1e-3)
    for name in case.arrays:
        if found := re.fullmatch(r"coder/decoded_max_shape_(\d+)x(\d+)", name):
            ours = clip(decoded, int(found[1]), int(found[2]))
            case.close("clipped boxes", ours, case.arrays[name], relative(case.arrays[name], 1e-5, 1e-4))


def _learning_rate(case: Case, recorded: dict) -> None:
    warmup, decay = recorded["param_scheduler"]
    assert (warmup["type"], decay["type"]) == ("LinearLR", "MultiStepLR"), f"unknown schedule {recorded['param_scheduler']}"
    config = build(
        TrainConfig,
        {
            "epochs": recorded["epochs"],
            "lr": recorded["optimizer"]["lr"],
            "scale_lr": False,
            "schedule": "step",
            "milestones": decay["milestones"],
            "gamma": decay["gamma"],
            "warmup_steps": warmup["end"],
            "warmup_factor": warmup["start_factor"],
        },
    )
    for step, _epoch, rate in recorded["iter_epoch_lr"]:
        case.close("learning rate", learning_rate(config, step, recorded["iters_per_epoch"]), rate, 1e-9 * rate)


def _fresh_weights(case: Case, recorded: dict[str, dict]) -> None:
    """Mean and standard deviation of every parameter, within six standard errors of two independent draws."""
    torch.manual_seed(0)
    ours = {name: value for name, value in _like(recorded).items() if not name.endswith("num_batches_tracked")}
    case.same("parameters", sorted(ours), sorted(recorded))
    for name, expected in recorded.items():
        values = ours[name].double()
        case.same(f"shape of {name}", values.shape, expected["shape"])
        mean, std, count = expected["mean"], expected["std"], values.numel()
        error = 6 * math.sqrt(2) * std / math.sqrt(count)
        case.close("mean of fresh weights", values.mean(), mean, error + 1e-6)
        case.close("deviation of fresh weights", values.std() if count > 1 else 0.0, std, error + 1e-6)


def _like(recorded: dict[str, dict]) -> dict[str, Tensor]:
    """Fresh weights, under the peer's names, of the backbone with its neck, or of the head, that has such parameters."""
    shapes = {name: part["shape"] for name, part in recorded.items()}
    if any(name.startswith("backbone.") for name in shapes):
        blocks = tuple(len({n.split(".")[2] for n in shapes if n.startswith(f"backbone.layer{i}.")}) for i in range(1, 5))
        depth = {(2, 2, 2, 2): 18, (3, 4, 6, 3): 50, (3, 4, 23, 3): 101}[blocks]
        if depth == 50 and "backbone.layer1.0.conv3.weight" not in shapes:
            depth = 34
        backbone = Backbone(BackboneConfig(depth=depth))
        neck = FeaturePyramid(backbone.channels, shapes["neck.fpn_convs.0.conv.weight"][0])
        parts = {"backbone": backbone, "neck": neck}
    else:
        layers = sum(bool(re.fullmatch(r"inter_convs\.\d+\.conv\.weight", name)) for name in shapes)
        channels, in_channels = shapes["inter_convs.0.conv.weight"][:2]
        values = {"layers": layers, "channels": channels, "backbone": {"depth": 18}, "neck": {"channels": in_channels}}
        values["deformable"] = "first_two" if any("conv_offset" in name for name in shapes) else "none"
        parts = {"head": build_detector(build(ModelConfig, values), shapes["tood_cls.weight"][0]).head}
    state = {f"{part}.{name}": value for part, module in parts.items() for name, value in module.state_dict().items()}
    return {name.removeprefix("bbox_head."): value for name, value in to_mmdet(state, "TOODHead").items()}


def config_entries(_spec: dict) -> list[str]:
    return ["body", "detector"]


def run_config(case: Case) -> None:
    """A resolved configuration of the peer makes a detector with the same parameters, trained and frozen alike."""
    if case.entry == "body":
        return body.run(case)
    recorded = case.spec
    cfg = read_spec(case.path.with_name(case.path.name.replace(".state_dict.", ".config.")))["model"]
    head = cfg["bbox_head"]["type"]
    with torch.device("meta"):
        detector = build_detector(model_config(cfg), cfg["bbox_head"]["num_classes"])
    ours = to_mmdet(detector.state_dict(), head)
    expected = recorded["state_dict"]
    case.same("parameters", sorted(ours), sorted(expected))
    for name, part in expected.items():
        case.same(f"shape of {name}", ours[name].shape, part["shape"])
    trained = sum(p.numel() for p in detector.parameters() if p.requires_grad)
    case.same("trained parameters", trained, recorded["num_trainable_parameters"])
    case.same("parameters", sum(p.numel() for p in detector.parameters()), recorded["num_parameters"])
    frozen = to_mmdet({name: p for name, p in detector.named_parameters() if not p.requires_grad}, head)
    case.same("frozen", sorted(frozen), sorted(n for n, part in expected.items() if part["trainable"] is False))
