"""How long passes and decodes take on their device, without making it wait for the host."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

import torch

__all__ = ["CudaTimer", "HostTimer", "PassTimer", "begin_timing", "make_timer"]

K = TypeVar("K")
Timed = tuple[K, float]
"""What was timed, and its milliseconds."""


class PassTimer(Protocol[K]):
    """`begin` and `end` around each pass; times may come later than their pass."""

    def begin(self) -> None:
        """A pass is about to be launched."""

    def end(self, key: K) -> list[Timed[K]]:
        """It has been launched. Returns what is known by now, oldest first."""


class HostTimer(Generic[K]):
    """A pass is done when its call returns."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock, self._began_ms = clock, 0.0

    def begin(self) -> None:
        self._began_ms = self._clock()

    def end(self, key: K) -> list[Timed[K]]:
        return [(key, max(self._clock() - self._began_ms, 1e-3))]


class CudaTimer(Generic[K]):
    """A pass is done when its events say so.

    `end` waits until the pass *before* has finished: so one pass is queued behind the running one, the device
    does not wait for the plan, and the plan is never older than two passes.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._began: torch.cuda.Event | None = None
        self._running: deque[tuple[K, torch.cuda.Event, torch.cuda.Event]] = deque()

    def begin(self) -> None:
        self._began = self._record()

    def end(self, key: K) -> list[Timed[K]]:
        assert self._began is not None, "end without begin"
        self._running.append((key, self._began, self._record()))
        known: list[Timed[K]] = []
        while len(self._running) > 1:
            earlier, began, ended = self._running.popleft()
            ended.synchronize()
            known.append((earlier, began.elapsed_time(ended)))
        return known

    def _record(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event


def make_timer(device: torch.device, clock: Callable[[], float]) -> PassTimer[K]:
    """The timer for a device; `clock` gives monotonic milliseconds."""
    return CudaTimer(device) if device.type == "cuda" else HostTimer(clock)


def begin_timing(device: torch.device, clock: Callable[[], float]) -> Callable[[], float]:
    """Begin to time what ends by the host waiting for the device. Call the result after that, once: ms.

    What the device had to do before does not count: a pass may still be running when this is called.
    """
    if device.type != "cuda":
        began_ms = clock()
        return lambda: clock() - began_ms
    stream = torch.cuda.current_stream(device)
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    began.record(stream)

    def end() -> float:
        ended.record(stream)
        ended.synchronize()
        took_ms: float = began.elapsed_time(ended)
        return took_ms

    return end
