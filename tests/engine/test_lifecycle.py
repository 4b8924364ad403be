"""Active, idle, closed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.lifecycle import Life, LifeLimits, Verdict, judge

LIMITS = LifeLimits(linger_ms=30, retain_ms=600, idle_close_ms=400, full_ms=50)
OFFLOADING = LifeLimits(linger_ms=30, retain_ms=600, idle_close_ms=400, full_ms=50, offload_ms=70)


def verdict(
    active: bool,
    reason: str = "",
    close: str | None = None,
    next_ms: float | None = None,
    offload: bool = False,
) -> Verdict:
    return Verdict(active=active, reason=reason, offload=offload, close=close, next_ms=next_ms)


@pytest.mark.parametrize(
    ("life", "now_ms", "expected"),
    [
        (Life(), 1e9, verdict(True)),
        (Life(paused_ms=100), 100, verdict(False, "paused", next_ms=500)),
        (Life(paused_ms=100), 500, verdict(False, "paused", "idle")),
        (Life(left_ms=100), 129, verdict(True, next_ms=130)),
        (Life(left_ms=100), 130, verdict(False, "disconnected", next_ms=530)),
        (Life(left_ms=100), 530, verdict(False, "disconnected", "idle", next_ms=700)),
        (Life(left_ms=100, paused_ms=350), 699, verdict(False, "disconnected", "idle", next_ms=700)),
        (Life(full_ms=100), 149, verdict(True, next_ms=150)),
        (Life(full_ms=100), 150, verdict(False, "player_full", next_ms=550)),
        (Life(paused_ms=120, full_ms=100), 160, verdict(False, "paused", next_ms=520)),
    ],
    ids=[
        "active", "paused", "paused-too-long", "lingers", "left", "left-long", "left-paused", "filling",
        "full", "the-earlier-cause-counts",
    ],
)  # fmt: skip
def test_table(life: Life, now_ms: float, expected: Verdict) -> None:
    """What follows, by case."""
    assert judge(life, LIMITS, now_ms) == expected


def test_retain_closes_what_idles_without_limit() -> None:
    """With a long idle_close, the disconnect closes after retain_ms."""
    limits = LifeLimits(linger_ms=30, retain_ms=600, idle_close_ms=10_000)
    assert judge(Life(left_ms=100), limits, 699).close is None
    assert judge(Life(left_ms=100), limits, 700).close == "disconnected"


times = st.none() | st.integers(0, 1000).map(float)


@given(times, times, times, st.integers(0, 2000), st.integers(1, 50))
def test_nothing_changes_before_next_ms(
    paused: float | None, left: float | None, full: float | None, now: int, step: int
) -> None:
    """A timer set to next_ms misses no change."""
    life = Life(paused_ms=paused, left_ms=left, full_ms=full)
    here = judge(life, LIMITS, now)
    later = judge(life, LIMITS, now + step)
    if here.next_ms is None or now + step < here.next_ms:
        assert later == here


@pytest.mark.parametrize(
    ("life", "now_ms", "expected"),
    [
        (Life(paused_ms=100), 169, verdict(False, "paused", next_ms=170)),
        (Life(paused_ms=100), 170, verdict(False, "paused", next_ms=500, offload=True)),
        (Life(left_ms=100), 130, verdict(False, "disconnected", next_ms=200)),
        (Life(left_ms=100), 200, verdict(False, "disconnected", next_ms=530, offload=True)),
        (Life(suspended_ms=110), 110, verdict(True)),
        (Life(suspended_ms=110, left_ms=100), 110, verdict(False, "disconnected", next_ms=180, offload=True)),
        (Life(suspended_ms=150, paused_ms=120), 150, verdict(False, "paused", next_ms=190, offload=True)),
    ],
    ids=[
        "idle-not-long-enough", "idle-long-enough", "left", "left-long", "wanted-but-used", "wanted-and-left",
        "wanted-and-paused",
    ],
)  # fmt: skip
def test_when_a_session_leaves_its_slot(life: Life, now_ms: float, expected: Verdict) -> None:
    """After offload_ms of idling, at once when others want the slot; never while it is active."""
    assert judge(life, OFFLOADING, now_ms) == expected
