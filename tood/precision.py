"""In which precision arithmetic is done: as a configuration says, or in full whatever surrounds it."""

from contextlib import AbstractContextManager, nullcontext

import torch


def full_precision(device_type: str) -> AbstractContextManager:
    """No autocast inside; what a GPU's convolutions make of float32 is torch's default, TF32.

    While a program is exported there is none to be undone, and ONNX has no name for the region.
    """
    return nullcontext() if torch.compiler.is_exporting() else torch.autocast(device_type, enabled=False)


def mixed_precision(name: str, device_type: str) -> AbstractContextManager:
    """name: train.precision. Under "bf16" products and convolutions are computed in bfloat16."""
    return torch.autocast(device_type, torch.bfloat16, enabled=name == "bf16")
