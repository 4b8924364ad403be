"""A Wan model on disk: one folder with everything that serving it takes, as `turboserve model add` makes it.

    model.json                    format, preset, source, licence; fp8 if its blocks are to use 8-bit floats
    dit.safetensors               the transformer by Wan's names, any LoRA merged
    decoder.safetensors           TAEHV or the decoder of Wan's VAE
    text_encoder/, tokenizer/     UMT5 in the format of transformers

Weights from elsewhere come in through `checkpoint.py`; what is here has been checked against the preset.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file

from engine.models.wan.checkpoint import read_decoder, read_dit, read_tensors
from engine.models.wan.config import PRESETS, TINY, WanConfig
from engine.models.wan.model import WanModel, empty_decoder, empty_dit
from engine.models.wan.text import HashedText, TextEncoder, Umt5Text
from engine.models.weights import WeightsError, check_tensors

__all__ = ["MODELS_DIR", "add_model", "load_wan", "read_manifest"]

MODELS_DIR: Final = Path("~/.local/share/turboserve/models")
"""Where models are looked for when none is named."""
_MANIFEST: Final = "model.json"
_DIT: Final = "dit.safetensors"
_DECODER: Final = "decoder.safetensors"
_TEXT: Final = ("text_encoder", "tokenizer")
_FORMAT: Final = 1


def add_model(
    config: WanConfig,
    target: Path,
    *,
    dit: Path,
    decoder: Path,
    lora: Path | None = None,
    lora_scale: float = 1.0,
    text: Path | None = None,
) -> None:
    """Check a checkpoint against a preset and write the folder that serves it, whole or not at all.

    Raises:
        WeightsError: something cannot be read, does not fit, or the folder is there already.
        OSError: it cannot be written.
    """
    if target.exists():
        raise WeightsError(f"{target} is there already")
    parts = {_DIT: read_dit(dit, lora, lora_scale=lora_scale), _DECODER: read_decoder(decoder)}
    for net, name, path in ((empty_dit(config), _DIT, dit), (empty_decoder(config), _DECODER, decoder)):
        try:
            check_tensors(net, parts[name])
        except WeightsError as exc:
            raise WeightsError(f"{path} is not for {config.name}: {exc}") from exc
    if text is not None and (missing := [part for part in _TEXT if not (text / part).is_dir()]):
        raise WeightsError(f"{text} has no {' and no '.join(missing)}")
    building = target.with_name(f".{target.name}.{os.getpid()}")
    building.mkdir(parents=True)
    try:
        for name, tensors in parts.items():
            save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, building / name)
        if text is not None:
            for part in _TEXT:
                shutil.copytree(text / part, building / part)
        manifest = {
            "format": _FORMAT,
            "preset": config.name,
            "source": config.source,
            "licence": config.licence,
        }
        (building / _MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        building.rename(target)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise


def read_manifest(folder: Path) -> Mapping[str, Any]:
    """What `model.json` says. Raises WeightsError: the folder holds no model."""
    try:
        found = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise WeightsError(f"no model in {folder}: {exc}") from exc
    if not isinstance(found, dict) or found.get("format") != _FORMAT or found.get("preset") not in PRESETS:
        raise WeightsError(f"{folder / _MANIFEST} is of no kind known here")
    return found


def load_wan(config: WanConfig, device: torch.device, weights: Path | None) -> WanModel:
    """The registry's loader: a folder made by `add_model`; `wan-tiny` alone also makes random weights.

    Raises:
        WeightsError: there is no such folder, or what it holds does not fit.
    """
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    if weights is None and config is TINY:
        return WanModel.random(0, config=config, device=device, dtype=dtype)
    folder = weights or MODELS_DIR.expanduser() / config.name
    if not folder.is_dir():
        raise WeightsError(
            f"{config.name}: no folder {folder}; its weights are published by {config.source}, and "
            f"`turboserve model add` makes the folder from them"
        )
    manifest = read_manifest(folder)
    preset, fp8 = manifest["preset"], manifest.get("fp8", False)
    if preset != config.name:
        raise WeightsError(f"{folder} holds {preset}, not {config.name}")
    if not isinstance(fp8, bool):
        raise WeightsError(f"fp8 in {folder / _MANIFEST} must be true or false")
    text = _text_encoder(config, folder, device, dtype)
    config = replace(config, fp8=fp8)
    return WanModel.from_tensors(
        read_tensors(folder / _DIT),
        read_tensors(folder / _DECODER),
        text,
        config=config,
        weights_hash=_digest(config, folder),
        device=device,
        dtype=dtype,
    )


def _text_encoder(config: WanConfig, folder: Path, device: torch.device, dtype: torch.dtype) -> TextEncoder:
    if config is TINY:
        return HashedText(config.dit.text_shape)
    return Umt5Text(folder, length=config.dit.text_shape[0], device=device, dtype=dtype)


def _digest(config: WanConfig, folder: Path) -> str:
    """Of everything that decides what a state means: preset, transformer, decoder."""
    digest = hashlib.sha256(repr(config).encode())
    for name in (_DIT, _DECODER):
        with (folder / name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
