"""Read published checkpoints of Wan's transformer and decoders, whatever their format, without running code.

    Self-Forcing, Causal-Forcing   .pt: a dict with `generator_ema` or `generator`
    CausVid                        .pt: the same, or the tensors themselves
    LongLive                       .pt of its base as above, and a LoRA file merged into it
    Krea                           safetensors, `model.` before every name
    diffusers                      safetensors, one file, a folder of shards or the whole repository
    TAEHV, Wan VAE                 .pth or safetensors; encoders are left out

What a file is, its first bytes say, not its name. Pickles are read with `weights_only`, memory-mapped.
Nothing here knows sizes: `check_tensors` compares.
"""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from engine.models.wan.keys import canonical_names, lora_target
from engine.models.weights import WeightsError

__all__ = ["PARTS", "files_of", "merge_lora", "read_decoder", "read_dit", "read_tensors", "write_tensors"]

PARTS: Final = ("generator_ema", "generator")
"""Of a training checkpoint: the averaged weights, and those that were trained."""
_NESTED: Final = ("generator_lora", "state_dict", "model")
"""Where else checkpoints keep tensors."""
_SAFETENSORS: Final = ".safetensors"
_INDEX: Final = ".safetensors.index.json"
_SHARD: Final = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors")
_OTHER_PARTS: Final = ("encoder.", "quant_conv.", "conv1.")
"""Of a VAE: what only encodes."""
_MAX_DEPTH: Final = 8
"""Of such places within each other."""
_MAX_HEADER: Final = 100_000_000
"""Bytes; safetensors refuses longer ones too."""


def files_of(path: Path) -> Sequence[Path]:
    """A file; or a folder's safetensors: those that its index names, else all.

    Raises:
        WeightsError: there are none, or one of them is missing.
    """
    if not path.is_dir():
        if not path.is_file():
            raise WeightsError(f"no weights at {path}")
        return [path]
    indices = sorted(path.glob(f"*{_INDEX}"))
    if len(indices) > 1:
        raise WeightsError(
            f"{path} has {len(indices)} indices of shards; name one file, or a folder with one"
        )
    found = _indexed(indices[0]) if indices else sorted(path.glob(f"*{_SAFETENSORS}"))
    if not found:
        raise WeightsError(f"no safetensors in {path}")
    missing = [file.name for file in _whole(found) if not file.is_file()]
    if missing:
        raise WeightsError(f"{path} lacks {len(missing)} of its shards: {', '.join(missing[:5])}")
    return found


def _indexed(index: Path) -> list[Path]:
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as exc:
        raise WeightsError(f"{index} is no index of shards") from exc
    if not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise WeightsError(f"{index} names files outside its folder")
    return [index.parent / name for name in sorted(names)]


def _whole(files: Sequence[Path]) -> Sequence[Path]:
    """The files, and what their numbers say that there should be besides."""
    wanted = dict.fromkeys(files)
    for file in files:
        if match := _SHARD.fullmatch(file.name):
            stem, count = match[1], int(match[3])
            wanted |= dict.fromkeys(
                file.with_name(f"{stem}-{n:05}-of-{count:05}{_SAFETENSORS}") for n in range(1, count + 1)
            )
    return list(wanted)


def read_dit(
    path: Path, lora: Path | None = None, *, lora_scale: float = 1.0, parts: Sequence[str] = PARTS
) -> dict[str, Tensor]:
    """Tensors of a transformer by Wan's names, on the CPU, in the types of the file.

    Args:
        path: a file, a folder of shards, or a diffusers repository.
        parts: which part of a training checkpoint to take, best first.

    Raises:
        WeightsError: it cannot be read, or the LoRA does not fit it.
    """
    tensors = _renamed(_inside(path, "transformer"), parts)
    return tensors if lora is None else merge_lora(tensors, read_tensors(lora), scale=lora_scale)


def read_decoder(path: Path) -> dict[str, Tensor]:
    """Tensors of a decoder by Wan's or TAEHV's names. Raises WeightsError."""
    tensors = _renamed(_inside(path, "vae"), PARTS)
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(_OTHER_PARTS)}


