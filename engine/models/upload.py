"""Values of the host to a device without a wait: a copy from pageable memory makes the host wait for
everything that the device still has to do."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["upload"]


def upload(values: Tensor, device: torch.device) -> Tensor:
    """A host tensor on `device`; there when the device gets to what is launched next. The host goes on."""
    if device.type != "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)
