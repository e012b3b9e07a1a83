"""A model and a checkpoint to save, shared by the tests of checkpoints."""

from pathlib import Path

import torch

from tood.checkpoint import ModelInfo

INFO = ModelInfo(
    config={"model": {"tower": "t_head", "layers": 6}, "train": {"lr": 0.1, "milestones": [8, 11], "clip": None}},
    config_hash="0123456789ab",
    names=["Röntgen", "cup"],
    category_ids=[1, 90],
    epoch=3,
    step=120,
    metrics={"val/AP": 0.1 + 0.2, "val/AP_small": -1.0},
    dataset="fingerprint",
    versions={"torch": "2.0"},
)
STATE = {"sampler": {"epoch": 3, "batch": 0}, "best": 0.25, "note": None}


def weights(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "head.weight": torch.randn(3, 4, generator=generator),
        "backbone.bias": torch.randn(5, generator=generator).to(torch.bfloat16),
        "steps": torch.tensor(7),
        "empty": torch.zeros(0, 3),
    }


def training(seed: int = 0) -> dict[str, torch.Tensor]:
    return {"momentum.head.weight": torch.full((3, 4), float(seed)), "rng": torch.Generator().manual_seed(0).get_state()}


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def same(ours: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == expected.keys()
    for name, tensor in expected.items():
        assert ours[name].dtype == tensor.dtype
        assert torch.equal(ours[name], tensor.cpu()), name
