"""The text encoder comes from a diffusers repository or Wan's own files, and encodes as it was trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from engine.models.wan.text import CachedText, Umt5Text
from engine.models.wan.text_files import add_text
from engine.models.weights import WeightsError

DIM, FFN, HEADS, BLOCKS, LENGTH = 48, 64, 6, 2, 16
WORDS = ["<pad>", "</s>", "<unk>", *(f"▁{word}" for word in "a red fox runs two blue fish".split()), "▁"]
BLOCK = {
    **{f"attn.{part}": (DIM, DIM) for part in "qkvo"},
    **{"pos_embedding.embedding": (32, HEADS), "norm1": (DIM,), "norm2": (DIM,)},
    **{"ffn.gate.0": (FFN, DIM), "ffn.fc1": (FFN, DIM), "ffn.fc2": (DIM, FFN)},
}
TEXTS = ["a red fox runs", "two  blue fish", "a fox runs; two blue fish run", ""]


def wan_encoder() -> dict[str, Tensor]:
    """A small one, by the names in Wan's own file."""
    generator = torch.Generator().manual_seed(0)
    shapes = {f"blocks.{n}.{stem}.weight": shape for n in range(BLOCKS) for stem, shape in BLOCK.items()}
    shapes |= {"token_embedding.weight": (len(WORDS), DIM), "norm.weight": (DIM,)}
    return {
        name: torch.randn(shape, generator=generator) / shape[-1] ** 0.5 for name, shape in shapes.items()
    }


def wan_folder(path: Path, tensors: dict[str, Tensor]) -> Path:
    (path / "google" / "umt5-xxl").mkdir(parents=True)
    torch.save(tensors, path / "models_t5_umt5-xxl-enc-bf16.pth")
    (path / "google" / "umt5-xxl" / "tokenizer_config.json").write_text("{}")
    return path


def test_wans_own_encoder_is_renamed(tmp_path: Path) -> None:
    """Every tensor to the name that transformers gives it, with a config of its sizes."""
    theirs = wan_encoder()
    (tmp_path / "out").mkdir()
    add_text(wan_folder(tmp_path / "wan", theirs), tmp_path / "out")
    found = load_file(tmp_path / "out" / "text_encoder" / "model.safetensors")
    layer = "encoder.block.1.layer."
    assert len(found) == len(theirs)
    for ours, name in {
        "shared.weight": "token_embedding.weight",
        "encoder.final_layer_norm.weight": "norm.weight",
        f"{layer}0.SelfAttention.relative_attention_bias.weight": "blocks.1.pos_embedding.embedding.weight",
        f"{layer}0.SelfAttention.o.weight": "blocks.1.attn.o.weight",
        f"{layer}0.layer_norm.weight": "blocks.1.norm1.weight",
        f"{layer}1.layer_norm.weight": "blocks.1.norm2.weight",
        f"{layer}1.DenseReluDense.wi_0.weight": "blocks.1.ffn.gate.0.weight",
        f"{layer}1.DenseReluDense.wi_1.weight": "blocks.1.ffn.fc1.weight",
        f"{layer}1.DenseReluDense.wo.weight": "blocks.1.ffn.fc2.weight",
    }.items():
        assert torch.equal(found[ours], theirs[name])
    config = json.loads((tmp_path / "out" / "text_encoder" / "config.json").read_text())
    sizes = ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads")
    assert [config[name] for name in sizes] == [len(WORDS), DIM, DIM // HEADS, FFN, BLOCKS, HEADS]
    assert (tmp_path / "out" / "tokenizer" / "tokenizer_config.json").is_file()


def test_what_is_no_text_encoder_is_refused(tmp_path: Path) -> None:
    """A folder of neither layout, and tensors of something else."""
    (tmp_path / "tokenizer").mkdir()
    with pytest.raises(WeightsError, match=r"has no text_encoder; nor models_t5.* with google/umt5-xxl"):
        add_text(tmp_path, tmp_path)
    for wrong, sentence in (({"lm_head.weight": torch.zeros(1)}, "unknown lm_head"), ({}, "lacks 'shared")):
        tensors = wrong or {"norm.weight": torch.zeros(1)}
        with pytest.raises(WeightsError, match=f"no text encoder of Wan.*{sentence}"):
            add_text(wan_folder(tmp_path / sentence, tensors), tmp_path)


def test_prompts_are_encoded_as_wan_was_trained(tmp_path: Path) -> None:
    """Cropped to their length and padded with zeros, they equal what the full length gives, mask and all."""
    transformers = pytest.importorskip("transformers", reason="needs the extra `wan`")
    pytest.importorskip("ftfy", reason="needs the extra `wan`")
    tokenizers = pytest.importorskip("tokenizers")
    source = wan_folder(tmp_path / "wan", wan_encoder())
    table = [(word, -float(rank)) for rank, word in enumerate(WORDS)]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.Unigram(table, unk_id=2))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    tokenizer.save(str(source / "google" / "umt5-xxl" / "tokenizer.json"))
    names = {"tokenizer_class": "T5TokenizerFast", "pad_token": "<pad>", "eos_token": "</s>", "extra_ids": 0}
    (source / "google" / "umt5-xxl" / "tokenizer_config.json").write_text(json.dumps(names))
    (folder := tmp_path / "out").mkdir()
    add_text(source, folder)
    encoder = Umt5Text(folder, length=LENGTH, device=torch.device("cpu"), dtype=torch.float32)
    found = CachedText(encoder, (LENGTH, DIM))(TEXTS)
    ids = transformers.AutoTokenizer.from_pretrained(folder / "tokenizer")(
        [" ".join(text.split()) for text in TEXTS],
        padding="max_length",
        truncation=True,
        max_length=LENGTH,
        return_tensors="pt",
    )
    model = transformers.UMT5EncoderModel.from_pretrained(folder / "text_encoder").eval()
    mask = ids["attention_mask"]
    with torch.no_grad():
        wanted = model(ids["input_ids"], attention_mask=mask).last_hidden_state * mask[..., None]
    assert wanted.abs().amax(dim=(1, 2)).min() > 0.1 and mask.sum(dim=1).tolist()[-1] == 1
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
