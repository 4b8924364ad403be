"""What engines cost in a simulation: a measured profile, or one of the named ones. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from scheduler.domain import EngineCosts, ModelInfo
from scheduler.schema import decode_fields

__all__ = ["PROFILES", "Profile", "find_profile", "read_profile", "scaled"]

MIB: Final = 1 << 20
CLEAN_PASSES: Final = 1
"""Of an engine's chunks: the pass that writes their K/V, after the frames have left."""
MIN_PASS_MS: Final = 0.001
"""Of a file: less might be no time at all beside the time of day."""
MIN_GAIN: Final = 0.02
"""As in the engine's planner: a larger batch must make a row cheaper by this share."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """One model on one kind of engine. Checked on construction.

    Raises:
        ValueError: a value is out of its range.
    """

    name: str
    model: ModelInfo
    costs: EngineCosts
    capacity: int
    """Slots of an engine."""
    state_bytes: int
    """What a migration sends."""
    precopy: float = 0.0
    """Share of it that is sent while the session still generates, 0 to 1."""
    offload_ms: float = 20.0
    """State from a slot to host memory, or back."""
    offload_after_ms: float = 30_000.0
    """An idle session gives up its slot after so long."""
    clean_passes: int = 0
    """Of a chunk's passes, those that run after its frames have left. None in most named profiles: their
    latencies are whole chunks'."""
    rebuild_passes: int = 5
    """Clean passes that a session rebuilt from its checkpoint needs first."""
    encode_ms: float = 0.0
    """From a chunk's frames to its last byte on the way, while the engine goes on with others."""
    open_ms: float = 5.0
    """From the placement of a session to where its engine can begin its first chunk."""
    lead_ms: float = 1_500.0
    """Video that players hold, if it is more than a chunk."""
    start_ms: float = 0.0
    """From wanting an engine to its being ready."""
    stop_ms: float = 0.0
    """From the order to stop to the end of its cost."""

    def __post_init__(self) -> None:
        if self.capacity < 1 or self.costs.chunk_passes < 1 or not self.costs.pass_ms[-1]:
            raise ValueError("a profile needs a capacity, a cost table and the passes of a chunk")
        if not 0 <= self.clean_passes < self.costs.chunk_passes:
            raise ValueError("a chunk needs a pass before its frames can leave")
        delays_ms = (self.start_ms, self.stop_ms, self.offload_ms, self.encode_ms, self.open_ms)
        if not 0.0 <= self.precopy <= 1.0 or min(delays_ms) < 0:
            raise ValueError("precopy must be between 0 and 1, and delays not negative")

    @property
    def play_ms(self) -> float:
        """How long a chunk plays."""
        return 1000.0 * self.model.chunk_frames / self.model.fps

    @property
    def pass_ms(self) -> tuple[float, ...]:
        """Over a full window, by rows, [0] unused: up to the batch that does most work per millisecond."""
        return self.windows_ms[-1]

    @property
    def windows_ms(self) -> tuple[tuple[float, ...], ...]:
        """The same for each chunk of a session until its window is full, the last for all after it. The first
        bucket of the costs is a chunk.
        """
        full, buckets = self.costs.pass_ms[-1], self.costs.buckets
        measured = [row for row, ms in enumerate(full) if ms > 0]
        best, gain = 1, 1.0
        for rows, row in enumerate(measured, start=1):
            if (faster := rows * full[measured[0]] / full[row]) * (1.0 - MIN_GAIN) >= gain:
                best, gain = rows, faster
        ends = [min(end, buckets[-1]) for end in range(buckets[0], buckets[-1] + buckets[0], buckets[0])]
        tables = [self.costs.pass_ms[bisect_left(buckets, end)] for end in ends]
        return tuple((0.0, *(_cell(table, row) or full[row] for row in measured[:best])) for table in tables)


def _cell(table: Sequence[float], row: int) -> float:
    """0: not measured."""
    return table[row] if row < len(table) else 0.0


def scaled(profile: Profile, speed: float) -> Profile:
    """Of an engine that computes `speed` times as fast."""
    costs = profile.costs
    passes = tuple(tuple(ms / speed for ms in bucket) for bucket in costs.pass_ms)
    return replace(profile, costs=replace(costs, pass_ms=passes, decode_ms=costs.decode_ms / speed))


def by_chunk(profile: Profile) -> Profile:
    """The same with chunks as the unit of coalescing: who is not in a batch's beginning waits for its end."""
    costs = profile.costs
    passes = tuple(tuple(ms * costs.chunk_passes for ms in bucket) for bucket in costs.pass_ms)
    whole = replace(costs, pass_ms=passes, chunk_passes=1, first_chunk_passes=1)
    return replace(profile, name=f"{profile.name}:chunk", costs=whole, clean_passes=0, rebuild_passes=1)


def read_profile(name: str, data: Mapping[str, Any], **changes: Any) -> Profile:
    """What `turboserve profile` wrote. changes: fields that it can't know, or to be set otherwise.

    Raises:
        ValueError: it is not such a file.
    """
    try:
        model, costs, link = data["model"], data["costs"], data["migration"]
        table = decode_fields(
            EngineCosts, {**costs, "move_ms": link["alpha_ms"], "link_bytes_per_ms": link["bytes_per_ms"]}
        )
        shown = decode_fields(ModelInfo, model)
        if why := _flaw(shown, table, link["slab_bytes"], data["memory"]["sessions_that_fit"]):
            raise ValueError(why)
        known = {
            "capacity": min(len(table.pass_ms[-1]), data["memory"]["sessions_that_fit"]),
            "state_bytes": link["slab_bytes"],
            "clean_passes": CLEAN_PASSES,
            "rebuild_passes": max(1, round(link["rebuild_ms"] / table.pass_ms[-1][0])),
        }
        return Profile(name=name, model=shown, costs=table, **{**known, **changes})
    except (KeyError, TypeError, IndexError, ValueError, OverflowError) as exc:
        raise ValueError(f"{name} is not a profile that `turboserve profile` wrote: {exc!r}") from exc


