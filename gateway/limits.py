"""How much a client may ask per second and hold at once: buckets, places, a merger for controls. Pure."""

from __future__ import annotations

import ipaddress
from enum import Enum

from gateway.protocol import MAX_KEYS, Control
from scheduler.messages import ControlInput

MESSAGES_PER_S = 100
MESSAGE_BURST = 200
MESSAGE_BYTES = 2048
"""A longer message counts as one more for each of them: it takes as much longer to read."""
MAX_REFUSED = 100
"""Refused messages without a pause before the connection closes 4429."""
CONTROL_INTERVAL_MS = 50
"""Controls reach the input log at most so often; what comes between is merged."""
MAX_MERGED_IDS = 64


class Verdict(Enum):
    """What to do with one more message."""

    PASS = "pass"
    TELL = "tell"
    """Refuse it and say so: the first of a series, and every 20th."""
    DROP = "drop"
    """Refuse it silently: the client was told."""
    CLOSE = "close"


class MessageBucket:
    """Lets MESSAGES_PER_S through, MESSAGE_BURST at once."""

    def __init__(self) -> None:
        self._tokens = float(MESSAGE_BURST)
        self._last_ms: float | None = None
        self._refused = 0

    def spend(self, now_ms: float, cost: int = 1) -> Verdict:
        """Count one message, or so many, up to MESSAGE_BURST, at `now_ms`, a monotonic clock."""
        if self._last_ms is not None:
            gained = max(0.0, now_ms - self._last_ms) * MESSAGES_PER_S / 1000
            self._tokens = min(float(MESSAGE_BURST), self._tokens + gained)
        self._last_ms = now_ms
        if self._tokens >= MESSAGE_BURST - 1:
            self._refused = 0
        if self._tokens >= cost:
            self._tokens -= cost
            return Verdict.PASS
        self._refused += 1
        if self._refused > MAX_REFUSED:
            return Verdict.CLOSE
        return Verdict.TELL if self._refused % 20 == 1 else Verdict.DROP


class RateBuckets:
    """One bucket for each name (an address, a subject): `rate_per_s` on average, `burst` at once.

    Full buckets are forgotten, so that what is kept is bounded by who was here lately; beyond `MAX_NAMES` the
    one that was used least lately is forgotten, full or not.
    """

    MAX_NAMES = 10_000

    def __init__(self, rate_per_s: float, burst: float) -> None:
        self._rate_per_ms = rate_per_s / 1000
        self._burst = burst
        self._buckets: dict[str, tuple[float, float]] = {}
        """Name → (tokens, when), least lately used first."""

    def spend(self, name: str, now_ms: float, cost: float = 1.0) -> int | None:
        """Take `cost` at `now_ms`, a monotonic clock.

        Returns None if it was there, else after how many ms to try again; then nothing was taken.
        """
        tokens = self._tokens(name, now_ms)
        if tokens < cost:
            return int((cost - tokens) / self._rate_per_ms) + 1
        self._put(name, tokens - cost, now_ms)
        return None

    def punish(self, name: str, now_ms: float, cost: float) -> None:
        """Take up to `cost`, whether it is there or not."""
        self._put(name, max(0.0, self._tokens(name, now_ms) - cost), now_ms)

    def _tokens(self, name: str, now_ms: float) -> float:
        tokens, last_ms = self._buckets.get(name, (self._burst, now_ms))
        return min(self._burst, tokens + max(0.0, now_ms - last_ms) * self._rate_per_ms)

    def _put(self, name: str, tokens: float, now_ms: float) -> None:
        self._buckets.pop(name, None)
        self._buckets[name] = (tokens, now_ms)
        while self._buckets:
            oldest = next(iter(self._buckets))
            if len(self._buckets) <= self.MAX_NAMES and self._tokens(oldest, now_ms) < self._burst:
                break
            del self._buckets[oldest]

    def __len__(self) -> int:
        return len(self._buckets)


class Places:
    """What each name (an address) holds at once: at most `limit`."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._taken: dict[str, int] = {}

    def take(self, name: str) -> bool:
        """False: the name holds as many as it may."""
        taken = self._taken.get(name, 0)
        if taken >= self._limit:
            return False
        self._taken[name] = taken + 1
        return True

    def give_back(self, name: str) -> None:
        """One that was taken."""
        self._taken[name] -= 1
        if not self._taken[name]:
            del self._taken[name]

    def __len__(self) -> int:
        return len(self._taken)


def who_shares(address: str) -> str:
    """The name under which an address has its bucket: of IPv6 the /64 that one customer gets.

    Some proxies add the port, which is another with each connection: it does not count.
    """
    try:
        ip = ipaddress.ip_address(_without_port(address))
    except ValueError:
        return address
    if isinstance(ip, ipaddress.IPv4Address) or ip.is_loopback:
        return str(ip)
    if ip.ipv4_mapped is not None:
        return str(ip.ipv4_mapped)
    return f"{ipaddress.IPv6Address(int(ip) >> 64 << 64)}/64"


def _without_port(address: str) -> str:
    """Of 192.0.2.1:1234 and [2001:db8::1]:1234 the address."""
    if address.startswith("["):
        return address[1:].partition("]")[0]
    return address.partition(":")[0] if address.count(":") == 1 else address


class ControlMerger:
    """Merges `control` messages to one per CONTROL_INTERVAL_MS.

    A key that was pressed and released between two slots is in the first entry and not in the second, so the
    model sees every press.
    """

    def __init__(self) -> None:
        self._latest: Control | None = None
        self._pressed: dict[str, None] = {}
        self._ids: list[str] = []
        self._next_ms = 0.0

    def push(self, control: Control) -> bool:
        """Take one in. False: too many ids wait already, and this message was not taken."""
        if control.id is not None and control.id in self._ids:
            return True  # a repeat
        if control.id is not None:
            if len(self._ids) >= MAX_MERGED_IDS:
                return False
            self._ids.append(control.id)
        self._latest = control
        for key in control.keys:
            if len(self._pressed) < MAX_KEYS:
                self._pressed[key] = None
        return True

    @property
    def ids(self) -> tuple[str, ...]:
        """Message ids that wait for the next entry."""
        return tuple(self._ids)

    def due_ms(self) -> float | None:
        """When the next entry may go to the log; None: nothing waits."""
        return self._next_ms if self._latest is not None else None

    def pop(self, now_ms: float) -> tuple[ControlInput, tuple[str, ...]] | None:
        """The merged entry and the message ids it answers, if one waits and its slot has come."""
        latest = self._latest
        if latest is None or now_ms < self._next_ms:
            return None
        ids, self._ids = tuple(self._ids), []
        keys = tuple(self._pressed)
        released = set(keys) != set(latest.keys)
        self._pressed = dict.fromkeys(latest.keys) if released else {}
        self._latest = Control(keys=latest.keys, axes=latest.axes) if released else None
        self._next_ms = now_ms + CONTROL_INTERVAL_MS
        return ControlInput(keys=keys, axes=latest.axes, id=ids[-1] if ids else None), ids
