"""Our heads and detectors as a case's `cfg` says, with the weights that its seed stands for."""

import torch
from torch import Tensor

from tests.parity import seeded_fill
from tests.parity.case import Case
from tood.config import PredictConfig, build
from tood.detector import Detector
from tood.detectors import ModelConfig, build_detector
from tood.head import DenseHead
from tood.mmdet.configs import from_mmdet, model_config_from_mmdet, predict_config_from_mmdet


def model_config(cfg: dict) -> ModelConfig:
    return build(ModelConfig, model_config_from_mmdet(cfg))


def predict_config(test_cfg: dict) -> PredictConfig:
    return build(PredictConfig, predict_config_from_mmdet(test_cfg))


def seeded_head(case: Case) -> tuple[DenseHead, ModelConfig]:
    """The head alone; a backbone would only cost time, so it is the smallest."""
    cfg = case.spec["cfg"]
    config = build(ModelConfig, model_config_from_mmdet(cfg) | {"backbone": {"depth": 18}})
    head = build_detector(config, cfg["num_classes"]).head
    state = {key.removeprefix("head."): value for key, value in from_mmdet(seeded_state(case)).items()}
    head.load_state_dict(state)
    return head, config


def seeded_detector(case: Case) -> Detector:
    cfg = case.spec["cfg"]
    detector = build_detector(
        model_config(cfg), cfg["bbox_head"]["num_classes"], predict_config(cfg.get("test_cfg") or cfg["bbox_head"]["test_cfg"])
    )
    detector.load_state_dict(from_mmdet(seeded_state(case)))
    return detector


def seeded_state(case: Case) -> dict[str, Tensor]:
    spec = case.spec
    return seeded_fill.fill(spec["state_dict_shapes"], spec["seed"], spec.get("anchor_free", True))


def image_sizes(metas: list[dict]) -> Tensor:
    """int64 [B, 2] (height, width) of the resized images."""
    return torch.tensor([meta["img_shape"][:2] for meta in metas])


def image_scales(metas: list[dict]) -> Tensor:
    """float32 [B, 2] (x, y), resized over original."""
    return torch.tensor([meta["scale_factor"][:2] for meta in metas], dtype=torch.float32)
