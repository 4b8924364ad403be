"""The lease by the holder's own clock."""

from __future__ import annotations

from scheduler.lease import Lease


def test_held_until_before_redis_ends_it() -> None:
    """The holder stops a margin before the ttl after it asked."""
    lease = Lease(3_000)
    assert not lease.is_held(0.0)
    lease.grant(7, 100.0)
    assert lease.is_held(102.6) and not lease.is_held(102.8)


def test_renewal_is_due_after_a_third() -> None:
    """Two renewals may fail before the lease ends."""
    lease = Lease(3_000)
    lease.grant(7, 100.0)
    assert not lease.is_renew_due(100.9) and lease.is_renew_due(101.0)


def test_lost_means_not_held_but_remembered() -> None:
    """The next term must be above the one that was lost."""
    lease = Lease(3_000)
    lease.grant(7, 100.0)
    lease.lose()
    assert not lease.is_held(100.0) and lease.newest_term == 7
