"""Where tensors lie and by which kernels they are computed, as far as it decides how; what is computed is the same."""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def known_to_host(values: Tensor) -> bool:
    """Whether the host sees what a tensor holds without waiting for a device, so that by it work may be left out.

    An accelerator has done all of that work before a host, told which part is needed, could send it the rest.
    """
    return values.device.type == "cpu"


def choose_kernels(*, same_bits: bool, shapes_recur: bool = True) -> None:
    """For this process: kernels that give the same bits each time, without their costly fill of fresh memory; or the quickest.

    shapes_recur: then it pays that cuDNN tries its kernels on each shape that is new.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # heeded from the first use of CUDA on
    torch.use_deterministic_algorithms(same_bits)
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.backends.cudnn.benchmark = not same_bits and shapes_recur


@contextmanager
def kernels(*, same_bits: bool, shapes_recur: bool = True) -> Iterator[None]:
    """`choose_kernels` for a while."""
    mode, warn_only = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    choose_kernels(same_bits=same_bits, shapes_recur=shapes_recur)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(mode, warn_only=warn_only)
        torch.backends.cudnn.benchmark = benchmark


@contextmanager
def any_order() -> Iterator[None]:
    """Allow what torch's deterministic mode refuses, or does at length; for what is used of it no order of additions matters."""
    mode, warn_only = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    if not mode:
        yield
        return
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(mode, warn_only=warn_only)


def pick(values: Tensor, index: Tensor) -> Tensor:
    """values [..., n] at index int64 [..., k] of 0 .. n - 1, equal in all dimensions before: a gather.

    No host waits for its gradient: in torch's deterministic mode that of CUDA's own gather builds and sorts a table of all
    coordinates, for which it asks the host up to torch 2.13; that of an index into a flat tensor sorts the index alone.
    """
    if known_to_host(values) or not torch.are_deterministic_algorithms_enabled():
        return values.gather(-1, index)
    rows = torch.arange(math.prod(index.shape[:-1]), device=index.device).view(*index.shape[:-1], 1)
    return values.reshape(-1)[rows * values.shape[-1] + index]
