"""What a session should show: the shipped model alone in this process, with a seed and (chunk, inputs).

The frames are encoded as an engine does and decoded as a client does, so that what is left to compare is
the picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from engine.models.registry import load_model
from gateway.client import Chunk
from gateway.client_chunks import ChunkDecoder
from scheduler.messages import Input, ResetInput
from tests.engine.harness import BATCHING_COSTS, Bench, RecordingModel

Frames = NDArray[np.uint8]
"""[frames, height, width, 3]"""
REBUILT = 2.0
"""Grey levels, on average over a chunk, after a rebuild when the past had left the window; another picture is
twenty."""


@dataclass(frozen=True)
class Shown:
    """One chunk at a client."""

    seq: int
    rev: int
    frames: Frames


@dataclass
class Reference:
    """An undisturbed run, advanced as far as it is asked about."""

    prompt: str
    seed: int
    script: dict[int, tuple[Input, ...]] = field(default_factory=dict)
    """Chunk → inputs that it is the first to show."""
    encoders: frozenset[int] = frozenset()
    """Chunks at which the encoder begins anew, as it does at a new owner: it chooses other quantisers for a
    chunk or two, and nothing else is allowed to differ."""
    damage: Callable[[Bench, int], None] | None = None
    """Called at the boundary before each chunk, to plant a bug."""
    shown: list[Shown] = field(default_factory=list)

    def __post_init__(self) -> None:
        torch.set_num_threads(1)  # as the engines of the tests: the order of sums depends on it
        model = load_model("shapes", device=torch.device("cpu"), weights=None)
        self.bench = Bench(model=RecordingModel(inner=model), costs=BATCHING_COSTS, slots=1, host_slabs=1)
        self.session = self.bench.open("s_reference", text=self.prompt, seed=self.seed)
        self.decoder = ChunkDecoder()

    @property
    def window_chunks(self) -> int:
        """Whoever rebuilds it from a checkpoint with no more chunks shows the very frames."""
        spec = self.bench.model.spec
        return spec.window_frames // spec.chunk_latent_frames

    def beginning(self, seq: int) -> int:
        """The chunk with which the picture that is there before chunk `seq` has begun."""
        resets = (at for at, inputs in self.script.items() if any(isinstance(i, ResetInput) for i in inputs))
        return max((at for at in resets if at <= seq), default=0)

    def chunk(self, seq: int) -> Shown:
        """The chunk as it should be."""
        while len(self.shown) <= seq:
            self._advance(len(self.shown))
        return self.shown[seq]

    def _advance(self, seq: int) -> None:
        self.bench.to_boundary(self.session)
        if self.damage is not None:
            self.damage(self.bench, seq)
        if seq in self.encoders:
            self.bench.renew_encoder(self.session)
        if seq in self.script:
            self.bench.feed(self.session, *self.script[seq])
        self.bench.run(self.session, True)
        while len(self.bench.parts(self.session)) <= seq:
            while self.bench.made(self.session) <= seq:
                self.bench.step(1)
        (part,) = (part for part in self.bench.parts(self.session) if part.seq == seq)
        units, offset = [], 0
        for size in part.encoded.sizes:
            units.append(part.encoded.payload[offset : offset + size])
            offset += size
        self.shown.append(Shown(seq=seq, rev=part.rev, frames=np.stack(self.decoder.decode(units))))


def shown(chunk: Chunk) -> Shown:
    """What a client got."""
    return Shown(seq=chunk.seq, rev=chunk.rev, frames=np.stack(chunk.frames()))


def owners_from(chunks: Sequence[Chunk]) -> frozenset[int]:
    """The chunks with which a new owner began."""
    return frozenset(after.seq for before, after in pairwise(chunks) if after.engine != before.engine)


def distance(ours: Frames, theirs: Frames) -> float:
    """Mean distance of the pixels, in levels of 255."""
    return float(np.abs(ours.astype(np.float32) - theirs.astype(np.float32)).mean())


def is_same(ours: Sequence[Shown], reference: Reference) -> bool:
    """Does every chunk show exactly what it should, at its revision?"""
    return bool(ours) and all(
        chunk.rev == reference.chunk(chunk.seq).rev
        and np.array_equal(chunk.frames, reference.chunk(chunk.seq).frames)
        for chunk in ours
    )


def is_like(ours: Sequence[Shown], reference: Reference) -> bool:
    """Does every chunk show what it should at its revision, as after a rebuild?"""
    return all(
        chunk.rev == reference.chunk(chunk.seq).rev
        and distance(chunk.frames, reference.chunk(chunk.seq).frames) < REBUILT
        for chunk in ours
    )


def seam(before: Frames, after: Frames) -> float:
    """The jump from the last frame of one chunk to the first of the next."""
    return distance(before[-1], after[0])
