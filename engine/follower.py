"""A rank above 0: it runs the same compute loop as rank 0, hears only of it, and decodes nothing."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import numpy as np
import numpy.typing as npt
import torch

from engine.compute import ComputeLoop
from engine.compute_messages import ComputeDied, ComputeEvent
from engine.config import EngineConfig
from engine.encoder import EncodedPart, Lane, SessionEncoder
from engine.loading import load, make_host_pool, monotonic_ms
from engine.progress import Progress
from engine.ranks import Ranks, RanksLost
from engine.shares import Shares
from scheduler.messages import EngineId, Rung

__all__ = ["follow"]

_log = logging.getLogger("turboserve.engine.follower")


class _NoEncoders:
    """Rank 0 alone has frames."""

    def open_lane(self, encoder: SessionEncoder) -> Lane:
        return Lane(encoder=encoder, thread=0)

    def close_lane(self, lane: Lane) -> None:
        pass

    def renew_lane(self, lane: Lane) -> None:
        pass

    def submit(
        self,
        lane: Lane,
        frames: npt.NDArray[np.uint8],
        on_part: Callable[[EncodedPart], None],
        on_error: Callable[[Exception], None],
        rungs: Sequence[Rung] = (Rung.FULL,),
    ) -> Future[None]:
        raise AssertionError("only rank 0 decodes")


def follow(config: EngineConfig, ranks: Ranks) -> bool:
    """Follow rank 0 until it ends the engine. False: something went wrong here or there."""
    # Everybody gets the signals; rank 0 finishes what is in work and then ends us.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(config.threads)
    try:
        loaded = load(config, ranks)
    except RanksLost as exc:
        return _ended_early(exc)
    errors: list[BaseException] = []
    shares = Shares(
        *(loaded.model, loaded.pool),
        engine=EngineId(config.engine_id),
        host=config.link_host,
        rank=ranks.rank,
    )

    def emit(event: ComputeEvent) -> None:
        if isinstance(event, ComputeDied):
            errors.append(event.error)
        shares.receive(event)

    loop = ComputeLoop(
        loaded.model,
        loaded.pool,
        costs=loaded.costs,
        attention=loaded.attention,
        ranks=ranks,
        movers=shares,
        encoders=_NoEncoders(),
        host=make_host_pool(config, loaded, ranks),
        progress=Progress(monotonic_ms),
        clock=monotonic_ms,
        emit=emit,
    )
    try:
        ranks.start_serving()
        loop.rehearse()
    except RanksLost as exc:
        loop.close()
        shares.close()
        return _ended_early(exc)
    loop.run()
    loop.close()
    shares.close()
    return not errors


def _ended_early(error: RanksLost) -> bool:
    _log.info("rank 0 ended before it served: %s", error)
    return True  # it says why
