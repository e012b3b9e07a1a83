"""Where tensors lie and by which kernels they are computed, as far as it decides how; what is computed is the same."""

import os

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
