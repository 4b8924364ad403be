"""`turboserve profile`: measure a model on a device and write what it costs as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from engine.models.registry import load_model
from engine.profile import profile
from launch.config import ProfileConfig
from launch.outputs import check_writable
from launch.settings import SettingsError
from launch.supervisor import StartError

__all__ = ["run"]


def run(config: ProfileConfig) -> int:
    """Measure and write.

    Raises:
        SettingsError: the device is not here.
        StartError: the model can't be loaded, or the file can't be written.
    """
    device = _device(config.device)
    check_writable(config.json)
    torch.set_num_threads(config.threads)
    weights = None if config.weights is None else Path(config.weights)
    try:
        model = load_model(config.model, device=device, weights=weights)
        result = profile(model, sessions=config.sessions)
        Path(config.json).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    except (ValueError, MemoryError, OSError, torch.OutOfMemoryError) as exc:
        raise StartError(str(exc)) from exc
    full = ", ".join(f"{ms:.1f}" for ms in result["costs"]["pass_ms"][-1])
    print(f"{config.model} on {config.device}: a pass takes {full} ms with 1, 2, ... sessions")
    print(f"written to {config.json}")
    return 0


def _device(name: str) -> torch.device:
    """Raises SettingsError: there is none such."""
    if name == "cpu":
        return torch.device(name)
    if not torch.cuda.is_available():
        raise SettingsError(f"device is {name}, but torch finds no CUDA device here")
    number = name.partition(":")[2] or "0"
    if not number.isdecimal() or int(number) >= torch.cuda.device_count():
        raise SettingsError(
            f"device is {name}, but torch finds cuda:0 to cuda:{torch.cuda.device_count() - 1}"
        )
    return torch.device(name)
