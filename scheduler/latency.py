"""Predicted chunk latency of an engine by the number of its active sessions. Pure.

With n active sessions a chunk takes as long as a round: every session gets the passes of one chunk, coalesced
as the measured cost table says pays, and every chunk is decoded. That is the latency when all are due at
once, and while it is shorter than a chunk plays, nobody stalls.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from scheduler.messages import EngineCosts, EngineRecord
from scheduler.view import LOADS

UNKNOWN_PLAY_MS = 1_000.0
"""Of a model that no engine has announced yet."""


def play_ms(record: EngineRecord) -> float:
    """How long a chunk plays."""
    model = record.model
    return 1000.0 * model.chunk_frames / model.fps if model and model.fps else UNKNOWN_PLAY_MS


def round_ms(record: EngineRecord) -> NDArray[np.float64]:
    """f64[LOADS]: latency with 0, 1, 2 … active sessions, ms; never falling.

    An engine that has published no costs is taken to be in real time with exactly `capacity` sessions.
    """
    if record.costs is None or record.costs.chunk_passes == 0:
        return np.arange(LOADS, dtype=np.float64) * (play_ms(record) / max(1, record.capacity))
    return _from_costs(record.costs)


@lru_cache(maxsize=64)  # engines that are alike; what an engine had before is never asked for again
def _from_costs(costs: EngineCosts) -> NDArray[np.float64]:
    batch_ms = np.array(costs.pass_ms[-1])  # the full window, where sessions spend their lives
    batch_ms = batch_ms[batch_ms > 0]
    passes_ms = np.zeros(LOADS)  # of one pass for each session, in the cheapest batches
    for load in range(1, LOADS):
        sizes = min(load, len(batch_ms))
        passes_ms[load] = (batch_ms[:sizes] + passes_ms[load - sizes : load][::-1]).min() if sizes else 0.0
    curve = costs.chunk_passes * passes_ms + costs.decode_ms * np.arange(LOADS)
    curve = np.maximum.accumulate(curve)
    curve.flags.writeable = False
    return curve
