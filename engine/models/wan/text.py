"""Prompts → the text embeddings that Wan's transformer was trained with, each computed once.

Wan attends to all 512 positions of a prompt, and those behind its end are zeros: part of what it was trained
with. Encoding only the true length and padding with zeros afterwards gives the same embeddings for an eighth
of the work.
"""

from __future__ import annotations

import hashlib
import html
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import torch
from torch import Tensor

from engine.noise import gaussian

__all__ = ["CachedText", "HashedText", "TextEncoder", "Umt5Text", "clean"]

_KEPT_PROMPTS: Final = 256
"""1 GB in bfloat16 at full size, in host memory."""
_BATCH: Final = 16
"""Prompts that are encoded together."""
_OWN_EMBEDDINGS: Final = "encoder.embed_tokens.weight"
"""Another name of `shared.weight`, which alone is in the files. With the config that Wan's repositories have
("tie_word_embeddings": false) transformers 5.1 does not join the two and fills this one in at random."""


class TextEncoder(Protocol):
    """Prompts of any text → embeddings of their true length."""

    def encode(self, texts: Sequence[str]) -> list[Tensor]:
        """One [length, E] for each text, on any device; length ≤ T."""


def clean(text: str) -> str:
    """A prompt as Wan's tokenizer gets it: entities resolved, white space single."""
    return " ".join(html.unescape(html.unescape(text)).split())


class HashedText:
    """No language model: every word has a fixed random vector. For models with random weights."""

    def __init__(self, text_shape: tuple[int, int]) -> None:
        self._length, self._dim = text_shape

    def encode(self, texts: Sequence[str]) -> list[Tensor]:
        """The same word gives the same vector anywhere."""
        return [self._encode(text.lower().split()[: self._length]) for text in texts]

    def _encode(self, words: Sequence[str]) -> Tensor:
        seeds = (int.from_bytes(hashlib.sha256(w.encode()).digest()[:7], "big") for w in words)
        rows = [torch.from_numpy(gaussian((self._dim,), seed=seed, index=0, step=0)) for seed in seeds]
        return torch.stack(rows) if rows else torch.zeros(0, self._dim)


class Umt5Text:
    """UMT5 through `transformers` (the extra `wan`), from a folder with `text_encoder` and `tokenizer`.

    Raises:
        ValueError: the extra is not installed, or the folder holds no such model of this width.
    """

    def __init__(
        self, folder: Path, *, text_shape: tuple[int, int], device: torch.device, dtype: torch.dtype
    ) -> None:
        """text_shape: (T, E)."""
        try:
            from ftfy import fix_text
            from transformers import AutoTokenizer, UMT5EncoderModel
        except ImportError as exc:
            raise ValueError("prompts of Wan need transformers: pip install 'turboserve[wan]'") from exc
        self._length, width = text_shape
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
            model, found = UMT5EncoderModel.from_pretrained(
                folder / "text_encoder", local_files_only=True, dtype=dtype, output_loading_info=True
            )
            model.set_input_embeddings(model.get_input_embeddings())  # see _OWN_EMBEDDINGS
            self._model: Any = model.eval().requires_grad_(False).to(device)
        except Exception as exc:  # also what torch and safetensors raise
            reason = " ".join(str(exc).split()) or type(exc).__name__
            raise ValueError(f"no text encoder can be loaded from {folder}: {reason[:400]}") from exc
        # transformers would fill in random numbers, and only warn.
        if missing := sorted(set(found["missing_keys"]) - {_OWN_EMBEDDINGS}):
            raise ValueError(
                f"the text encoder in {folder} lacks {len(missing)} tensors of UMT5: {', '.join(missing[:5])}"
            )
        if model.config.d_model != width:
            raise ValueError(f"the text encoder in {folder} is {model.config.d_model} wide, needs {width}")
        self._device, self._fix = device, fix_text

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> list[Tensor]:
        """All in one batch, cropped to the longest."""
        tokens = self._tokenizer(
            [clean(self._fix(text)) for text in texts],
            padding="longest",
            truncation=True,
            max_length=self._length,
            add_special_tokens=True,
            return_tensors="pt",
        ).to(self._device)
        mask = tokens["attention_mask"]
        out: Tensor = self._model(tokens["input_ids"], attention_mask=mask).last_hidden_state
        return [row[:length] for row, length in zip(out, mask.sum(dim=1).tolist(), strict=True)]


class CachedText:
    """The embeddings of the prompts used last, in host memory, without their padding. Thread-safe."""

    def __init__(self, encoder: TextEncoder, text_shape: tuple[int, int]) -> None:
        self._encoder, self._shape = encoder, text_shape
        self._encoding = threading.Lock()
        """Held while the encoder works: tokenizers are not for two threads at once."""
        self._lock = threading.Lock()
        """Held for the rest."""
        self._known: OrderedDict[str, Tensor] = OrderedDict()
        self._failed: set[str] = set()
        """They are tried again when they are asked for."""
        self._waiting: dict[str, None] = {}
        self._on_ready: Callable[[], None] = lambda: None
        self._is_working = False

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Prompts → [B, T, E] float32 on the host, zeros behind each prompt's end. New ones share a batch."""
        cleaned = [clean(text) for text in texts]
        with self._lock:
            found = {text: self._known[text] for text in cleaned if text in self._known}
            self._failed.difference_update(cleaned)
        found |= self._encode([text for text in dict.fromkeys(cleaned) if text not in found])
        out = torch.zeros(len(cleaned), *self._shape)
        for row, text in zip(out, cleaned, strict=True):
            row[: len(found[text])] = found[text]
        self._keep(found)
        return out

    def prepare(self, texts: Sequence[str], on_ready: Callable[[], None]) -> bool:
        """See `PreparesPrompts.prepare_prompts`."""
        with self._lock:
            cleaned = [clean(text) for text in texts]
            new = [text for text in cleaned if text not in self._known and text not in self._failed]
            if not new:
                return True
            self._waiting |= dict.fromkeys(new)
            self._on_ready = on_ready
            if not self._is_working:
                self._is_working = True
                threading.Thread(target=self._work, name="prompts", daemon=True).start()
        return False

    def _work(self) -> None:
        """Until nothing waits: everything that does at a time, in one batch."""
        while batch := self._next_batch():
            try:
                self._keep(self._encode(batch))
            except Exception:  # whoever asks for it next will see
                with self._lock:
                    self._failed.update(batch)
            with self._lock:
                for text in batch:
                    self._waiting.pop(text, None)
            self._on_ready()

    def _next_batch(self) -> list[str]:
        with self._lock:
            batch = list(self._waiting)[:_BATCH]
            self._is_working = bool(batch)
            return batch

    def _encode(self, texts: Sequence[str]) -> dict[str, Tensor]:
        if not texts:
            return {}
        with self._encoding:
            return dict(zip(texts, (x.cpu() for x in self._encoder.encode(texts)), strict=True))

    def _keep(self, found: dict[str, Tensor]) -> None:
        with self._lock:
            for text, embedding in found.items():
                self._known[text] = embedding
                self._known.move_to_end(text)
            while len(self._known) > _KEPT_PROMPTS:
                self._known.popitem(last=False)
