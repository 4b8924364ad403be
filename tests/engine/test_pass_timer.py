"""Times of passes and decodes on a device that runs behind the host."""

from __future__ import annotations

import pytest
import torch

from engine.pass_timer import CudaTimer, begin_timing

CUDA = torch.device("cuda")


class Queue:
    """A device that does one thing after another, and the host's clock."""

    def __init__(self) -> None:
        self.host_ms, self._free_ms = 0.0, 0.0

    @property
    def reached_ms(self) -> float:
        """When the device gets to what is launched now."""
        return max(self.host_ms, self._free_ms)

    def launch(self, ms: float) -> None:
        self._free_ms = self.reached_ms + ms

    def wait(self) -> None:
        """The host waits for everything launched."""
        self.host_ms = self.reached_ms


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> Queue:
    """Behind torch's events and streams."""
    device = Queue()

    class Event:
        def __init__(self, *, enable_timing: bool) -> None:
            assert enable_timing
            self.at_ms = -1.0

        def record(self, stream: object) -> None:
            self.at_ms = device.reached_ms

        def synchronize(self) -> None:
            device.host_ms = max(device.host_ms, self.at_ms)

        def elapsed_time(self, later: Event) -> float:
            assert self.at_ms <= device.host_ms and later.at_ms <= device.host_ms, "not reached yet"
            return later.at_ms - self.at_ms

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    return device


def test_one_pass_is_queued_behind_the_running_one(queue: Queue) -> None:
    """The host waits for the pass before, not for the one it has just launched."""
    timer: CudaTimer[str] = CudaTimer(CUDA)
    known = []
    for name, ms in (("a", 10.0), ("b", 20.0), ("c", 5.0)):
        timer.begin()
        queue.launch(ms)
        known.append(timer.end(name))
    assert known == [[], [("a", 10.0)], [("b", 20.0)]] and queue.host_ms == 30.0


def test_a_decode_is_not_charged_for_the_pass_before_it(queue: Queue) -> None:
    """That pass is still running when the decode is launched."""
    queue.launch(40.0)
    end = begin_timing(CUDA, lambda: queue.host_ms)
    queue.launch(7.0)
    queue.wait()
    assert queue.host_ms == 47.0 and end() == 7.0


def test_on_a_cpu_the_host_s_clock_counts() -> None:
    """Nothing runs behind it."""
    times = iter((3.0, 10.0))
    assert begin_timing(torch.device("cpu"), lambda: next(times))() == 7.0
