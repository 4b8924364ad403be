"""What moving state between two engines costs here: two ends of a real pair, over the loopback interface.

On machines of their own, engines see their network on top; each migration measures its own link.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import torch

from engine.handover import Note, expect, receive_note, send_note
from engine.kv_pool import SlabPool
from engine.migration_cost import LinkCost
from engine.models.base import CausalVideoModel
from engine.pairs import PairLost, Pairs
from engine.state_format import StateHeader, describe
from engine.state_io import gather_kv_frames, import_kv_frames, model_key
from scheduler.messages import EngineId, SessionId

__all__ = ["LinkProbe", "measure_link"]

LIMIT_S = 60.0
ROUNDS = 15
ID = "m_probe"


class LinkProbe:
    """Moves K/V frames of slot `source` of a pool into slot `target` of it, through a pair."""

    def __init__(self, model: CausalVideoModel, pool: SlabPool, *, source: int, target: int) -> None:
        self._model, self._pool, self._source, self._target = model, pool, source, target
        self._ends = [Pairs(EngineId(f"e_0000000{n}"), "127.0.0.1", model.device) for n in range(2)]
        self._thread = threading.Thread(target=self._receive, name="link-probe", daemon=True)
        self._thread.start()
        self._pair = self._ends[0].call(EngineId("e_00000001"), self._ends[1].address, ID, limit_s=LIMIT_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pair.close()
        self._thread.join()

    @torch.inference_mode()
    def move(self, ring: Sequence[int]) -> float:
        """Milliseconds until these ring frames are verified and in place."""
        began = time.perf_counter()
        header = StateHeader(
            model=model_key(self._model.spec), session=SessionId("s_probe"), epoch=1, kv_ring=tuple(ring)
        )
        frames = {"kv": gather_kv_frames(self._pool, self._source, ring)} if ring else {}
        state = describe(header, frames, checked=False)
        note = Note(kind="frames", migration_id=ID, header=state.header)
        send_note(self._pair, note, state.buffers, limit_s=LIMIT_S)
        expect("ready", receive_note(self._pair, ID, limit_s=LIMIT_S)[0])
        return (time.perf_counter() - began) * 1000.0

    @torch.inference_mode()
    def _receive(self) -> None:
        pair = self._ends[1].answer(ID, limit_s=LIMIT_S)
        try:
            while True:
                _, state = receive_note(pair, ID, limit_s=LIMIT_S)
                if state is not None and state.header.kv_ring:
                    import_kv_frames(self._model, self._pool, state, self._target)
                send_note(pair, Note(kind="ready", migration_id=ID), limit_s=LIMIT_S)
        except PairLost:
            pair.close()


def measure_link(model: CausalVideoModel, pool: SlabPool) -> LinkCost:
    """α and β of moving a slab. The pool must have two free slots."""
    source, target = pool.allocate(), pool.allocate()
    try:
        with LinkProbe(model, pool, source=source, target=target) as probe:
            probe.move(())
            alpha_ms = statistics.median(probe.move(()) for _ in range(ROUNDS))
            ring = range(model.spec.window_frames)
            full_ms = statistics.median(probe.move(ring) for _ in range(ROUNDS))
    finally:
        pool.free(source)
        pool.free(target)
    return LinkCost(alpha_ms=alpha_ms, bytes_per_ms=pool.kv[0].nbytes / max(full_ms - alpha_ms, 1e-3))
