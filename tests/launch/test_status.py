"""The tables of `turboserve status`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
import termios
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from launch.config import StatusConfig, http_address
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


def test_of_more_than_a_screen_holds_the_first_are_shown() -> None:
    """And how many there are; the newest decisions stay in sight."""
    engines = [{"id": f"e_{n}", "state": "ready"} for n in range(64)]
    sessions = [{"id": f"s_{n}", "state": "active"} for n in range(2_000)]
    decisions = [{"t_ms": 0, "text": f"decision {n}"} for n in range(5)]
    cluster = {"policy": "p", "budget": 64, "queue": 0, "decisions": decisions}
    lines = render({**cluster, "engines": engines, "sessions": sessions}, 40).splitlines()
    assert len(lines) == 40
    assert sum(line.startswith("e_") for line in lines) == sum(line.startswith("s_") for line in lines) == 13
    assert "… and 51 more engines" in lines and "… and 1987 more sessions" in lines
    assert lines[-1].endswith("decision 4")
    lines = render({**cluster, "engines": engines[:2], "sessions": sessions}, 40).splitlines()
    assert len(lines) == 39 and "… and 1976 more sessions" in lines and "more engines" not in str(lines)
    whole = render({**cluster, "engines": engines, "sessions": sessions[:3]}, 90).splitlines()
    assert not any("more" in line for line in whole)
    tiny = render({**cluster, "engines": engines, "sessions": sessions}, 5).splitlines()
    assert "… and 63 more engines" in tiny and "… and 1999 more sessions" in tiny


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://h:8080/", "http://h:8080"),
        ("h:8080", "http://h:8080"),
        ("ws://[::1]:8080/v1/stream", "http://[::1]:8080"),
        ("wss://h/below/", "https://h/below"),
    ],
)
def test_any_address_that_clients_take_will_do(url: str, address: str) -> None:
    """One setting serves both; and never is a token sent in clear where TLS was asked for."""
    assert StatusConfig(url=url) and http_address(url) == address


@pytest.mark.parametrize("url", ["", "http://", "ftp://h", "http://h:99999", "http://[::1", "http://a b"])
def test_other_addresses_are_refused(url: str) -> None:
    """Before anything is asked."""
    with pytest.raises(ValueError, match="url must be an address like http://127.0.0.1:8080, got "):
        StatusConfig(url=url)


def test_a_token_with_a_line_end_is_refused() -> None:
    """As it comes from a file; and is not repeated."""
    with pytest.raises(ValueError, match="token must be one word") as caught:
        StatusConfig(token="hush\n")
    assert "hush" not in str(caught.value)


@asynccontextmanager
async def answering(port: int, body: bytes | None, status: bytes = b"200 OK") -> AsyncIterator[None]:
    """An HTTP server that is asked once and has one answer, or None: that does not answer."""
    is_left = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, OSError):  # who asks may give up at any time
            await reader.readuntil(b"\r\n\r\n")
            if body is not None:
                writer.write(b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n" % (status, len(body)) + body)
            await reader.read()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        is_left.set()

    async with await asyncio.start_server(serve, "127.0.0.1", port):
        yield
        await is_left.wait()


@pytest.mark.parametrize("body", [b"[]", b"{}", b'{"policy": "p"}', b"<html>"])
async def test_what_is_no_gateway_is_an_error(
    body: bytes, unused_port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another server may have that port."""
    async with answering(unused_port, body):
        assert await run(StatusConfig(url=f"127.0.0.1:{unused_port}")) == 1
    assert "no cluster answers at http://127.0.0.1:" in capsys.readouterr().err


async def test_a_refusal_is_an_answer(unused_port: int, capsys: pytest.CaptureFixture[str]) -> None:
    """There is a cluster, which wants a token."""
    async with answering(unused_port, b'{"message": "bring a token"}', b"401 Unauthorized"):
        assert await run(StatusConfig(url=f"127.0.0.1:{unused_port}")) == 1
    said = capsys.readouterr().err
    assert "no cluster" not in said
    assert said.endswith('/v1/cluster answers with HTTP status 401: {"message": "bring a token"}\n')


async def test_silence_is_named(
    unused_port: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A timeout has no words of its own."""
    monkeypatch.setattr("launch.status._TIMEOUT_S", 0.01)
    async with answering(unused_port, None):
        assert await run(StatusConfig(url=f"127.0.0.1:{unused_port}")) == 1
    assert capsys.readouterr().err.endswith("/v1/cluster: nothing came in 0.01 s\n")


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
async def live_status(
    url: str, term: str = "xterm"
) -> AsyncIterator[tuple[Terminal, asyncio.subprocess.Process]]:
    """`turboserve status --every-s 0.1` on a terminal."""
    terminal = Terminal()
    command = [sys.executable, "-m", "launch", "status", "--url", url, "--every-s", "0.1"]
    kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=terminal.slave,
        stdout=terminal.slave,
        stderr=terminal.slave,
        env=kept | {"TERM": term},
    )
    os.close(terminal.slave)
    try:
        yield terminal, process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        terminal.close()


async def test_a_terminal_without_a_screen_is_written_on(unused_port: int) -> None:
    """As that of an editor: one after the other."""
    async with live_status(f"127.0.0.1:{unused_port}", term="dumb") as (terminal, process):
        await until(lambda: terminal.drawn.count(b"no cluster answers") >= 2)
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 0
    assert ENTER_SCREEN not in terminal.drawn


@pytest.mark.cluster
async def test_on_a_terminal_the_tables_stay_and_their_numbers_change(cluster: Cluster) -> None:
    """On a screen of its own, which Ctrl-C takes away again: what it says is what the cluster says."""
    async with watching(cluster.url) as viewer, live_status(cluster.url) as (terminal, process):
        session = viewer.session.info.session
        await viewer.take(1)

        def seq() -> int:
            return int(terminal.rows().get(session, ["-1"] * 5)[4])

        def is_true() -> bool:
            """Does the session's row say what the cluster says? It may change in between."""
            (known,) = (each for each in cluster.listed("sessions") if each["id"] == session)
            row = terminal.rows()[session]
            return row[:4] == [session, known["state"], known["engine"], str(known["epoch"])]

        await until(lambda: seq() >= 0)
        first = seq()
        await until(is_true)
        rows = terminal.rows()
        for engine in cluster.listed("engines"):
            row = rows[engine["id"]]
            assert row[:2] == [engine["id"], "ready"] and row[3] == str(engine["capacity"])
            assert len(row) == 6
        assert rows["id"] == ["id", "state", "engine", "epoch", "seq", "slack_ms"]
        await viewer.take(3)
        await until(lambda: seq() > first)
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 0
        await until(lambda: LEAVE_SCREEN in terminal.drawn)
        assert terminal.drawn.count(ENTER_SCREEN) == 1
