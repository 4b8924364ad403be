"""A Wan model on disk: one folder with everything that serving it takes, as `turboserve model add` makes it.

    model.json                    format, preset, source, licence; settings that are not the preset's
    dit.safetensors               the transformer by Wan's names, any LoRA merged
    decoder.safetensors           TAEHV or the decoder of Wan's VAE
    text_encoder/, tokenizer/     UMT5 in the format of transformers
    digests.json                  of the weights, each with the size and the time of its file

Weights from elsewhere come in through `checkpoint.py`; what is here has been checked against the preset.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from engine.models.wan.checkpoint import read_decoder, read_dit, read_tensors, write_tensors
from engine.models.wan.config import PRESETS, TINY, WanConfig, changed
from engine.models.wan.model import WanModel, empty_decoder, empty_dit
from engine.models.wan.text import HashedText, TextEncoder, Umt5Text
from engine.models.wan.text_files import TEXT_ENCODER, TOKENIZER, add_text, check_text
from engine.models.weights import WeightsError, check_tensors

__all__ = ["MODELS_DIR", "Sources", "add_model", "load_wan", "read_manifest", "settings_of"]

MODELS_DIR: Final = Path("~/.local/share/turboserve/models")
"""Where models are looked for when none is named."""
_MANIFEST: Final = "model.json"
_DIT: Final = "dit.safetensors"
_DECODER: Final = "decoder.safetensors"
_DIGESTS: Final = "digests.json"
_FORMAT: Final = 1
_ABOUT: Final = frozenset({"format", "preset", "source", "licence"})
"""Keys of the manifest that are no settings of the model."""
_TEXT_DEVICE: Final = "text_device"
"""Where prompts are encoded, if not where the model is."""
_VAE_ONLY: Final = "conv2.weight"
"""Wan's VAE has it, TAEHV has not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """What a model is made of."""

    dit: Path
    """A file, a folder of shards, or a diffusers repository."""
    decoder: Path
    lora: Path | None = None
    lora_scale: float = 1.0
    text: Path | None = None
    """As in `add_text`."""
    parts: tuple[str, ...] | None = None
    """As in `read_dit`; None: as the preset says."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Settings that are not the preset's, and `text_device`."""