def _inside(path: Path, folder: str) -> Path:
    """The folder of a diffusers repository that holds this part of it."""
    is_repository = path.is_dir() and (path / folder).is_dir() and not any(path.glob(f"*{_SAFETENSORS}*"))
    return path / folder if is_repository else path


def read_tensors(path: Path, parts: Sequence[str] = PARTS) -> dict[str, Tensor]:
    """Every tensor of a file or a folder of shards, by the names it has there. Raises WeightsError."""
    tensors: dict[str, Tensor] = {}
    for file in files_of(path):
        try:
            found = _read(file, parts)
        except (WeightsError, MemoryError):
            raise
        except Exception as exc:  # whatever a damaged pickle makes torch raise
            raise WeightsError(f"cannot read {file}: {_reason(exc)}") from exc
        if both := found.keys() & tensors.keys():
            raise WeightsError(f"{file}: {min(both)} is in another shard as well")
        tensors.update(found)
    return tensors


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """As safetensors; each tensor must be contiguous and have memory of its own. Raises OSError."""
    try:
        save_file(dict(tensors), path, metadata={"format": "pt"})
    except SafetensorError as exc:  # a full disk too
        raise OSError(f"{path} can't be written: {exc}") from exc


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


def _renamed(path: Path, parts: Sequence[str]) -> dict[str, Tensor]:
    tensors = read_tensors(path, parts)
    try:
        names = canonical_names(tensors)
    except ValueError as exc:
        raise WeightsError(f"{path}: {exc}") from exc
    return {names[name]: tensor for name, tensor in tensors.items()}


def _read(file: Path, parts: Sequence[str]) -> dict[str, Tensor]:
    """A file of the kind that its first bytes tell. Raises WeightsError: nobody knows it."""
    with file.open("rb") as opened:
        head = opened.read(9)
    is_zip = head[:4] == b"PK\x03\x04"
    if is_zip and not zipfile.is_zipfile(file):
        raise WeightsError(f"cannot read {file}: it is cut off, as an unfinished download is")
    if is_zip or head[:1] == b"\x80":  # the latter as torch wrote before 1.6: not to be mapped
        return _tensors_in(file, torch.load(file, map_location="cpu", weights_only=True, mmap=is_zip), parts)
    if head[8:] == b"{" and int.from_bytes(head[:8], "little") < _MAX_HEADER or file.suffix == _SAFETENSORS:
        return _read_safetensors(file)
    raise WeightsError(f"{file} is neither a file of torch nor safetensors")


def _reason(exc: Exception) -> str:
    """In a line. What torch says to a refused pickle ends in the advice to read it without protection."""
    text = str(exc)
    if match := re.search(r"Unsupported (?:global|class|operand)[^\n]*?([\w.]+\.\w+)", text):
        return f"it holds objects ({match[1]}), and only tensors are read: objects can run code"
    if isinstance(exc, pickle.UnpicklingError):
        return "it is damaged, or no checkpoint"
    if isinstance(exc, SafetensorError):
        return f"{text}; is it whole?"
    return " ".join(text.split())[:200]


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    with safe_open(file, framework="pt") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}


def _tensors_in(file: Path, content: Any, parts: Sequence[str]) -> dict[str, Tensor]:
    """The tensors of an unpickled checkpoint. Raises WeightsError: it is something else."""
    for _ in range(_MAX_DEPTH):  # one may hold itself
        if not isinstance(content, Mapping):
            break
        found = (content.get(key) for key in (*parts, *_NESTED))
        inner = next((value for value in found if isinstance(value, Mapping) and value), None)
        if inner is None:
            break
        content = inner
    if not isinstance(content, Mapping):
        raise WeightsError(f"{file} holds a {type(content).__name__}, not tensors by name")
    wrong = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    if wrong or not content:
        raise WeightsError(f"{file} has none of {', '.join(parts)}, but {', '.join(wrong[:5]) or 'nothing'}")
    return {str(name): tensor for name, tensor in content.items()}
