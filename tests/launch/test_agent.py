"""The agent's exit status: what tells a crash from a kill."""

from __future__ import annotations

import signal
import time

import pytest
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from launch import agent
from launch.engine_job import SIGNALLED


def failed(status: int) -> ChildFailedError:
    """One rank ended so."""
    failure = ProcessFailure(local_rank=0, pid=1, exitcode=status, error_file="")
    failure.timestamp = int(time.time())
    return ChildFailedError("engine", {0: failure})


@pytest.mark.parametrize(
    ("end", "status"),
    [
        pytest.param(failed(3), 3, id="a rank failed"),
        pytest.param(failed(-11), SIGNALLED + 11, id="a rank was killed"),
        pytest.param(SignalException("", signal.SIGTERM), SIGNALLED + 15, id="the agent was told to end"),
    ],
)
def test_status(monkeypatch: pytest.MonkeyPatch, end: Exception, status: int) -> None:
    """torchrun raises; the status says what happened."""

    def run() -> None:
        raise end

    monkeypatch.setattr(agent, "main", run)
    assert agent.run() == status
