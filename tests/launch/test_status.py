"""The tables of `turboserve status`."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import termios
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from launch.config import StatusConfig
from launch.status import render, run
from tests.cluster import Cluster, until
from tests.viewer import watching

ENTER_SCREEN, LEAVE_SCREEN, HOME = b"\x1b[?1049h", b"\x1b[?1049l", b"\x1b[H"


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


class Terminal:
    """What a program draws on a terminal of 40 lines."""

    def __init__(self) -> None:
        self._master, self.slave = os.openpty()
        termios.tcsetwinsize(self.slave, (40, 120))
        self.drawn = bytearray()
        asyncio.get_running_loop().add_reader(self._master, self._read)

    def rows(self) -> dict[str, list[str]]:
        """First word → all words, of each line of the newest picture that is complete."""
        pictures = [b"", *bytes(self.drawn).split(HOME)]
        text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", pictures[-2].decode())
        return {words[0]: words for line in text.splitlines() if (words := line.split())}

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._master)
        os.close(self._master)

    def _read(self) -> None:
        try:
            self.drawn += os.read(self._master, 1 << 16)
        except OSError:  # the program has ended, and with it the other end
            asyncio.get_running_loop().remove_reader(self._master)


@asynccontextmanager
async def live_status(cluster: Cluster) -> AsyncIterator[tuple[Terminal, asyncio.subprocess.Process]]:
    """`turboserve status --every-s 0.1` on a terminal."""
    terminal = Terminal()
    command = [sys.executable, "-m", "launch", "status", "--url", cluster.url, "--every-s", "0.1"]
    kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=terminal.slave,
        stdout=terminal.slave,
        stderr=terminal.slave,
        env=kept | {"TERM": "xterm"},
    )
    os.close(terminal.slave)
    try:
        yield terminal, process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        terminal.close()


@pytest.mark.cluster
async def test_on_a_terminal_the_tables_stay_and_their_numbers_change(cluster: Cluster) -> None:
    """On a screen of its own, which Ctrl-C takes away again: what it says is what the cluster says."""
    async with watching(cluster.url) as viewer, live_status(cluster) as (terminal, process):
        session = viewer.session.info.session
        await viewer.take(1)

        def seq() -> int:
            return int(terminal.rows().get(session, ["-1"] * 5)[4])

        await until(lambda: seq() >= 0)
        rows = terminal.rows()
        for engine in cluster.listed("engines"):
            row = rows[engine["id"]]
            assert row[:2] == [engine["id"], "ready"] and row[3] == str(engine["capacity"])
            assert len(row) == 6
        assert rows["id"] == ["id", "state", "engine", "epoch", "seq", "slack_ms"]
        (known,) = (each for each in cluster.listed("sessions") if each["id"] == session)
        row = rows[session]
        assert row[:4] == [session, known["state"], known["engine"], str(known["epoch"])]
        await viewer.take(3)
        await until(lambda: seq() > int(row[4]))
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 0
        await until(lambda: LEAVE_SCREEN in terminal.drawn)
        assert terminal.drawn.count(ENTER_SCREEN) == 1
