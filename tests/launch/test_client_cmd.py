"""`turboserve client` against a real cluster."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import av
import pytest

from launch import client_cmd
from launch.config import ClientConfig
from tests.cluster import Cluster, until


@pytest.mark.cluster
async def test_records_the_asked_length(
    cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file decodes with exactly the frames that the line names, and reaches the asked length."""
    path = tmp_path / "out.mp4"
    config = ClientConfig(prompt="a red ball", url=cluster.url, seconds=2, seed=1, output=str(path))
    assert await client_cmd.run(config) == 0
    with av.open(str(path)) as video:
        stream = video.streams.video[0]
        num_frames = sum(1 for _ in video.decode(stream))
        assert stream.average_rate is not None
        assert num_frames / stream.average_rate >= 2
    assert f"{num_frames} frames" in capsys.readouterr().out


@pytest.mark.cluster
async def test_interrupted_it_keeps_what_it_has(cluster: Cluster, tmp_path: Path) -> None:
    """Ctrl-C in the middle: a file that decodes, nothing beside it, and a status that says so."""
    path = tmp_path / "out.mp4"
    command = [sys.executable, "-m", "launch", "client", "a red ball", "--url", cluster.url]
    command += ["--seconds", "600", "-o", str(path)]
    others = {session["id"] for session in cluster.listed("sessions")}
    client = await asyncio.create_subprocess_exec(*command)

    def is_in_the_middle() -> bool:
        """A recorder is sent no more than it has acknowledged and a lead: by this chunk it has some."""
        made = [session["seq"] for session in cluster.listed("sessions") if session["id"] not in others]
        return any(seq >= 12 for seq in made)

    await until(is_in_the_middle)
    (partial,) = os.listdir(tmp_path)
    assert partial != path.name
    client.send_signal(signal.SIGINT)
    assert await client.wait() == 130
    assert os.listdir(tmp_path) == ["out.mp4"]
    with av.open(str(path)) as video:
        assert sum(1 for _ in video.decode(video=0)) >= 12


async def test_a_failure_without_words_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a timeout has none."""

    async def fail(*arguments: object, **options: object) -> None:
        raise TimeoutError

    monkeypatch.setattr(client_cmd, "record", fail)
    assert await client_cmd.run(ClientConfig(prompt="p", output=str(tmp_path / "out.mp4"))) == 1
    assert capsys.readouterr().err == "turboserve client: TimeoutError (http://127.0.0.1:8080)\n"


async def test_no_server_is_a_sentence(
    unused_port: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Status 1 and no file."""
    path = tmp_path / "out.mp4"
    url = f"http://127.0.0.1:{unused_port}"
    assert await client_cmd.run(ClientConfig(prompt="p", url=url, output=str(path))) == 1
    assert capsys.readouterr().err.startswith("turboserve client: ")
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seconds", 0.0),
        ("seed", -1),
        ("output", "x.avi"),
        ("prompt", ""),
        ("url", "ftp://h"),
        ("token", "a b"),
    ],
)
def test_bad_values_are_refused(field: str, value: object) -> None:
    """Before a connection is made."""
    with pytest.raises(ValueError, match=field):
        ClientConfig(**({"prompt": "p"} | {field: value}))  # type: ignore[arg-type]
