"""What the processes of a run tell each other outside of DDP's own gradients."""

import math

import torch
import torch.distributed as dist
from torch import Tensor, nn


def place() -> tuple[int, int]:
    """This process's rank and how many there are; (0, 1) without a process group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def share_statistics(model: nn.Module, averaged: dict[str, Tensor] | None) -> None:
    """Rank 0's BatchNorm statistics for all ranks: DDP shares them before a forward pass, not after the last of an epoch.

    averaged: the averaged state, where averaging is on.
    """
    for name, buffer in model.named_buffers():
        dist.broadcast(buffer, 0)
        if averaged:
            dist.broadcast(averaged[name], 0)


def share_figure(figure: float | None, device: torch.device) -> float | None:
    """Rank 0's figure for all ranks, so that they decide alike; None: there is none."""
    if place()[1] == 1:
        return figure
    shared = torch.tensor([math.nan if figure is None else figure], dtype=torch.float64, device=device)
    dist.broadcast(shared, 0)
    return None if shared.isnan() else shared.item()
