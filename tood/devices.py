"""Where tensors lie and by which kernels they are computed, as far as it decides how; what is computed is the same."""

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


def choose_kernels(*, same_bits: bool) -> None:
    """For this process: kernels that give the same bits each time, without their costly fill of fresh memory; or the quickest."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # heeded from the first use of CUDA on
    torch.use_deterministic_algorithms(same_bits)
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.backends.cudnn.benchmark = not same_bits


@contextmanager
def any_order() -> Iterator[None]:
    """Allow operations that torch's deterministic mode refuses; for those whose results do not depend on the order."""
    mode, warn_only = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(mode, warn_only=warn_only)
