"""The text encoder comes from a diffusers repository or Wan's own files, and encodes as it was trained."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import ClassVar

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from engine.models.wan.text import CachedText, Umt5Text
from engine.models.wan.text_files import add_text, check_text
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
    add_text(wan_folder(tmp_path / "wan", theirs), tmp_path / "out", DIM)
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
        check_text(tmp_path, DIM)
    for wrong, sentence in (({"lm_head.weight": torch.zeros(1)}, "unknown lm_head"), ({}, "lacks 'shared")):
        tensors = wrong or {"norm.weight": torch.zeros(1)}
        with pytest.raises(WeightsError, match=f"no text encoder of Wan.*{sentence}"):
            add_text(wan_folder(tmp_path / sentence, tensors), tmp_path, DIM)
    with pytest.raises(WeightsError, match="makes embeddings of 48, needs 4096"):
        add_text(wan_folder(tmp_path / "narrow", wan_encoder()), tmp_path, 4096)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ('{"model_type": "t5", "d_model": 48}', "is of a t5 with embeddings of 48, needs umt5, 48"),
        ('{"model_type": "umt5", "d_model": 32}', "is of a umt5 with embeddings of 32, needs umt5, 48"),
        ("{}", "is no config of a text encoder"),
        ("[", "is no config of a text encoder"),
    ],
)
def test_another_text_encoder_is_refused_before_anything_is_copied(
    config: str, sentence: str, tmp_path: Path
) -> None:
    """A repository may hold one of another model."""
    for part in ("wrong/text_encoder", "wrong/tokenizer", "out"):
        (tmp_path / part).mkdir(parents=True)
    (tmp_path / "wrong" / "text_encoder" / "config.json").write_text(config)
    with pytest.raises(WeightsError, match=sentence):
        add_text(tmp_path / "wrong", tmp_path / "out", DIM)
    assert not [*(tmp_path / "out").iterdir()]


class Encoder(torch.nn.Module):
    """As transformers' `UMT5EncoderModel`, where it does not join the two names of the embeddings."""

    missing: ClassVar[set[str]] = {"encoder.embed_tokens.weight"}
    error: ClassVar[Exception | None] = None

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(d_model=DIM)
        self.shared, self.own = torch.nn.Embedding(4, DIM), torch.nn.Embedding(4, DIM)

    @classmethod
    def from_pretrained(cls, path: Path, **settings: object) -> tuple[Encoder, dict[str, object]]:
        assert settings["output_loading_info"] and settings["local_files_only"]
        if cls.error is not None:
            raise cls.error
        return cls(), {"missing_keys": cls.missing}

    def get_input_embeddings(self) -> torch.nn.Embedding:
        return self.shared

    def set_input_embeddings(self, embeddings: torch.nn.Embedding) -> None:
        self.own = embeddings

    def forward(self, ids: Tensor, attention_mask: Tensor) -> object:
        return SimpleNamespace(last_hidden_state=self.own(ids))


class Tokens(dict[str, Tensor]):
    def to(self, device: torch.device) -> Tokens:
        return self


def tokenize(texts: Sequence[str], **settings: object) -> Tokens:
    """A word is a token."""
    ids = [[3] * len(text.split()) for text in texts]
    longest = max(map(len, ids))
    table = torch.tensor([row + [0] * (longest - len(row)) for row in ids])
    return Tokens(input_ids=table, attention_mask=(table > 0).long())


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> type[Encoder]:
    """What is asked of the extra `wan`, without it; each test gets a class of its own."""
    kind = type("Own", (Encoder,), {})
    tokenizer = SimpleNamespace(from_pretrained=lambda *path, **settings: tokenize)
    transformers, ftfy = ModuleType("transformers"), ModuleType("ftfy")
    vars(transformers).update(AutoTokenizer=tokenizer, UMT5EncoderModel=kind)
    vars(ftfy).update(fix_text=str)
    monkeypatch.setitem(sys.modules, "transformers", transformers)
    monkeypatch.setitem(sys.modules, "ftfy", ftfy)
    return kind


def umt5(*, width: int = DIM) -> Umt5Text:
    return Umt5Text(Path("x"), text_shape=(LENGTH, width), device=torch.device("cpu"), dtype=torch.float32)


def test_the_encoder_reads_the_embeddings_of_the_file(stand_in: type[Encoder]) -> None:
    """Some versions of transformers give it random ones of its own, and prompts mean nothing."""
    encoder = umt5()
    (found,) = encoder.encode(["a fox"])
    assert found.shape == (2, DIM) and torch.equal(found[0], encoder._model.shared.weight[3])


def test_a_text_encoder_that_lacks_weights_is_refused(stand_in: type[Encoder]) -> None:
    """transformers would fill them in at random; what it can't read at all is one sentence too."""
    stand_in.missing = {"encoder.block.1.layer.0.SelfAttention.q.weight"}
    with pytest.raises(ValueError, match=r"in x lacks 1 tensors of UMT5: encoder\.block\.1\.layer\.0"):
        umt5()
    stand_in.missing = set()
    with pytest.raises(ValueError, match=f"is {DIM} wide, needs 4096"):
        umt5(width=4096)
    for error in (RuntimeError("shapes\n  differ"), SafetensorError("cut\n  off"), KeyError("x")):
        stand_in.error = error
        with pytest.raises(
            ValueError, match="no text encoder can be loaded from x: (shapes differ|cut off|'x')"
        ):
            umt5()


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
    add_text(source, folder, DIM)
    config = folder / "text_encoder" / "config.json"  # as Wan's repositories have it
    config.write_text(json.dumps({**json.loads(config.read_text()), "tie_word_embeddings": False}))
    encoder = Umt5Text(folder, text_shape=(LENGTH, DIM), device=torch.device("cpu"), dtype=torch.float32)
    found = CachedText(encoder, (LENGTH, DIM))(TEXTS)
    ids = transformers.AutoTokenizer.from_pretrained(folder / "tokenizer")(
        [" ".join(text.split()) for text in TEXTS],
        padding="max_length",
        truncation=True,
        max_length=LENGTH,
        return_tensors="pt",
    )
    model = transformers.UMT5EncoderModel.from_pretrained(folder / "text_encoder").eval()
    model.set_input_embeddings(model.get_input_embeddings())
    mask = ids["attention_mask"]
    with torch.no_grad():
        wanted = model(ids["input_ids"], attention_mask=mask).last_hidden_state * mask[..., None]
    assert wanted.abs().amax(dim=(1, 2)).min() > 0.1 and mask.sum(dim=1).tolist()[-1] == 1
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
