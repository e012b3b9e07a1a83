"""Where tensors lie, as far as it decides how something is computed; what is computed is the same."""

from torch import Tensor


def known_to_host(values: Tensor) -> bool:
    """Whether the host sees what a tensor holds without waiting for a device, so that by it work may be left out.

    An accelerator has done all of that work before a host, told which part is needed, could send it the rest.
    """
    return values.device.type == "cpu"
