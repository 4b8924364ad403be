"""What a pass costs: t(B, KV bucket), measured once and then kept current by observation. Pure.

A cell that was not observed for long is hoped to be cheaper than it says, the longer the more, so that sooner
or later its size is tried again: a wrong cell would otherwise never be found out. What that costs is bounded:
a size that is worse by a share s is tried once in s / HOPE_PER_PASS passes.

A KV bucket is a number of valid ring frames. A pass over rows of several buckets is counted in the largest
of them: ragged lengths exist only while sessions are young, and too high an estimate breaks no deadline.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, replace

__all__ = ["CostTable"]

COMMON_RATE = 0.05
"""Share of a deviation by which one observation moves the whole table: a machine gets slower as a whole."""
CELL_RATE = 0.05
"""Further share by which it moves the observed cell, at least."""
STALE_CELL_RATE = 0.5
"""The same, at most, for a cell that was last observed STALE_PASSES ago; it does not move the others."""
STALE_PASSES = 200
HOPE_PER_PASS = 0.0005
"""By this share a cell is hoped to be cheaper for each pass that was not in it. It is also the most that
looking again at one cell costs, as a share of all time."""
MAX_HOPE = 0.5
MEASURED_AGE, GUESSED_AGE = 100, 300
"""Of a cell that was measured or interpolated at start-up, in passes: the first passes of an engine try all
sizes that may be as good, and correct them soon."""
MAX_RATIO = 2.0
"""An interrupted pass counts as this much too slow at most: one outlier must not rewrite the table."""
DECODE_RATE = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class CostTable:
    """Milliseconds of one pass, by KV bucket and number of rows. Checked on construction."""

    buckets: tuple[int, ...]
    """Valid ring frames, rising."""
    ms: tuple[tuple[float, ...], ...]
    """One tuple per bucket: t(1), t(2), ..., t(largest)."""
    ages: tuple[tuple[int, ...], ...] = ()
    """Observations since each cell was observed; () for none."""
    decode_ms: float = 0.0
    """From the last pass of a chunk to its frames on the host."""

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in zip(self.buckets, self.buckets[1:], strict=False))
        even = len({len(cells) for cells in self.ms}) == 1 and len(self.ms) == len(self.buckets)
        if not (self.buckets and rising and even and self.ms[0]) or min(map(min, self.ms)) <= 0:
            raise ValueError(
                "a cost table needs rising buckets and in each the positive milliseconds of "
                f"B = 1, 2, ..., got {self.buckets} and {self.ms}"
            )
        if not self.ages:
            object.__setattr__(self, "ages", tuple((0,) * len(cells) for cells in self.ms))

    @classmethod
    def flat(cls, *ms: float, decode_ms: float = 0.0) -> CostTable:
        """t(1), t(2), ... that do not depend on the KV length."""
        return cls(buckets=(1,), ms=(ms,), decode_ms=decode_ms)

    @classmethod
    def from_samples(cls, samples: Mapping[int, Mapping[int, float]], *, decode_ms: float = 0.0) -> CostTable:
        """From {bucket: {rows: ms}}, the same rows in each, 1 among them.

        Numbers of rows between two measured ones are interpolated, dips are levelled.
        """
        buckets = tuple(sorted(samples))
        return cls(
            buckets=buckets,
            ms=tuple(_interpolated(samples[bucket]) for bucket in buckets),
            ages=tuple(
                tuple(
                    MEASURED_AGE if rows in samples[bucket] else GUESSED_AGE
                    for rows in _sizes(samples[bucket])
                )
                for bucket in buckets
            ),
            decode_ms=decode_ms,
        )

    @property
    def largest(self) -> int:
        """Largest batch that may run."""
        return len(self.ms[0])

    def pass_ms(self, rows: int, bucket: int) -> float:
        """Expected milliseconds of a pass whose longest KV has `bucket` valid ring frames."""
        return self.ms[self._at(bucket)][min(rows, self.largest) - 1]

    def hoped_ms(self, rows: int, bucket: int) -> float:
        """What such a pass may cost if the cell is wrong; to choose by, not to rely on."""
        at, size = self._at(bucket), min(rows, self.largest)
        return self.ms[at][size - 1] * (1.0 - min(HOPE_PER_PASS * self.ages[at][size - 1], MAX_HOPE))

    def limited(self, rows: int) -> CostTable:
        """The table for batches of at most so many rows."""
        return replace(
            self,
            ms=tuple(cells[:rows] for cells in self.ms),
            ages=tuple(ages[:rows] for ages in self.ages),
        )

    def observed(self, rows: int, bucket: int, measured_ms: float) -> CostTable:
        """The table after one more measured pass, all of whose rows were in this bucket."""
        at, size = self._at(bucket), min(rows, self.largest)
        ratio = min(max(measured_ms / self.ms[at][size - 1], 1.0 / MAX_RATIO), MAX_RATIO)
        staleness = min(self.ages[at][size - 1] / STALE_PASSES, 1.0)
        common = ratio ** (COMMON_RATE * (1.0 - staleness))
        table = [[ms * common for ms in cells] for cells in self.ms]
        table[at][size - 1] *= ratio ** (CELL_RATE + staleness * (STALE_CELL_RATE - CELL_RATE))
        ages = [[age + 1 for age in cells] for cells in self.ages]
        ages[at][size - 1] = 0
        return replace(self, ms=tuple(map(tuple, table)), ages=tuple(map(tuple, ages)))

    def decoded(self, measured_ms: float) -> CostTable:
        """The table after one more measured decode."""
        return replace(self, decode_ms=self.decode_ms + DECODE_RATE * (measured_ms - self.decode_ms))

    def _at(self, bucket: int) -> int:
        return min(bisect_left(self.buckets, bucket), len(self.buckets) - 1)


def _sizes(samples: Mapping[int, float]) -> range:
    return range(1, max(samples) + 1)


def _interpolated(samples: Mapping[int, float]) -> tuple[float, ...]:
    sizes = sorted(samples)
    table: list[float] = []
    for size in _sizes(samples):
        low = max(s for s in sizes if s <= size)
        high = min(s for s in sizes if s >= size)
        share = 0.0 if low == high else (size - low) / (high - low)
        table.append(max(samples[low] + share * (samples[high] - samples[low]), *table[-1:], 0.0))
    return tuple(table)
