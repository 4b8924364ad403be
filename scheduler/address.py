"""The URL of a Redis, taken apart. Pure.

    redis://[[user]:password@]host[:port][/db]
    rediss://…                                        the same over TLS
    unix:///path/of/socket[?db=0]
    redis+sentinel://[[user]:password@]host[:port],host[:port]…/service[/db]      also rediss+sentinel://

User and password are those of the Redis, also with sentinels. Parameters behind `?`: `db`; for TLS
`ssl_ca_certs`, `ssl_certfile`, `ssl_keyfile` (paths) and `ssl_check_hostname` (`false` where the certificate
names no host); for sentinels that ask for one, `sentinel_username` and `sentinel_password`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

__all__ = ["RedisAddress", "is_redis_url", "mask_password", "parse_address"]

SCHEMES: Final = ("redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel")
PORT: Final = 6379
SENTINEL_PORT: Final = 26379
_TLS_PATHS: Final = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_TLS: Final = frozenset({*_TLS_PATHS, "ssl_check_hostname"})
_SENTINEL: Final = frozenset({"sentinel_username", "sentinel_password"})
_USER_INFO: Final = re.compile(r"(?<=://)([^/?#@:]*):[^/?#]*@")
_SENTINEL_PASSWORD: Final = re.compile(r"(?<=[?&]sentinel_password=)[^&#]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisAddress:
    """Where one Redis is and how to come in. Its text holds no password."""

    hosts: tuple[tuple[str, int], ...] = ()
    """The server, or the sentinels that know it; none with a Unix socket."""
    path: str = ""
    """Unix socket."""
    service: str = ""
    """What the sentinels call the server; "" without sentinels."""
    db: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    is_tls: bool = False
    ca_certs: str | None = None
    """Path of the certificates that may have signed the server's; None: those that the system trusts."""
    certfile: str | None = None
    """Path of our own certificate, for servers that ask for one."""
    keyfile: str | None = None
    check_hostname: bool = True
    sentinel_username: str | None = None
    sentinel_password: str | None = field(default=None, repr=False)


def is_redis_url(text: str) -> bool:
    """Does it start like the URL of a Redis?"""
    return text.startswith(tuple(f"{scheme}://" for scheme in SCHEMES))


def mask_password(url: str) -> str:
    """The URL as it may be shown: passwords are ***."""
    return _SENTINEL_PASSWORD.sub("***", _USER_INFO.sub(r"\1:***@", url))


def parse_address(url: str) -> RedisAddress:
    """Raises ValueError with a sentence that does not repeat the URL: it may hold a password."""
    if not is_redis_url(url):
        raise ValueError(
            "redis must be a URL that starts with redis://, rediss://, unix://, redis+sentinel:// or "
            "rediss+sentinel://"
        )
    try:
        parts = urlsplit(url)
        query = parts.query.replace("+", "%2B")  # no form: a plus is no space
        options = dict(parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query)))
    except ValueError:
        raise ValueError("redis is not a valid URL") from None
    if parts.scheme == "unix" and (parts.netloc.rpartition("@")[2] or not parts.path.strip("/")):
        raise ValueError("redis must name its socket by the whole path: unix:///path/of/socket")
    _check_options(parts.scheme, options)
    user_info, _, places = parts.netloc.rpartition("@")
    username, _, password = user_info.partition(":")
    service, db = _service_and_db(parts, options)
    return RedisAddress(
        hosts=_hosts(places, SENTINEL_PORT if service else PORT) if parts.scheme != "unix" else (),
        path=unquote(parts.path) if parts.scheme == "unix" else "",
        service=service,
        db=db,
        username=unquote(username) or None,
        password=unquote(password) or None,
        is_tls=parts.scheme.startswith("rediss"),
        ca_certs=options.get("ssl_ca_certs"),
        certfile=options.get("ssl_certfile"),
        keyfile=options.get("ssl_keyfile"),
        check_hostname=options.get("ssl_check_hostname", "true") != "false",
        sentinel_username=options.get("sentinel_username"),
        sentinel_password=options.get("sentinel_password"),
    )


def _check_options(scheme: str, options: Mapping[str, str]) -> None:
    known = {"db"}
    if scheme.startswith("rediss"):
        known |= _TLS
    if scheme.endswith("sentinel"):
        known |= _SENTINEL
    unknown = sorted(options.keys() - known)
    if unknown:
        raise ValueError(
            f"redis has the parameter {unknown[0]}, but a {scheme}:// URL can have {', '.join(sorted(known))}"
        )
    if options.get("ssl_check_hostname", "true") not in ("true", "false"):
        raise ValueError("redis: ssl_check_hostname must be true or false")
    if "ssl_keyfile" in options and "ssl_certfile" not in options:
        raise ValueError("redis has ssl_keyfile without ssl_certfile")


def _service_and_db(parts: SplitResult, options: Mapping[str, str]) -> tuple[str, int]:
    names = [] if parts.scheme == "unix" else [unquote(name) for name in parts.path.split("/")[1:] if name]
    service = ""
    if parts.scheme.endswith("sentinel"):
        if not names:
            raise ValueError("redis names sentinels but no service: redis+sentinel://host:port/service")
        service = names.pop(0)
    number = names.pop(0) if names else options.get("db", "0")
    if names or not re.fullmatch(r"[0-9]{1,5}", number):
        raise ValueError("redis must end with the number of a database, or without one")
    return service, int(number)


def _hosts(places: str, default_port: int) -> tuple[tuple[str, int], ...]:
    hosts: list[tuple[str, int]] = []
    for place in places.split(","):
        found = re.fullmatch(r"(\[[0-9A-Fa-f:.%]+\]|[^:\[\]]*)(?::([0-9]{1,5}))?", place)
        port = int(found[2] or default_port) if found else 0
        if found is None or not 0 < port < 65_536:
            raise ValueError("redis must name its hosts as host or host:port, several separated by commas")
        hosts.append((found[1].strip("[]") or "localhost", port))
    return tuple(hosts)
