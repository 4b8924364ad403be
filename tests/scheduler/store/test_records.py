"""Records from what Redis holds."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace

import pytest

from scheduler.messages import EngineCosts
from scheduler.store import records
from scheduler.store.records import CostTables, costs_json

COSTS = EngineCosts(
    buckets=(1,), pass_ms=((10.0, 19.0),), decode_ms=1.0, chunk_passes=5, first_chunk_passes=5
)


def text(number: int) -> str:
    return costs_json(replace(COSTS, decode_ms=float(number)))


def test_cost_tables_are_shared_and_kept_while_somebody_has_them() -> None:
    """The same text gives the very same table, also after all engines were read again."""
    tables = CostTables()
    first = tables.read(text(1))
    assert first == replace(COSTS, decode_ms=1.0)
    for _ in range(3):
        with tables.reading_all():
            assert tables.read(text(1)) is first


def test_cost_tables_outlive_reads_that_overlap() -> None:
    """However many read all engines at once, and in whatever order they end."""
    tables = CostTables()
    first = tables.read(text(1))
    for _ in range(3):
        with ExitStack() as others:
            with tables.reading_all():
                assert tables.read(text(1)) is first
                for _ in range(3):
                    others.enter_context(tables.reading_all())


def test_cost_tables_that_nobody_has_are_forgotten() -> None:
    """An engine that measures anew all the time leaves its newest."""
    tables = CostTables()
    for number in range(100):
        with tables.reading_all():
            tables.read(text(number))
    assert len(tables) == 1


def test_cost_tables_are_bounded_where_engines_are_never_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Single engines may be read for ever."""
    monkeypatch.setattr(records, "MAX_TABLES", 10)
    tables = CostTables()
    for number in range(100):
        tables.read(text(number))
    assert len(tables) <= 20
