"""Does a device still work? A GPU that has had a fault does nothing any more for this process: every call
fails, whichever session it is for."""

from __future__ import annotations

import torch

__all__ = ["DeviceLost", "check_device"]


class DeviceLost(RuntimeError):
    """The device does nothing any more: the engine must end, and no session is to blame."""


def check_device(device: torch.device, error: BaseException) -> None:
    """To be called when something has failed with `error`; waits for the device.

    On the compute thread: nobody may wait for a device while that thread captures a graph.

    Raises:
        DeviceLost: the device is the reason.
    """
    if device.type != "cuda":
        return
    try:
        torch.cuda.synchronize(device)
    except RuntimeError as exc:
        raise DeviceLost(f"{device} does not work any more: {exc}") from error
