"""The queue's expected waits."""

from __future__ import annotations

import pytest

from scheduler.store.values import QueueOutlook


@pytest.mark.parametrize(
    ("position", "starting_ms", "eta_ms"),
    [
        pytest.param(3, [], 30_000, id="places become free"),
        pytest.param(1, [5_000], 5_000, id="an engine is sooner"),
        pytest.param(4, [5_000], 5_000, id="it has a place for the last"),
        pytest.param(5, [5_000], 50_000, id="not for the next"),
        pytest.param(5, [5_000, 9_000], 9_000, id="the second engine has"),
        pytest.param(1, [15_000], 10_000, id="an engine is later"),
        pytest.param(1, [0], 0, id="an engine is overdue"),
    ],
)
def test_places_or_engines_whichever_is_sooner(position: int, starting_ms: list[int], eta_ms: int) -> None:
    """A place becomes free every 10 s; an engine brings four."""
    outlook = QueueOutlook(release_interval_ms=10_000, starting_ms=starting_ms, capacity=4)
    assert outlook.eta_ms(position) == eta_ms
