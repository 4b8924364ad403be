"""Do the tensors of a weights file fit a module? Shared by all models."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

__all__ = ["WeightsError", "check_tensors"]


class WeightsError(ValueError):
    """A weights file does not fit the model; the message names what is missing, unknown or misshapen."""


def check_tensors(net: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Compare names, shapes and types with a module's.

    Raises:
        WeightsError: naming up to five of each kind of mismatch.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    problems = {
        "missing": [name for name in wanted if name not in found],
        "unknown": [name for name in found if name not in wanted],
        "other shape": [
            f"{name} is {list(found[name])}, needs {list(shape)}"
            for name, shape in wanted.items()
            if name in found and found[name] != shape
        ],
        "not a 16- or 32-bit floating point type": [
            f"{name} is {tensor.dtype}"
            for name, tensor in tensors.items()
            if name in wanted and not (tensor.is_floating_point() and tensor.element_size() in (2, 4))
        ],
    }
    parts = [
        f"{kind} ({len(names)}): {', '.join(names[:5])}{' …' if len(names) > 5 else ''}"
        for kind, names in problems.items()
        if names
    ]
    if parts:
        raise WeightsError("weights do not fit: " + "; ".join(parts))
