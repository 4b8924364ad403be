"""The tables of `turboserve status`."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from launch.config import StatusConfig
from launch.status import render, run


def test_tables_hold_every_engine_and_session() -> None:
    """Columns line up, absent values are dashes."""
    text = render(
        {
            "policy": "least_loaded",
            "budget": 2,
            "queue": 1,
            "engines": [
                {
                    "id": "e_1",
                    "state": "ready",
                    "capacity": 4,
                    "sessions": 1,
                    "load": 0.5,
                    "chunk_ms": 210.25,
                }
            ],
            "sessions": [
                {"id": "s_1", "state": "queued", "engine": None, "epoch": 0, "seq": 0, "slack_ms": 0}
            ],
        }
    )
    lines = text.splitlines()
    assert lines[0] == "policy least_loaded, budget 2 engines, 1 sessions waiting (1 queued)"
    assert lines[3].split() == ["e_1", "ready", "1", "4", "0.50", "210.25"]
    assert lines[6].split() == ["s_1", "queued", "-", "0", "0", "0"]


def test_the_newest_decisions_are_told() -> None:
    """Five of them, with the time of day."""
    decisions = [{"t_ms": 1_700_000_000_000 - n, "text": f"decision {n}"} for n in range(9)]
    cluster = {"policy": "p", "budget": 0, "queue": 0, "engines": [], "sessions": []}
    lines = render({**cluster, "decisions": decisions}).splitlines()
    assert [line.split("  ")[1] for line in lines[-5:]] == [f"decision {n}" for n in range(5)]
    assert lines[-6] == "newest decisions"


def test_an_empty_cluster_says_so() -> None:
    """No empty tables."""
    text = render({"policy": "p", "budget": 0, "queue": 0, "engines": [], "sessions": []})
    assert "no engines" in text
    assert "no sessions" in text


async def test_no_cluster_is_an_error(unused_port: int) -> None:
    """Nothing listens there: status 1 and a sentence with the address."""
    assert await run(StatusConfig(url=f"http://127.0.0.1:{unused_port}")) == 1


async def test_live_goes_on_until_it_is_stopped(unused_port: int, capsys: pytest.CaptureFixture[str]) -> None:
    """A cluster that does not answer is asked again; Ctrl-C ends it with status 0."""
    task = asyncio.create_task(run(StatusConfig(url=f"http://127.0.0.1:{unused_port}", every_s=0.01)))
    printed = ""
    while printed.count("no cluster answers") < 2:
        await asyncio.sleep(0)
        printed += capsys.readouterr().out
    os.kill(os.getpid(), signal.SIGINT)
    assert await task == 0
    assert "Ctrl-C ends" in printed
