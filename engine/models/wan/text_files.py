"""Bring the text encoder of Wan into a model's folder, from the layout of diffusers or from Wan's own.

diffusers    text_encoder/ and tokenizer/, in the format of transformers: copied
Wan          models_t5_umt5-xxl-enc-bf16.pth and google/umt5-xxl/: renamed to that format
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from engine.models.wan.checkpoint import read_tensors, write_tensors
from engine.models.wan.keys import umt5_name
from engine.models.weights import WeightsError

__all__ = ["TEXT_ENCODER", "TOKENIZER", "add_text", "check_text"]

TEXT_ENCODER: Final = "text_encoder"
TOKENIZER: Final = "tokenizer"
_WAN_ENCODERS: Final = ("models_t5_umt5-xxl-enc-bf16.pth", "models_t5_umt5-xxl-enc-bf16.safetensors")
_WAN_TOKENIZER: Final = Path("google") / "umt5-xxl"
_CONFIG: Final = "config.json"
_KIND: Final = "umt5"
"""As transformers calls the architecture."""


def check_text(source: Path, width: int) -> None:
    """Is there, as far as can be seen at once, a text encoder whose embeddings are so wide?

    Raises:
        WeightsError: the source has neither layout, or it is another encoder's.
    """
    if _wan_encoder(source) is not None:
        return  # its tensors will say
    if missing := [part for part in (TEXT_ENCODER, TOKENIZER) if not (source / part).is_dir()]:
        raise WeightsError(
            f"{source} has no {' and no '.join(missing)}; nor {_WAN_ENCODERS[0]} with {_WAN_TOKENIZER}"
        )
    file = source / TEXT_ENCODER / _CONFIG
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        found = config["model_type"], config["d_model"]
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise WeightsError(f"{file} is no config of a text encoder: {exc!r}") from exc
    if found != (_KIND, width):
        raise WeightsError(f"{file} is of a {found[0]} with embeddings of {found[1]}, needs {_KIND}, {width}")


def add_text(source: Path, target: Path, width: int) -> None:
    """Write `text_encoder/` and `tokenizer/` into an existing folder.

    Raises:
        WeightsError: the source has neither layout, or what it holds is no UMT5 of this width.
        OSError: it can't be read or written.
    """
    check_text(source, width)
    wan = _wan_encoder(source)
    if wan is not None:
        _convert(wan, target / TEXT_ENCODER, width)
        shutil.copytree(source / _WAN_TOKENIZER, target / TOKENIZER)
        return
    for part in (TEXT_ENCODER, TOKENIZER):
        shutil.copytree(source / part, target / part)


def _wan_encoder(source: Path) -> Path | None:
    """The file of Wan's own layout, if it is whole."""
    found = next((source / name for name in _WAN_ENCODERS if (source / name).is_file()), None)
    return found if (source / _WAN_TOKENIZER).is_dir() else None


def _convert(file: Path, target: Path, width: int) -> None:
    tensors = read_tensors(file)
    names = {name: umt5_name(name) for name in tensors}
    if unknown := [name for name, found in names.items() if found is None]:
        raise WeightsError(f"{file} is no text encoder of Wan: unknown {', '.join(unknown[:5])}")
    renamed = {str(names[name]): tensor.contiguous() for name, tensor in tensors.items()}
    try:
        config = _config(renamed)
    except KeyError as exc:
        raise WeightsError(f"{file} is no text encoder of Wan: it lacks {exc}") from exc
    if config["d_model"] != width:
        raise WeightsError(f"{file} makes embeddings of {config['d_model']}, needs {width}")
    target.mkdir()
    write_tensors(renamed, target / "model.safetensors")
    (target / _CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def _config(tensors: Mapping[str, Tensor]) -> Mapping[str, Any]:
    """Of transformers' UMT5, from the tensors' shapes. Raises KeyError: one is missing."""
    block = "encoder.block.0.layer."
    vocabulary, dim = tensors["shared.weight"].shape
    buckets, heads = tensors[f"{block}0.SelfAttention.relative_attention_bias.weight"].shape
    return {
        "architectures": ["UMT5EncoderModel"],
        "model_type": _KIND,
        "vocab_size": vocabulary,
        "d_model": dim,
        "d_kv": tensors[f"{block}0.SelfAttention.q.weight"].shape[0] // heads,
        "d_ff": tensors[f"{block}1.DenseReluDense.wo.weight"].shape[1],
        "num_layers": sum(name.endswith(".0.layer_norm.weight") for name in tensors),
        "num_heads": heads,
        "relative_attention_num_buckets": buckets,
        "relative_attention_max_distance": 128,
        "feed_forward_proj": "gated-gelu",
        "dense_act_fn": "gelu_new",
        "is_gated_act": True,
        "layer_norm_epsilon": 1e-6,
        "pad_token_id": 0,
        "eos_token_id": 1,
    }
