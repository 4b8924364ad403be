"""Names of tensors in every published format → Wan's own, which are ours. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

__all__ = ["canonical_names", "diffusers_dit_name", "diffusers_vae_name", "lora_target", "umt5_name"]

_WRAPPERS: Final = re.compile(r"(_fsdp_wrapped_module|_checkpoint_wrapped_module|_orig_mod)\.")
"""What FSDP, activation checkpointing and torch.compile insert."""
_PREFIXES: Final = re.compile(r"^(module\.|model\.|diffusion_model\.|generator\.)+")

_DIT_WHOLE: Final = {
    "scale_shift_table": "head.modulation",
    "condition_embedder.time_proj": "time_projection.1",
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "proj_out": "head.head",
}
_DIT_IN_BLOCK: Final = {
    "scale_shift_table": "modulation",
    "norm2": "norm3",  # the same layer under another number: in Wan's count, 2 is the one before the FFN
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
    **{
        f"{theirs}.{part}": f"{ours}.{short}"
        for theirs, ours in (("attn1", "self_attn"), ("attn2", "cross_attn"))
        for part, short in (
            *(("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "o")),
            *(("norm_q", "norm_q"), ("norm_k", "norm_k")),
        )
    },
}
_VAE_RESIDUAL: Final = {
    "norm1": "residual.0",
    "conv1": "residual.2",
    "norm2": "residual.3",
    "conv2": "residual.6",
    "conv_shortcut": "shortcut",
}
_VAE_WHOLE: Final = {
    "post_quant_conv": "conv2",
    "decoder.conv_in": "decoder.conv1",
    "decoder.norm_out": "decoder.head.0",
    "decoder.conv_out": "decoder.head.2",
}
_VAE_PER_STAGE: Final = 4
"""Three residual blocks and an upsampling."""
_UMT5_WHOLE: Final = {
    "token_embedding.weight": "shared.weight",
    "norm.weight": "encoder.final_layer_norm.weight",
}
_UMT5_IN_BLOCK: Final = {
    **{f"attn.{part}": f"0.SelfAttention.{part}" for part in ("q", "k", "v", "o")},
    "pos_embedding.embedding": "0.SelfAttention.relative_attention_bias",
    "norm1": "0.layer_norm",
    "norm2": "1.layer_norm",
    "ffn.gate.0": "1.DenseReluDense.wi_0",
    "ffn.fc1": "1.DenseReluDense.wi_1",
    "ffn.fc2": "1.DenseReluDense.wo",
}
_DIFFUSERS_DIT: Final = "condition_embedder."
_DIFFUSERS_VAE: Final = "decoder.up_blocks."


def canonical_names(names: Iterable[str]) -> Mapping[str, str]:
    """Name in a file → Wan's name, for a transformer or a VAE in any format; prefixes of wrappers go.

    Raises:
        ValueError: two names become one.
    """
    plain = {name: _PREFIXES.sub("", _WRAPPERS.sub("", name)) for name in names}
    if any(name.startswith(_DIFFUSERS_DIT) for name in plain.values()):
        plain = {name: diffusers_dit_name(bare) for name, bare in plain.items()}
    elif any(name.startswith(_DIFFUSERS_VAE) for name in plain.values()):
        plain = {name: diffusers_vae_name(bare) for name, bare in plain.items()}
    owners: dict[str, str] = {}
    for name, target in plain.items():
        if target in owners:
            raise ValueError(f"{owners[target]} and {name} are both {target}")
        owners[target] = name
    return plain


def diffusers_dit_name(name: str) -> str:
    """A name of diffusers' `WanTransformer3DModel` → Wan's; others stay as they are."""
    if match := re.fullmatch(r"(blocks\.\d+\.)(.+)", name):
        return match[1] + _replace_stem(match[2], _DIT_IN_BLOCK)
    return _replace_stem(name, _DIT_WHOLE)


def diffusers_vae_name(name: str) -> str:
    """A name of the decoder of diffusers' `AutoencoderKLWan` → Wan's; others stay as they are."""
    if match := re.fullmatch(r"decoder\.mid_block\.resnets\.([01])\.(.+)", name):
        return f"decoder.middle.{2 * int(match[1])}.{_replace_stem(match[2], _VAE_RESIDUAL)}"
    if match := re.fullmatch(r"decoder\.mid_block\.attentions\.0\.(.+)", name):
        return f"decoder.middle.1.{match[1]}"
    if match := re.fullmatch(r"decoder\.up_blocks\.(\d+)\.resnets\.(\d+)\.(.+)", name):
        index = _VAE_PER_STAGE * int(match[1]) + int(match[2])
        return f"decoder.upsamples.{index}.{_replace_stem(match[3], _VAE_RESIDUAL)}"
    if match := re.fullmatch(r"decoder\.up_blocks\.(\d+)\.upsamplers\.0\.(.+)", name):
        return f"decoder.upsamples.{_VAE_PER_STAGE * int(match[1]) + _VAE_PER_STAGE - 1}.{match[2]}"
    return _replace_stem(name, _VAE_WHOLE)


def lora_target(name: str) -> tuple[str, str] | None:
    """A tensor of a LoRA file → (Wan's name of the weight it changes, "A" or "B"); None: no part of one."""
    match = re.fullmatch(
        r"(?:base_model\.)?(.+)\.lora_(A|B|down|up)(?:\.default)?\.weight", _WRAPPERS.sub("", name)
    )
    if match is None:
        return None
    side = {"down": "A", "up": "B"}.get(match[2], match[2])
    return diffusers_dit_name(_PREFIXES.sub("", match[1])) + ".weight", side


def umt5_name(name: str) -> str | None:
    """A name of Wan's own text encoder → that of transformers' `UMT5EncoderModel`; None: it has no such."""
    if name in _UMT5_WHOLE:
        return _UMT5_WHOLE[name]
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)\.weight", name)
    if match is None or match[2] not in _UMT5_IN_BLOCK:
        return None
    return f"encoder.block.{match[1]}.layer.{_UMT5_IN_BLOCK[match[2]]}.weight"


def _replace_stem(name: str, table: Mapping[str, str]) -> str:
    """The longest known stem gives way; what follows it (".weight") stays."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        stem = ".".join(parts[:end])
        if stem in table:
            return ".".join([table[stem], *parts[end:]])
    return name