def _flaw(model: ModelInfo, costs: EngineCosts, *counts: object) -> str:
    """With what no engine could be simulated; "" for sound numbers."""
    if min(model.fps, model.chunk_frames, costs.link_bytes_per_ms) <= 0:
        return "fps, chunk_frames and bytes_per_ms must be above 0"
    if min(costs.decode_ms, costs.move_ms, *(ms for table in costs.pass_ms for ms in table)) < 0:
        return "times must not be negative"
    if not costs.pass_ms or min(costs.pass_ms[-1][:1], default=0.0) < MIN_PASS_MS:
        return f"a pass over the full window must take {MIN_PASS_MS:g} ms or longer"
    if any(0 < ms < MIN_PASS_MS for table in costs.pass_ms for ms in table):
        return f"passes must take {MIN_PASS_MS:g} ms or longer"
    if len(costs.buckets) != len(costs.pass_ms) or list(costs.buckets) != sorted({0, *costs.buckets})[1:]:
        return "buckets must rise, each with its passes"
    if not all(isinstance(count, int) and count >= 0 for count in counts):
        return "slab_bytes and sessions_that_fit must be whole numbers"
    return ""


def _model(name: str, fps: int, chunk_frames: int, width: int, height: int) -> ModelInfo:
    return ModelInfo(
        name=name,
        weights_hash="",
        state_version=1,
        width=width,
        height=height,
        fps=fps,
        chunk_frames=chunk_frames,
        controls=False,
    )


def _costs(chunk_ms: tuple[float, ...], decode_ms: float = 0.0, **link: float) -> EngineCosts:
    """Of chunks of four steps and a clean pass, from what their passes take with 1, 2 ... sessions."""
    table = tuple(ms / 5 for ms in chunk_ms)
    return EngineCosts(
        buckets=(1,),
        pass_ms=(table,),
        decode_ms=decode_ms,
        chunk_passes=5,
        first_chunk_passes=5,
        move_ms=link.get("move_ms", 8.0),
        link_bytes_per_ms=link.get("link_bytes_per_ms", 32.0 * MIB),
    )


PAPER: Final = Profile(
    name="paper",
    model=_model("paper", 20, 32, 1280, 720),
    costs=_costs((800.0, 1033.0, 1267.0, 1500.0)),
    capacity=4,
    state_bytes=576 * MIB,
)
"""Chunks of 0.8 to 1.5 s and migrations of 26 ms, as the paper says; that four sessions are the most in real
time, what lies between, and engines that are ready at once, are taken from its code and its formulation."""

PROFILES: Final[Mapping[str, Profile]] = {
    profile.name: profile
    for profile in (
        PAPER,
        replace(PAPER, name="paper-start", start_ms=10_000.0, stop_ms=1_000.0),
        Profile(
            name="analytic",
            model=_model("analytic", 16, 64, 1280, 720),
            costs=_costs(tuple(183.84 + 55.0 * (n - 1) + 18.0 * (n / 4) ** 2 for n in range(1, 5))),
            capacity=4,
            state_bytes=1024 * MIB,
        ),
        Profile(
            name="shapes-cpu",
            model=_model("shapes", 16, 12, 96, 96),
            costs=_costs(
                tuple(5 * ms for ms in (23.6, 42.7, 60.1, 77.5, 98.1, 118.8, 139.5, 160.1)),
                decode_ms=31.0,
            ),
            capacity=4,
            state_bytes=4 * MIB,
            precopy=0.8,
            start_ms=2_500.0,
            stop_ms=500.0,
        ),
        Profile(
            name="wan-h200",
            model=_model("wan-1.3b-causal", 16, 12, 832, 480),
            costs=_costs(
                tuple(5 * ms for ms in (56.5, 106.9)),
                decode_ms=9.3,
                link_bytes_per_ms=53e6,
            ),
            capacity=2,
            state_bytes=3_509 * MIB,
            precopy=0.75,
            offload_ms=68.0,
            clean_passes=CLEAN_PASSES,
            rebuild_passes=4,
            start_ms=30_000.0,
            stop_ms=2_000.0,
        ),
    )
}
"""`analytic` is the public code's latency model at 720p, 64 frames, 256 tokens. `shapes-cpu` was measured on
two CPU cores under load. `wan-h200` was measured on one H200 (bench/results/wan_h200_2026-11-26.md: fused
blocks, grouped attention): a chunk takes 235 ms to its frames and 292 whole alone, 448 and 553 of two, the
clean pass after the frames; state, and offload at 54 GB/s. Assumed there: the link to another card, how much
of a move is sent before, starts and stops."""


def find_profile(name: str) -> Profile:
    """A named one. Raises ValueError with the names that there are."""
    profile = PROFILES.get(name)
    if profile is None:
        raise ValueError(f"profile {name!r} does not exist; available: {', '.join(PROFILES)}")
    return profile
