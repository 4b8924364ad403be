"""`turboserve loadtest` and `compare` as a user calls them, against a real cluster of the model `paced`."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.auth import Identity, Scope, mint_token
from launch import cli
from launch.loadtest import run
from launch.loadtest.config import LoadtestConfig
from launch.loadtest.samples import FirstPart
from launch.loadtest.tally import Tally
from launch.supervisor import StartError
from scheduler.trace import EventKind, Trace, TraceEvent
from tests.cluster import Cluster, running_cluster
from tests.patience import PATIENT

pytestmark = pytest.mark.cluster

TRACE = """
{"t": 0, "session": "a", "event": "arrive", "prompt": "a red ball"}
{"t": 0.2, "session": "b", "event": "arrive"}
{"t": 0.3, "session": "c", "event": "arrive"}
{"t": 0.3, "session": "c", "event": "idle"}
{"t": 1, "session": "b", "event": "idle"}
{"t": 2, "session": "b", "event": "active"}
{"t": 2, "session": "a", "event": "prompt"}
{"t": 4, "session": "a", "event": "prompt"}
{"t": 6, "session": "c", "event": "active"}
{"t": 8, "session": "a", "event": "depart"}
{"t": 8, "session": "b", "event": "depart"}
{"t": 8, "session": "c", "event": "depart"}
"""


SECRET = "s" * 32


def token(*scopes: Scope) -> str:
    identity = Identity(subject="loadtest", scopes=frozenset(scopes), max_sessions=100)
    return mint_token(identity, SECRET, now_s=time.time(), ttl_s=3600)


@pytest.fixture(scope="module")
def paced_cluster(paced: tuple[str, ...]) -> Iterator[Cluster]:
    """One engine, behind a gateway that asks for tokens."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("TURBOSERVE_TOKEN_SECRETS", SECRET)
        environment.setenv("TURBOSERVE_TOKEN", token(Scope.CONTROL, Scope.ADMIN))
        with running_cluster(*paced, *PATIENT, "--auth", "token", engines=1) as cluster:
            yield cluster


