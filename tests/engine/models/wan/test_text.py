"""Prompts are encoded once, together, on a thread of their own; the loop does not wait for them."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from engine.models.wan.text import CachedText
from engine.steering import LogEntry
from scheduler.messages import PromptInput
from tests.engine.harness import Bench, RecordingModel
from tests.engine.models.wan.test_window import small

SHAPE = (4, 2)
CUT = LogEntry(entry="9-0", message=PromptInput(text="two blue fish"))


class Encoder:
    """Works when it is let; notes what it was given together."""

    def __init__(self, width: int = 2) -> None:
        self.width = width
        self.batches: list[list[str]] = []
        self.go, self.began = threading.Event(), threading.Event()

    def encode(self, texts: Sequence[str]) -> list[Tensor]:
        self.batches.append(list(texts))
        self.began.set()
        assert self.go.wait(30)
        if "bad" in texts:
            raise RuntimeError("this can't be encoded")
        return [torch.full((len(text.split()), self.width), float(len(text))) for text in texts]


def test_prompts_that_wait_are_encoded_together() -> None:
    """One alone, as it came first; the three that came meanwhile in one batch; none twice."""
    encoder, done = Encoder(), threading.Semaphore(0)
    cached = CachedText(encoder, SHAPE)
    assert not cached.prepare(["a"], done.release) and encoder.began.wait(30)
    for text in ("b c", "d", "b  c", "a"):
        assert not cached.prepare([text], done.release)
    assert not cached.prepare(["e", "d"], done.release)
    encoder.go.set()
    assert done.acquire(timeout=30) and done.acquire(timeout=30)
    assert encoder.batches == [["a"], ["b c", "d", "e"]]
    assert cached.prepare(["a", "b c", "d", "e"], done.release)
    out = cached(["b c", "e"])
    assert out[0].tolist() == [[3.0, 3.0]] * 2 + [[0.0, 0.0]] * 2 and len(encoder.batches) == 2


def test_what_cannot_be_encoded_is_said_where_it_is_asked_for() -> None:
    """Nobody waits for it for ever; the next one works again."""
    encoder, done = Encoder(), threading.Semaphore(0)
    encoder.go.set()
    cached = CachedText(encoder, SHAPE)
    assert not cached.prepare(["bad"], done.release) and done.acquire(timeout=30)
    assert cached.prepare(["bad"], done.release)
    with pytest.raises(RuntimeError, match="can't be encoded"):
        cached(["bad"])
    assert not cached.prepare(["good"], done.release) and done.acquire(timeout=30)
    assert cached(["good"]).shape == (1, *SHAPE)


class Preparing(RecordingModel):
    """Passes on what a recording model keeps to itself."""

    def __init__(self, inner: RecordingModel, cached: CachedText) -> None:
        super().__init__(inner=inner.inner)
        self.cached = cached

    def encode_prompts(self, texts: Sequence[str]) -> Tensor:
        return self.cached(texts)

    def prepare_prompts(self, texts: Sequence[str], on_ready: object) -> bool:
        assert callable(on_ready)
        return self.cached.prepare(texts, on_ready)


class Slow(Encoder):
    """Answers at once to all but one prompt."""

    def encode(self, texts: Sequence[str]) -> list[Tensor]:
        if "two blue fish" in texts:
            return super().encode(texts)
        self.batches.append(list(texts))
        return [torch.full((2, self.width), 0.1) for _ in texts]


@torch.inference_mode()
def test_a_session_whose_prompt_is_encoded_holds_up_no_other() -> None:
    """It goes on with the new prompt when that is there, and shows no chunk with the old one meanwhile."""
    encoder = Slow(48)
    bench = Bench(model=Preparing(small(), CachedText(encoder, (32, 48))))
    first, second = bench.open("s_a"), bench.open("s_b")
    while min(bench.made(first), bench.made(second)) < 1:
        bench._want_more()
        bench.loop.step()
    bench.feed_entries(first, (CUT,))
    at = bench.made(first)
    while bench.made(second) < at + 3:
        bench._want_more()
        assert bench.loop.step()
    assert encoder.began.is_set() and bench.made(first) <= at + 1
    encoder.go.set()
    while bench.made(first) < at + 3:
        bench._want_more()
        assert bench.loop.step()
    bench.encoders.close()
    applied = [item for part in bench.parts(first) for item in part.applied if item.entry == CUT.entry]
    assert applied and not bench.failed()
