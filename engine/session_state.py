"""What the model state of a session is. It belongs to the compute thread; its slabs lie in the pool."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum

from torch import Tensor

from engine.ring import WindowPass
from engine.steering import AppliedInput, LogEntry, RecordedInput, Steering
from scheduler.messages import SessionId

__all__ = ["ChunkRecord", "ChunkWork", "PromptBlend", "SessionState", "Stage"]
__all__ += ["rebuilt_chunks"]


class Stage(Enum):
    """What the next pass of a session is."""

    BOUNDARY = "boundary"
    """The first step of a chunk that is not begun."""
    DENOISE = "denoise"
    """A denoising step of the chunk in work."""
    CLEAN = "clean"
    """The clean pass that writes the chunk's final K/V; its frames are already on their way."""
    REBUILD = "rebuild"
    """A clean pass over chunks of the window that writes their K/V again: after the last one the session is
    where its checkpoint was, or goes on with the chunk in work if there is one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkRecord:
    """What a clean pass needs to write the K/V of a made chunk again. The tensors are never written to."""

    index: int
    """Chunks since start or reset before it."""
    latents: Tensor
    """[F, C, h, w] float32, clean."""
    embeds: Tensor
    """[1, T, E] prompt embeddings that its clean pass attends to."""
    actions: Tensor | None
    """[F, A] float32; None when the model takes no control input."""
    joined: bool = False
    """Were its K/V written in one pass with those of the chunk before it?"""


@dataclass(slots=True, kw_only=True)
class PromptBlend:
    """Prompt embeddings [1, T, E] on their way from one prompt to the next."""

    start: Tensor
    target: Tensor
    chunks: int
    """Chunks that the way takes."""
    done: int = 0
    """Chunks already made on it."""

    def advance(self) -> Tensor:
        """Embeddings for the next chunk; the last one is exactly the target."""
        self.done += 1
        if self.done >= self.chunks:
            return self.target
        return self.start.lerp(self.target, self.done / self.chunks)


@dataclass(slots=True, kw_only=True)
class ChunkWork:
    """Bookkeeping of the chunk in work."""

    applied: tuple[AppliedInput, ...]
    due_ms: float
    """Since when it could have started, as far as credit goes."""
    started_ms: float
    num_passes: int = 0
    num_rows: int = 0
    """Rows of all its passes together: num_rows / num_passes is its mean batch."""


@dataclass(slots=True, kw_only=True)
class SessionState:
    """One resident session."""

    session: SessionId
    epoch: int
    slot: int
    steering: Steering
    seq: int
    """Number of the chunk in work, or of the next one."""
    frame: int
    """Pixel frames of all chunks before `seq`."""
    pending: deque[LogEntry] = field(default_factory=deque)
    """Inputs for the next boundary. Bounded by MAX_PENDING_INPUTS, which the reader observes."""
    recorded: deque[RecordedInput] = field(default_factory=deque)
    """Inputs before the pending ones, each with the chunk that it belongs to."""
    awaits_prompt: bool = False
    """It moved here before its first chunk: there is no prompt until its new owner has read the input log."""
    emit_from: int = 0
    """Chunks before this one were sent by an earlier owner: they are made again, but not sent."""
    last_applied: str = "0-0"
    """Newest entry of the input log that was taken in."""
    history: list[ChunkRecord] = field(default_factory=list)
    """The made chunks that the window still holds, oldest first."""
    rebuild: deque[WindowPass] = field(default_factory=deque)
    """Clean passes that are left in stage REBUILD; their chunks are in `history`."""
    stage: Stage = Stage.BOUNDARY
    index: int = 0
    """Chunks since start or reset: with the seed, it names the noise."""
    resets: int = 0
    """Times that frames which the slab keeps were written anew since the session came into its slot."""
    step: int = 0
    """Denoising step of the next pass."""
    x: Tensor | None = None
    """[F, C, h, w] float32 noisy latents; in the clean stage the clean ones."""
    actions: Tensor | None = None
    """[F, A] float32 of the chunk in work; None when the model takes no control input."""
    embeds: Tensor | None = None
    """[1, T, E] prompt embeddings in force; None before the first chunk."""
    is_lent: bool = False
    """Is the prompt in its slot that of a chunk which is written again?"""
    blend: PromptBlend | None = None
    due_ms: float | None = None
    """Since when the next chunk could start; None: it can't."""
    work: ChunkWork | None = None

    @property
    def is_refreshing(self) -> bool:
        """Is its window written again for the chunk in work?"""
        return self.stage is Stage.REBUILD and self.x is not None


def rebuilt_chunks(state: SessionState) -> list[ChunkRecord]:
    """The chunks that the next pass of a session in stage REBUILD writes again."""
    indices = state.rebuild[0].indices
    return [record for record in state.history if record.index in indices]
