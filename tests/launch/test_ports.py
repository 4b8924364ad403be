"""May a server listen there?"""

from __future__ import annotations

import socket

import pytest

from launch.ports import PortRefused, try_port


def test_a_taken_port_is_to_be_freed(unused_port: int) -> None:
    """Or another one chosen."""
    try_port("127.0.0.1", unused_port)
    with socket.create_server(("127.0.0.1", unused_port)) as listening:
        assert listening.fileno() > 0
        with pytest.raises(PortRefused, match=r"\(Address already in use\): stop what listens there, or"):
            try_port("127.0.0.1", unused_port)


@pytest.mark.parametrize(
    "host", ["192.0.2.1", "no.such.name.invalid", "", "a..b", "x" * 70, "fe80::1%nothing"]
)
def test_of_a_wrong_host_no_port_is_to_blame(host: str, unused_port: int) -> None:
    """No address of this machine, or none at all."""
    with pytest.raises(PortRefused, match="give an address of this machine with --host"):
        try_port(host, unused_port)


def test_the_same_port_of_ipv4_is_another(unused_port: int) -> None:
    """A gateway at :: takes IPv6 only, so it can be there beside a server of IPv4."""
    with socket.create_server(("0.0.0.0", unused_port)) as listening:
        assert listening.fileno() > 0
        try_port("::", unused_port)


def test_every_address_of_a_name_is_tried(unused_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gateway at localhost listens at both, if that has two."""
    found = [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", unused_port)),
        (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", unused_port, 0, 0)),
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments, **options: found)
    try_port("localhost", unused_port)
    with socket.create_server(("::1", unused_port), family=socket.AF_INET6) as listening:
        assert listening.fileno() > 0
        with pytest.raises(PortRefused, match="port .* on localhost can't be used"):
            try_port("localhost", unused_port)


def test_ports_of_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing listens there that could be stopped."""

    def refuse(*arguments: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied (while attempting to bind on address ('127.0.0.1', 80))")

    monkeypatch.setattr(socket, "create_server", refuse)
    with pytest.raises(PortRefused, match=r"port 80 .* \(Permission denied\): choose another with --port"):
        try_port("127.0.0.1", 80)
