"""Settings of one gateway."""

from __future__ import annotations

from dataclasses import dataclass

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayConfig:
    """Checked on construction; raises ValueError with a sentence that names the setting."""

    redis: str
    """URL of the control Redis: redis://, rediss:// (TLS), unix:// or redis+sentinel://."""
    link_secret: str
    """What engines expect from a gateway."""
    cluster: str = "main"
    """Name under which all keys live in Redis."""
    gateway_id: str | None = None
    """None: random at each start."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = 8080
    """TCP port; 0 lets the system choose."""
    allowed_hosts: tuple[str, ...] = ()
    """Names that a Host header may carry besides loopback ones, without port."""
    allowed_origins: tuple[str, ...] = ()
    """Origins of foreign pages that may use this gateway, e.g. https://example.org."""
    insecure: bool = False
    """Allow an address beyond loopback although there is no authentication."""
    model: str | None = None
    """Model of a `start` that names none; None: the first that the cluster serves."""
    queue_limit: int = 64
    """Sessions of one model that may wait; more are refused with error capacity."""
    max_connections: int = 4096
    """Open connections, all kinds; more are answered with 503."""
    start_timeout_s: float = 10.0
    """For a complete request on a new connection; one that never speaks is closed."""
    first_message_timeout_s: float = 60.0
    """A WebSocket on which nothing ever arrives is closed with 4408."""
    send_timeout_s: float = 5.0
    """A message that a client does not take in this time aborts its connection."""
    ping_interval_s: float = 20.0
    """WebSocket keepalive."""
    web_root: str | None = None
    """Folder of the page; None: the installed web demo."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port must be 0 to 65535, got {self.port}")
        if not self.link_secret:
            raise ValueError("link_secret must not be empty")
        if self.host not in LOOPBACK and not self.insecure:
            raise ValueError(
                f"host {self.host} is reachable from other machines and there is no authentication: "
                "use 127.0.0.1, or set insecure to allow it all the same"
            )
        for name in ("queue_limit", "max_connections"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1")
        for name in ("start_timeout_s", "first_message_timeout_s", "send_timeout_s", "ping_interval_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be more than 0 seconds")
