"""Which sessions' passes run together next. Pure and deterministic: every rank computes the same batch.

Earliest deadline first, at the granularity of one pass. A batch grows only while a row gets cheaper by it
and while nobody who would meet its deadline next to a batch of one misses it next to the larger batch.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from scheduler.messages import SessionId

__all__ = ["Batch", "CostTable", "ReadyRow", "plan"]

MIN_GAIN = 0.03
"""A larger batch must make a row cheaper by this share; below it, batching only delays who is first."""
_LEARNING_RATE = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadyRow:
    """A session whose next pass could run now."""

    session: SessionId
    step: int
    index: int
    passes_left: int
    """Passes until its frames are there, this one included; at least 1."""
    deadline_ms: float
    """When its last pass must be done, on the caller's clock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CostTable:
    """Measured t(B): milliseconds of one pass with B = 1, 2, ... rows. Rises with B."""

    ms: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.ms or min(self.ms) <= 0:
            raise ValueError(f"a cost table needs positive milliseconds for B = 1, 2, ..., got {self.ms}")

    @classmethod
    def from_samples(cls, samples: dict[int, float]) -> CostTable:
        """From some measured sizes, B = 1 among them; those between are interpolated, dips are levelled."""
        sizes = sorted(samples)
        table: list[float] = []
        for size in range(1, sizes[-1] + 1):
            low = max(s for s in sizes if s <= size)
            high = min(s for s in sizes if s >= size)
            share = 0.0 if low == high else (size - low) / (high - low)
            table.append(max(samples[low] + share * (samples[high] - samples[low]), *table[-1:], 0.0))
        return cls(ms=tuple(table))

    @property
    def largest(self) -> int:
        """Largest batch that may run."""
        return len(self.ms)

    def pass_ms(self, rows: int) -> float:
        return self.ms[min(rows, self.largest) - 1]

    def observe(self, rows: int, measured_ms: float) -> CostTable:
        """The table after one more measured pass: the whole curve follows what is common to all sizes."""
        drift = 1.0 + _LEARNING_RATE * (measured_ms / self.pass_ms(rows) - 1.0)
        drift = min(max(drift, 0.8), 1.25)  # one outlier must not rewrite the table
        return CostTable(ms=tuple(cost * drift for cost in self.ms))


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Rows of the next pass, earliest deadline first; empty when nothing is ready."""

    rows: tuple[ReadyRow, ...]


def plan(ready: Iterable[ReadyRow], costs: CostTable, now_ms: float) -> Batch:
    """Choose the rows of the next pass. The order of `ready` does not matter."""
    order = sorted(ready, key=lambda row: (row.deadline_ms, row.session))
    size = min(1, len(order))
    for larger in range(2, min(len(order), costs.largest) + 1):
        if not _pays(costs, size, larger):
            continue
        if _breaks_a_deadline(order, costs, larger, now_ms):
            break
        size = larger
    return Batch(rows=tuple(order[:size]))


def _pays(costs: CostTable, size: int, larger: int) -> bool:
    return costs.pass_ms(larger) / larger <= (1.0 - MIN_GAIN) * costs.pass_ms(size) / size


def _breaks_a_deadline(order: list[ReadyRow], costs: CostTable, size: int, now_ms: float) -> bool:
    return any(
        _finish_ms(row, place, costs, 1, now_ms)
        <= row.deadline_ms
        < _finish_ms(row, place, costs, size, now_ms)
        for place, row in enumerate(order)
    )


def _finish_ms(row: ReadyRow, place: int, costs: CostTable, size: int, now_ms: float) -> float:
    """When the row's frames could be there if this pass has `size` rows and it is alone afterwards."""
    passes_after = row.passes_left - 1 if place < size else row.passes_left
    return now_ms + costs.pass_ms(size) + passes_after * costs.pass_ms(1)
