"""What tests put at the edges of the host: a link that records, and what the compute side would report."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from engine.compute_messages import PartMade
from engine.encoder import EncodedPart
from engine.models.shapes.model import TINY, ShapesModel
from engine.steering import AppliedInput
from scheduler.messages import (
    LINK_REPLIES,
    LinkReply,
    Message,
    Rung,
    SessionId,
    decode_json,
    unframe_media,
)
from tests.patience import PATIENCE_S

S1 = SessionId("s_0000000000000001")
SPEC = ShapesModel.random(0, config=TINY).spec


class RecordedLink:
    """A link whose peer takes everything at once, or nothing while `blocked`."""

    def __init__(self) -> None:
        self.sent: list[LinkReply] = []
        self.blocked = False
        self.waiting: list[Callable[[], None]] = []

    def send(self, message: LinkReply) -> None:
        self.sent.append(message)

    def send_media(self, data: bytes, on_sent: Callable[[], None] | None = None) -> None:
        self.sent.append(decode_json(LINK_REPLIES, unframe_media(data)[0]))
        if on_sent is not None:
            if self.blocked:
                self.waiting.append(on_sent)
            else:
                on_sent()

    def of(self, kind: type[Message]) -> list[LinkReply]:
        return [message for message in self.sent if isinstance(message, kind)]


def made(
    seq: int,
    *,
    part: int = 0,
    parts: int = 1,
    applied: tuple[AppliedInput, ...] = (),
    epoch: int = 1,
    rung: Rung | None = None,
) -> PartMade:
    frames = SPEC.chunk_frames // parts
    return PartMade(
        session=S1,
        epoch=epoch,
        seq=seq,
        frame=seq * SPEC.chunk_frames + part * frames,
        chunk_frame=seq * SPEC.chunk_frames,
        chunk_frames=SPEC.chunk_frames,
        rev=0,
        applied=applied,
        encoded=EncodedPart(
            part=part, parts=parts, frames=frames, sizes=(1,) * frames, payload=b"x" * frames, rung=rung
        ),
        due_ms=0.0,
        gen_ms=5.0,
        batch=1.0,
        engine_ms=0.0 if part < parts - 1 else 100.4,
    )


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that nobody announces."""
    for _ in range(int(PATIENCE_S * 100)):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not happen")