def add_model(
    config: WanConfig, target: Path, sources: Sources, *, say: Callable[[str], None] = lambda line: None
) -> None:
    """Check a checkpoint against a preset and write the folder that serves it, whole or not at all.

    `say` hears of each step.

    Raises:
        ValueError: the settings are none, or have values that they can't have.
        WeightsError: (a ValueError) something cannot be read, does not fit, or the folder is there already.
        OSError: it cannot be written.
    """
    if target.exists():
        raise WeightsError(f"{target} is there already")
    settings_of(config, sources.changes)
    width = config.dit.text_shape[1]
    if sources.text is not None:
        check_text(sources.text, width)  # before minutes are spent on the rest
    dit = read_dit(
        sources.dit, sources.lora, lora_scale=sources.lora_scale, parts=sources.parts or config.parts
    )
    say(f"transformer: {_size(dit)}{' with a LoRA merged' if sources.lora else ''}")
    if config.lora and sources.lora is None:
        say(f"no --lora: right only if {config.lora} is in these weights already")
    decoder = read_decoder(sources.decoder)
    kind = "wan_vae" if _VAE_ONLY in decoder else "taehv"
    say(f"decoder: {kind}, {_size(decoder)}")
    changes = dict(sources.changes)
    if kind != config.decoder:
        changes["decoder"] = kind
    checked, _ = settings_of(config, changes)
    _check(empty_dit(checked), dit, f"{sources.dit} is not for {config.name}")
    _check(empty_decoder(checked), decoder, f"{sources.decoder} is no decoder for {config.name}")
    with _built(target) as folder:
        for name, tensors in ((_DIT, dit), (_DECODER, decoder)):
            say(f"writing {name}")
            write_tensors(_own(tensors), folder / name)
        if sources.text is not None:
            say("text encoder: copying, which can take minutes")
            add_text(sources.text, folder, width)
        elif config is not TINY:
            say(
                f"no text encoder: add {TEXT_ENCODER}/ and {TOKENIZER}/ to the folder before it can be served"
            )
        manifest = {
            "format": _FORMAT,
            "preset": config.name,
            "source": config.source,
            "licence": config.licence,
            **changes,
        }
        (folder / _MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        say("digests of what was written")
        _digest(checked, folder)


def _check(net: torch.nn.Module, tensors: Mapping[str, Tensor], sentence: str) -> None:
    try:
        check_tensors(net, tensors)
    except WeightsError as exc:
        raise WeightsError(f"{sentence}: {exc}") from exc


@contextmanager
def _built(target: Path) -> Iterator[Path]:
    """A folder that takes its name at the end, or is gone."""
    building = target.with_name(f".{target.name}.{os.getpid()}")
    building.mkdir(parents=True)
    try:
        yield building
        building.rename(target)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise


def _own(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous, and each with memory of its own, as the format wants."""
    owners: set[int] = set()
    out: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        whole = tensor.contiguous()
        storage = whole.untyped_storage()
        is_shared = storage.data_ptr() in owners or storage.nbytes() != whole.nbytes
        out[name] = whole.clone() if is_shared else whole
        owners.add(storage.data_ptr())
    return out


def _size(tensors: Mapping[str, Tensor]) -> str:
    return f"{len(tensors)} tensors, {sum(t.nbytes for t in tensors.values()) / 1e9:.2f} GB"


def settings_of(config: WanConfig, changes: Mapping[str, Any]) -> tuple[WanConfig, torch.device | None]:
    """The config with these changes, and where prompts are encoded. Raises ValueError."""
    own = {name: value for name, value in changes.items() if name != _TEXT_DEVICE}
    device = changes.get(_TEXT_DEVICE)
    if device is not None and not re.fullmatch(r"cpu|cuda(:\d{1,2})?", str(device)):
        raise ValueError(f"{_TEXT_DEVICE} must be cpu or cuda, not {device!r}")
    return changed(config, own), None if device is None else torch.device(device)


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
    if manifest["preset"] != config.name:
        raise WeightsError(f"{folder} holds {manifest['preset']}, not {config.name}")
    try:
        changes = {name: value for name, value in manifest.items() if name not in _ABOUT}
        served, text_device = settings_of(config, changes)
    except ValueError as exc:
        raise WeightsError(f"{folder / _MANIFEST}: {exc}") from exc
    text = _text_encoder(config, folder, text_device or device, dtype)
    return WanModel.from_tensors(
        read_tensors(folder / _DIT),
        read_tensors(folder / _DECODER),
        text,
        config=served,
        weights_hash=_digest(served, folder),
        device=device,
        dtype=dtype,
    )


def _text_encoder(config: WanConfig, folder: Path, device: torch.device, dtype: torch.dtype) -> TextEncoder:
    if config is TINY:
        return HashedText(config.dit.text_shape)
    return Umt5Text(folder, text_shape=config.dit.text_shape, device=device, dtype=dtype)


def _digest(config: WanConfig, folder: Path) -> str:
    """Of everything that decides what a state means: preset, transformer, decoder.

    To read 28 GB once more at every start takes long: files that look as they did when it was kept are not.
    """
    kept = _kept_digests(folder)
    found = {name: _file_digest(folder / name, kept.get(name)) for name in (_DIT, _DECODER)}
    if found != kept:
        with suppress(OSError):  # a folder that can't be written to is read at each start
            _keep_digests(folder, found)
    digest = hashlib.sha256(config.meaning().encode())
    for name in (_DIT, _DECODER):
        digest.update(bytes.fromhex(found[name]["sha256"]))
    return digest.hexdigest()


def _file_digest(path: Path, kept: Any) -> dict[str, Any]:
    """What is kept of a file, if it is of this one."""
    status = path.stat()
    seen = {"size": status.st_size, "mtime_ns": status.st_mtime_ns}
    if isinstance(kept, dict) and kept.keys() == {*seen, "sha256"} and seen.items() <= kept.items():
        if re.fullmatch(r"[0-9a-f]{64}", str(kept["sha256"])):
            return kept
    with path.open("rb") as file:
        return {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), **seen}


def _kept_digests(folder: Path) -> dict[str, Any]:
    try:
        kept = json.loads((folder / _DIGESTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return kept if isinstance(kept, dict) else {}


def _keep_digests(folder: Path, digests: Mapping[str, Any]) -> None:
    """Whole or not at all: engines start side by side."""
    unfinished = folder / f".{_DIGESTS}.{os.getpid()}"
    unfinished.write_text(json.dumps(digests, indent=1) + "\n", encoding="utf-8")
    unfinished.replace(folder / _DIGESTS)
