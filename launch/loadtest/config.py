"""What `turboserve loadtest` and `turboserve compare` can be told. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from launch.config import DEFAULT_URL, check_url

__all__ = ["DEFAULT_SECONDS", "SHAPES", "CompareConfig", "LoadtestConfig"]

DEFAULT_SECONDS = 60.0
SHAPES: Final = ("steady", "step")
"""Of a made-up load over time."""
_DAY_S = 86_400.0
_BOUNDS: Final[Mapping[str, tuple[float, float]]] = {
    "time_scale": (0.001, 10_000.0),
    "seconds": (1.0, 7 * _DAY_S),
    "seed": (0, 2**31),
    "processes": (1, 64),
    "viewers": (1.0, 100_000.0),
    "life_s": (1.0, _DAY_S),
    "idle_share": (0.0, 0.95),
    "edit_every_s": (0.0, _DAY_S),
    "slow_share": (0.0, 1.0),
    "reconnect_every_s": (0.0, _DAY_S),
    "max_p99_ms": (0.0, 1e9),
    "max_worst_ms": (0.0, 1e9),
    "max_ttfc_ms": (0.0, 1e9),
    "min_cpr": (0.0, 1.0),
    "min_worst_cpr": (0.0, 1.0),
    "max_refused": (0, 10**9),
    "max_unserved": (0, 10**9),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadtestConfig:
    """A load, and what must hold under it. Checked on construction.

    Raises:
        ValueError: a value is out of its range; the text says which and why.
    """

    json: str
    """The file to write the results to."""
    html: str | None = None
    """The file to write the report to; unset: none."""
    url: str = DEFAULT_URL
    """Address of the cluster's gateway: http://, https://, ws:// or wss://."""
    token: str | None = field(default=None, repr=False)
    """Where the cluster asks for one: a token with the scopes control and admin, and a quota for the load."""
    trace: str | None = None
    """Trace to replay (JSON lines); unset: a made-up load."""
    time_scale: float = 1.0
    """How many times as fast the trace is replayed."""
    seconds: float | None = None
    """Length of the load; unset: all of the trace, or 60 s of the made-up load."""
    seed: int = 1
    """The same seed makes the same load."""
    processes: int = 2
    """Processes that the clients are spread over."""
    decode: bool = False
    """Decode every chunk and count its pictures."""
    shape: str = "steady"
    """Made-up load: `steady`, or `step`: a fifth of the viewers, all of them, a fifth, each for a third of
    the time."""
    viewers: float = 4.0
    """Made-up load: sessions at once, on average; of a step at its height."""
    life_s: float = 30.0
    """Made-up load: how long a session stays, on average."""
    idle_share: float = 0.2
    """Made-up load: share of its life in which a session is paused."""
    edit_every_s: float = 10.0
    """Made-up load: time between two prompts of a session, on average; 0: none."""
    slow_share: float = 0.0
    """Share of the clients that read more slowly than the video plays. Their continuity is told apart."""
    reconnect_every_s: float = 0.0
    """Time between two lost connections of a session, on average; 0: none."""
    max_p99_ms: float | None = None
    """Must hold: the 99th percentile of chunk latency is at most so long."""
    max_worst_ms: float | None = None
    """Must hold: no chunk's latency is longer."""
    max_ttfc_ms: float | None = None
    """Must hold: the 99th percentile of the time to the first chunk is at most so long. Who left before it,
    after so long or longer, counts with the time for which it waited."""
    min_cpr: float | None = None
    """Must hold: the mean continuous play ratio is at least so high, 0 to 1."""
    min_worst_cpr: float | None = None
    """Must hold: so is every session's."""
    gaps: bool = True
    """May streams have gaps? With --no-gaps: must hold that none has."""
    max_refused: int | None = None
    """Must hold: at most so many sessions are refused. Unset: 0 where anything else must hold."""
    max_unserved: int | None = None
    """Must hold: at most so many sessions leave before their first chunk after a fair wait: `max_ttfc_ms`,
    or 2 s where that is unset. Unset: 0 where anything else must hold."""

    def __post_init__(self) -> None:
        if not self.json or self.html in ("", self.json):
            raise ValueError("json and html must name files, and not the same one")
        check_url(self.url)
        if self.shape not in SHAPES:
            raise ValueError(f"shape must be {' or '.join(SHAPES)}, got {self.shape!r}")
        for name, (low, high) in _BOUNDS.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise ValueError(f"{name} must be between {low:g} and {high:g}, got {value:g}")


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareConfig:
    """Two results to put side by side."""

    before: str
    """Results of the one (JSON, of loadtest or simulate)."""
    after: str
    """Results of the other."""
    html: str | None = None
    """The file to write a page with both to; unset: none."""
