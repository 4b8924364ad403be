"""Pauses between starts of something that fails."""

from __future__ import annotations

from launch.backoff import Backoff


def test_pauses_grow_up_to_a_limit() -> None:
    """No pause before the first failure, then doubling, never more than 5 s."""
    backoff, pauses = Backoff(), []
    for _ in range(8):
        pauses.append(backoff.delay_s)
        backoff = backoff.record(healthy=False)
    assert pauses == [0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 5.0, 5.0]


def test_a_healthy_run_forgives() -> None:
    """After a long run the next start is immediate again."""
    assert Backoff(failures=5).record(healthy=True).delay_s == 0.0


def test_failing_for_ever_stays_finite() -> None:
    """The exponent is bounded."""
    assert Backoff(failures=10_000).delay_s == 5.0
