"""The queue's expected waits."""

from __future__ import annotations

import pytest

from scheduler.store.values import queue_eta_ms


@pytest.mark.parametrize(
    ("position", "starting_ms", "eta_ms"),
    [
        pytest.param(3, [], 30_000, id="places become free"),
        pytest.param(1, [5_000], 5_000, id="an engine is sooner"),
        pytest.param(4, [5_000], 5_000, id="it has a place for the last"),
        pytest.param(5, [5_000], 50_000, id="not for the next"),
        pytest.param(5, [9_000, 5_000], 9_000, id="the second engine has"),
        pytest.param(1, [15_000], 10_000, id="an engine is later"),
        pytest.param(1, [0], 0, id="an engine is overdue"),
    ],
)
def test_places_or_engines_whichever_is_sooner(position: int, starting_ms: list[int], eta_ms: int) -> None:
    """A place becomes free every 10 s; an engine brings four."""
    assert queue_eta_ms(position, 10_000, starting_ms, 4) == eta_ms
