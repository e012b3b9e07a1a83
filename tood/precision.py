"""Parts of a model that are computed in full precision whatever surrounds them."""

from contextlib import AbstractContextManager, nullcontext

import torch


def full_precision(device_type: str) -> AbstractContextManager:
    """No autocast inside. While a program is exported there is none to be undone, and ONNX has no name for the region."""
    return nullcontext() if torch.compiler.is_exporting() else torch.autocast(device_type, enabled=False)