def test_streams_are_complete_and_the_results_are_written(
    paced_cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Clients with prompt changes, of which one must be seen, pauses and lost connections: status 0, results,
    a report. One rests before its first chunk: it does not wait for it meanwhile."""
    trace, out, page = tmp_path / "t.jsonl", tmp_path / "out.json", tmp_path / "out.html"
    trace.write_text(TRACE)
    objectives = (
        "--decode --no-gaps --reconnect-every-s 2 --max-refused 0 --max-ttfc-ms 5500 --seed 3".split()
    )
    files = ["--trace", str(trace), "--json", str(out), "--html", str(page)]
    assert cli.main(["loadtest", "--url", paced_cluster.url, *files, *objectives]) == 0
    result = json.loads(out.read_text())
    assert result["held"] is True and result["models"] == ["paced"] and result["policy"] == "slack"
    assert result["sessions"] == 3 and result["faults"] == result["lost"] == result["gaps"] == 0
    assert result["chunks"] >= 4 and result["reconnects"] >= 1
    assert result["prompt_to_picture_ms"]["p50"] >= result["prompt_to_chunk_ms"]["p50"] > 0
    assert 0 < result["cpr"]["min"] <= result["cpr"]["mean"] <= 1
    assert 0 < result["ttfc_ms"]["p50"] <= result["ttfc_ms"]["max"] < 5_500
    assert 0 < result["chunk_latency_ms"]["p50"]
    assert result["cost_engine_s"] == pytest.approx(8.0)
    assert "Load test: paced" in page.read_text()
    assert "All objectives held" in page.read_text() and "written to" in capsys.readouterr().out


def test_an_objective_that_can_not_hold_is_status_1(
    paced_cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No chunk comes in a millisecond; the results are written all the same, and can be compared."""
    out = tmp_path / "out.json"
    load = ["--viewers", "2", "--seconds", "6", "--shape", "step", "--max-p99-ms", "1"]
    assert cli.main(["loadtest", "--url", paced_cluster.url, "--json", str(out), *load]) == 1
    result = json.loads(out.read_text())
    assert result["held"] is False and result["chunks"] >= 1
    missed = {item["name"] for item in result["objectives"] if not item["held"]}
    assert "chunk latency p99, ms" in missed  # and perhaps others, where this machine stood still
    assert not missed & {"chunks", "faults of streams", "lost sessions"}
    assert [phase["name"] for phase in result["phases"]] == ["few", "many", "few again"]
    assert sum(phase["cost_engine_s"] for phase in result["phases"]) == pytest.approx(6.0, abs=0.2)
    assert "NOT HELD" in capsys.readouterr().out
    page = tmp_path / "both.html"
    assert cli.main(["compare", str(out), str(out), "--html", str(page)]) == 1
    text = capsys.readouterr().out
    assert "chunk latency, ms p99" in text and "NOT HELD" in text and "<svg" in page.read_text()
    better = tmp_path / "better.json"
    better.write_text(json.dumps(result | {"held": True}))
    assert cli.main(["compare", str(out), str(better)]) == 0


def test_slow_clients_fall_behind_and_a_trace_plays_faster(paced_cluster: Cluster, tmp_path: Path) -> None:
    """Who reads a chunk in half again its time stands still for a third of it, or longer where the machine
    does, and is counted apart."""
    trace, out = tmp_path / "t.jsonl", tmp_path / "out.json"
    ends = [{"t": t, "session": "a", "event": event} for t, event in ((0, "arrive"), (16, "depart"))]
    trace.write_text("".join(json.dumps(end) + "\n" for end in ends))
    load = ["--trace", str(trace), "--time-scale", "2", "--slow-share", "1"]
    url = paced_cluster.url.replace("http://", "ws://") + "/v1/stream"
    assert cli.main(["loadtest", "--url", url, *load, "--json", str(out)]) == 0
    result = json.loads(out.read_text())
    assert result["load"]["seconds"] == 8.0 and result["cost_engine_s"] == pytest.approx(8.0, abs=0.2)
    assert result["slow_clients"]["count"] == 1 and 0.1 < result["slow_clients"]["cpr"] < 0.9
    assert result["cpr"]["mean"] is None and result["stalls"]["count"] == 0


def test_a_token_that_is_not_enough_is_named(
    paced_cluster: Cluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anybody plays."""
    monkeypatch.setenv("TURBOSERVE_TOKEN", token(Scope.CONTROL))
    assert cli.main(["loadtest", "--url", paced_cluster.url, "--json", "/nowhere/x"]) == 1
    assert "scopes control and admin" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["loadtest"], 2, "json is not set"),
        (["loadtest", "--json", "x", "--trace", "/nowhere"], 2, "trace /nowhere can't be used"),
        (["loadtest", "--json", "x", "--html", "x"], 2, "not the same one"),
        (["loadtest", "--json", "x", "--viewers", "0"], 2, "viewers must be between"),
        (["loadtest", "--json", "x", "--shape", "round"], 2, "shape must be steady or step, got 'round'"),
        (["loadtest", "--json", "x", "--url", "http://127.0.0.1:9"], 1, "no cluster answers"),
        (["loadtest", "--json", "x", "--url", "ftp://127.0.0.1:9"], 2, "url must be an address like http://"),
        (["compare", "/nowhere"], 2, "after is not set"),
        (["compare", "/nowhere", "/nowhere"], 2, "can't be read"),
    ],
)
def test_what_is_wrong_is_said(
    arguments: list[str], status: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a sentence, with a status."""
    assert cli.main(arguments) == status
    assert words in capsys.readouterr().err


def test_files_that_can_not_be_written_are_found_before_anybody_plays(
    paced_cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not after an hour."""
    command = ["loadtest", "--url", paced_cluster.url, "--seconds", "3600", "--json"]
    for files in (["/nowhere/x"], ["x", "--html", str(tmp_path)]):
        assert cli.main([*command, *files]) == 1
        assert "can't be written" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (None, "no cluster answers at http://127.0.0.1:{port}/v1/cluster: timeout"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]", "what answers there is no gateway"),
    ],
)
def test_what_is_no_gateway_is_said(
    answer: bytes | None, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Something that says nothing, or something else, before anybody plays."""
    monkeypatch.setattr(run, "POLL_TIMEOUT_S", 0.5 if answer is None else 30.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        threading.Thread(target=_answer, args=(server, answer), daemon=True).start()
        assert cli.main(["loadtest", "--json", "x", "--url", f"http://127.0.0.1:{port}"]) == 1
    assert words.format(port=port) in capsys.readouterr().err


def _answer(server: socket.socket, answer: bytes | None) -> None:
    connection, _ = server.accept()
    with connection:
        connection.recv(1024)
        if answer is not None:
            connection.sendall(answer)
        connection.recv(1024)  # until the other end goes


@pytest.mark.parametrize("said", ["", '{"type":"lag","at_ms":0,"la'])
async def test_a_killed_client_process_is_said(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed amid a line, too."""
    command = f"import os, signal; os.write(1, {said.encode()!r}); os.kill(os.getpid(), signal.SIGKILL)"
    worker = await asyncio.create_subprocess_exec(
        sys.executable, "-c", command, stdout=asyncio.subprocess.PIPE
    )
    with pytest.raises(StartError, match="a client process ended with status -9"):
        await run._hear(worker, Tally())


@pytest.mark.parametrize(("lag_ms", "is_said"), [(None, False), (49.0, False), (51.0, True)])
def test_clients_that_are_late_themselves_are_said(
    lag_ms: float | None, is_said: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Then the figures are the load test's own."""
    result = {"objectives": [], "problems": [], "client_lag_ms": {"p99": lag_ms}}
    run._conclude(LoadtestConfig(json="x"), result, Tally(), 1_000.0)
    assert ("the clients themselves were late, by 51 ms" in capsys.readouterr().out) is is_said


def test_the_reports_points_are_of_all_of_the_time() -> None:
    """Those that are too many for a page are left out everywhere alike, and not the longest."""
    tally = Tally()
    for number in range(9_000):
        ttfc_ms = 5_000.0 if number == 8_321 else 50.0
        tally.add(FirstPart(client=number, at_ms=100.0 * number, ttfc_ms=ttfc_ms))
    trace = Trace((TraceEvent(t=900.0, session="a", event=EventKind.ARRIVE),))
    points = run._result(LoadtestConfig(json="x"), trace, 9_000, tally)["points"]["ttfc"]
    assert len(points) <= run.MAX_POINTS and points[-1][0] > 899.0
    assert [832.1, 5_000] in points and points == sorted(points)
