"""Read published checkpoints of Wan's transformer and decoders, whatever their format, without running code.

    Self-Forcing, Causal-Forcing   .pt: a dict with `generator_ema` or `generator` (the averaged one is taken)
    CausVid                        .pt: the same, or the tensors themselves
    LongLive                       .pt of its base as above, and a LoRA file merged into it
    Krea                           safetensors, `model.` before every name
    diffusers                      safetensors, one file or a folder of shards; other names
    TAEHV, Wan VAE                 .pth or safetensors; encoders are left out

Pickles are read with `weights_only`, memory-mapped. Nothing here knows sizes: `check_tensors` compares.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from engine.models.wan.keys import canonical_names, lora_target
from engine.models.weights import WeightsError

__all__ = ["files_of", "merge_lora", "read_decoder", "read_dit", "read_tensors"]

_NESTED: Final = ("generator_ema", "generator", "generator_lora", "state_dict", "model")
"""Where checkpoints keep the tensors, best first."""
_SAFETENSORS: Final = ".safetensors"
_OTHER_PARTS: Final = ("encoder.", "quant_conv.", "conv1.")
"""Of a VAE: what only encodes."""


def files_of(path: Path) -> Sequence[Path]:
    """A file, or a folder's safetensors in order.

    Raises:
        WeightsError: there are none.
    """
    if path.is_dir():
        found = sorted(path.glob(f"*{_SAFETENSORS}"))
        if not found:
            raise WeightsError(f"no safetensors in {path}")
        return found
    if not path.is_file():
        raise WeightsError(f"no weights at {path}")
    return [path]


def read_dit(path: Path, lora: Path | None = None, *, lora_scale: float = 1.0) -> dict[str, Tensor]:
    """Tensors of a transformer by Wan's names, on the CPU, in the types of the file.

    Raises:
        WeightsError: it cannot be read, or the LoRA does not fit it.
    """
    tensors = _renamed(path)
    return tensors if lora is None else merge_lora(tensors, read_tensors(lora), scale=lora_scale)


def read_decoder(path: Path) -> dict[str, Tensor]:
    """Tensors of a decoder by Wan's or TAEHV's names. Raises WeightsError."""
    return {name: tensor for name, tensor in _renamed(path).items() if not name.startswith(_OTHER_PARTS)}


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a file or a folder of shards, by the names it has there. Raises WeightsError."""
    tensors: dict[str, Tensor] = {}
    for file in files_of(path):
        read: Callable[[Path], Mapping[str, Tensor]] = (
            _read_safetensors if file.suffix == _SAFETENSORS else _read_pickle
        )
        try:
            found = read(file)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, SafetensorError) as exc:
            raise WeightsError(f"cannot read {file}: {exc}") from exc
        if both := found.keys() & tensors.keys():
            raise WeightsError(f"{file}: {min(both)} is in another shard as well")
        tensors.update(found)
    return tensors


def merge_lora(
    tensors: Mapping[str, Tensor], lora: Mapping[str, Tensor], *, scale: float
) -> dict[str, Tensor]:
    """W + scale · B·A for every pair, in float32, rounded once. `scale` is alpha divided by rank.

    Raises:
        WeightsError: a tensor is no part of a pair, or its weight is not there or has another shape.
    """
    pairs: dict[str, dict[str, Tensor]] = {}
    for name, tensor in lora.items():
        target = lora_target(name)
        if target is None:
            raise WeightsError(f"{name} is no part of a LoRA")
        pairs.setdefault(target[0], {})[target[1]] = tensor
    merged = dict(tensors)
    for name, pair in pairs.items():
        if pair.keys() != {"A", "B"} or name not in merged:
            raise WeightsError(f"the LoRA for {name} has no {'weight' if len(pair) == 2 else 'other half'}")
        weight, down, up = merged[name], pair["A"], pair["B"]
        if up.shape[-1:] != down.shape[:1] or (*up.shape[:1], *down.shape[1:]) != weight.shape:
            raise WeightsError(
                f"the LoRA for {name} is {list(up.shape)}·{list(down.shape)}, needs {list(weight.shape)}"
            )
        merged[name] = (weight.float() + scale * (up.float() @ down.float())).to(weight.dtype)
    return merged


def _renamed(path: Path) -> dict[str, Tensor]:
    tensors = read_tensors(path)
    try:
        names = canonical_names(tensors)
    except ValueError as exc:
        raise WeightsError(f"{path}: {exc}") from exc
    return {names[name]: tensor for name, tensor in tensors.items()}


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    with safe_open(file, framework="pt") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}


def _read_pickle(file: Path) -> dict[str, Tensor]:
    content: Any = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    while isinstance(content, Mapping):
        inner = next((content[key] for key in _NESTED if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        content = inner
    if not isinstance(content, Mapping):
        raise WeightsError(f"{file} holds a {type(content).__name__}, not tensors by name")
    wrong = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    if wrong:
        raise WeightsError(f"{file} holds more than tensors: {', '.join(wrong[:5])}")
    return {str(name): tensor for name, tensor in content.items()}
