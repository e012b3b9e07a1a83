"""Backbone and neck of a whole resolved configuration (kind config), whatever its head is."""

import torch

from tests.parity.case import Case, read_spec
from tood.backbone import Backbone
from tood.config import BackboneConfig, NeckConfig, build
from tood.data.batches import PIXELS
from tood.mmdet.configs import body_config_from_mmdet, from_mmdet, to_mmdet
from tood.neck import FeaturePyramid


def run(case: Case) -> None:
    """The same parameters, trained and frozen alike, and pixels of the same order, mean and deviation."""
    cfg = read_spec(case.path.with_name(case.path.name.replace(".state_dict.", ".config.")))["model"]
    values = body_config_from_mmdet(cfg)
    config, neck = build(BackboneConfig, values["backbone"]), build(NeckConfig, values["neck"])
    with torch.device("meta"):
        backbone = Backbone(config)
        parts = {
            "backbone": backbone,
            "neck": FeaturePyramid(backbone.channels, neck.channels, neck.kind, neck.extra_from, neck.relu_before_extra),
        }
    state = {f"{part}.{name}": value for part, module in parts.items() for name, value in module.state_dict().items()}
    ours, head = to_mmdet(state, cfg["bbox_head"]["type"]), "bbox_head."
    recorded = {name: part for name, part in case.spec["state_dict"].items() if not name.startswith(head)}
    case.same("parameters", sorted(ours), sorted(recorded))
    for name, part in recorded.items():
        case.same(f"shape of {name}", ours[name].shape, part["shape"])
    case.same("names there and back", sorted(from_mmdet(ours)), sorted(state))

    frozen = {f"{part}.{name}": p for part, m in parts.items() for name, p in m.named_parameters() if not p.requires_grad}
    expected = sorted(name for name, part in recorded.items() if part["trainable"] is False)
    case.same("frozen", sorted(to_mmdet(frozen, cfg["bbox_head"]["type"])), expected)
    for part, module in parts.items():
        case.same(f"parameters of the {part}", sum(p.numel() for p in module.parameters()), case.spec["parameters_by_part"][part])

    reads, preprocessor = PIXELS[backbone.pixels], cfg["data_preprocessor"]
    case.same("mean", reads.mean, preprocessor["mean"])
    case.same("deviation", reads.std, preprocessor["std"])
    case.same("order", reads.bgr, not preprocessor["bgr_to_rgb"])
    case.same("ReLU before P7", neck.relu_before_extra, cfg["neck"].get("relu_before_extra_convs", False))
    case.same("style", config.style, cfg["backbone"]["style"])
