"""What the scheduler can be told. `scheduler/__main__.py` reads it, `launch/` writes it. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from scheduler.address import parse_address
from scheduler.logs import check_log_format

PROVISIONERS = ("local", "kubernetes", "static")


def check_provisioner(name: str) -> None:
    """Raises ValueError: there is no such provisioner."""
    if name not in PROVISIONERS:
        raise ValueError(f"provisioner must be one of {', '.join(PROVISIONERS)}, got {name!r}")


@dataclass(frozen=True, kw_only=True)
class SchedulerConfig:
    """Checked on construction.

    Raises:
        ValueError: a value is out of its range; the text says which and why.
    """

    redis: str
    """URL of the control Redis, see `scheduler/address.py`."""
    cluster: str = "main"
    """Name below which all keys live; clusters can share one Redis."""
    policy: str = "slack"
    """Name of the placement policy, see `scheduler/policy/registry.py`."""
    model: str = "shapes"
    """Model of the engines that the scheduler asks for."""
    engines: int = 2
    """Budget: engines it keeps provisioned; the fewest where the policy chooses their number."""
    max_engines: int | None = None
    """Most engines that a policy which chooses their number may ask for; unset: as many as `engines`."""
    provisioner: str = "local"
    """Who starts engines: "local" or "kubernetes", what the scheduler wants; "static", somebody else: all
    that register are used, and no others are asked for."""
    scheduler_id: str | None = None
    """Name in the leader lease; None draws a random one."""
    lease_ttl_ms: int = 3_000
    """Time without renewal after which another scheduler may lead."""
    heartbeat_ms: int = 500
    """Interval at which engines beat."""
    heartbeat_timeout_ms: int = 2_000
    """Silence after which an engine is lost."""
    start_timeout_ms: int = 120_000
    """Time from being wanted to ready after which a starting engine is lost."""
    drain_timeout_s: int = 60
    """Who is still on an engine this long after an administrator ordered its drain goes on elsewhere from its
    checkpoint, or waits for a slot. Time in which an engine starts that may take them does not count."""
    tick_ms: int = 500
    """Longest time between two looks at the heartbeats."""
    retain_s: int = 600
    """A session that nobody controls any more is closed after this time; so long it is known then, and its
    recording kept (at least a minute)."""
    idle_close_s: int = 600
    """An idle session is closed after this time."""
    resync_s: int = 30
    """Interval at which the view is rebuilt from Redis and compared."""
    log_format: str = "text"
    """How each line is logged: text, or json, one object each."""

    def __post_init__(self) -> None:
        parse_address(self.redis)
        check_provisioner(self.provisioner)
        check_log_format(self.log_format)
        if not 0 <= self.engines <= 4_096:
            raise ValueError(f"engines must be between 0 and 4096, got {self.engines}")
        if self.max_engines is not None and not self.engines <= self.max_engines <= 4_096:
            raise ValueError(
                f"max_engines must be between engines ({self.engines}) and 4096, got {self.max_engines}"
            )
        for name in ("lease_ttl_ms", "heartbeat_ms", "heartbeat_timeout_ms", "start_timeout_ms", "tick_ms"):
            if not 10 <= getattr(self, name) <= 3_600_000:
                raise ValueError(f"{name} must be between 10 and 3600000 ms, got {getattr(self, name)}")
        if self.tick_ms * 3 > self.lease_ttl_ms:
            raise ValueError(
                "tick_ms must be at most a third of lease_ttl_ms, or the lease lapses between ticks"
            )
        if self.heartbeat_timeout_ms < 2 * self.heartbeat_ms:
            raise ValueError("heartbeat_timeout_ms must be at least twice heartbeat_ms")
        if min(self.retain_s, self.idle_close_s) < 0 or self.resync_s < 1:
            raise ValueError("retain_s and idle_close_s must not be negative, resync_s at least 1")
        if not 1 <= self.drain_timeout_s <= 86_400:
            raise ValueError(f"drain_timeout_s must be between 1 and 86400, got {self.drain_timeout_s}")
