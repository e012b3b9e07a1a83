"""What the processes of a run tell each other: gradients by DDP, and the rest."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def place() -> tuple[int, int]:
    """This process's rank and how many there are; (0, 1) without a process group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def share_gradients(model: nn.Module) -> nn.Module:
    """The model to be called in its place: gradients become the ranks' mean, and are views of what was sent, not copies.

    No static graph is promised: which losses there are changes where a warm-up ends. Rank 0's buffers are sent around before
    each step only where a step reads one, the objective's memory: BatchNorm's statistics are constant or not read in training.
    """
    shared = DistributedDataParallel(model, gradient_as_bucket_view=True)
    shared.broadcast_buffers = getattr(model, "objective_memory", None) is not None  # the argument's name is another in new torch
    return shared


@contextmanager
def alone(device: torch.device) -> Iterator[None]:
    """A process group of this process alone, with what ranks on such devices use; where there is none yet."""
    begun = dist.is_initialized()
    if not begun:
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        if not begun:
            dist.destroy_process_group()


def share_statistics(model: nn.Module, averaged: dict[str, Tensor] | None) -> None:
    """Rank 0's BatchNorm statistics for all ranks, whose own they were in training.

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
