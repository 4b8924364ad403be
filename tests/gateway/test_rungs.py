"""Who falls to the lower rung and rises again, and which parts a client gets."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from gateway.rungs import (
    FALL_MS,
    FIRST_REST_MS,
    MAX_REST_MS,
    STEADY_MS,
    RungFilter,
    RungMeter,
    Standing,
    judge,
)
from scheduler.messages import Rung, SessionId
from tests.gateway.scripted_engine import make_part

S = SessionId("s_0000000000000001")
CHUNK_MS = 500.0
TO_FALL = int(FALL_MS / CHUNK_MS)
TO_RISE = int(FIRST_REST_MS / CHUNK_MS)


def after(late: Iterable[bool], standing: Standing | None = None) -> Standing:
    standing = standing or Standing()
    for is_late in late:
        standing = judge(standing, is_late=is_late, chunk_ms=CHUNK_MS)
    return standing


def test_a_client_falls_when_it_keeps_being_late() -> None:
    """Not for a burst, nor for as many late chunks as there are others."""
    assert after([True] * (TO_FALL - 1)).rung is Rung.FULL
    assert after([True] * TO_FALL).rung is Rung.LOW
    assert after([True] * (TO_FALL - 1) + [False] * TO_FALL + [True] * (TO_FALL - 1)).rung is Rung.FULL
    assert after([True, False] * 100).rung is Rung.FULL
    assert after([True, True, False] * TO_FALL).rung is Rung.LOW


def test_it_rises_after_a_calm_time_without_a_break() -> None:
    low = after([True] * TO_FALL)
    assert after([False] * (TO_RISE - 1), low).rung is Rung.LOW
    assert after([False] * (TO_RISE - 1) + [True] + [False] * (TO_RISE - 1), low).rung is Rung.LOW
    assert after([False] * TO_RISE, low).rung is Rung.FULL


def test_who_falls_again_soon_rests_twice_as_long() -> None:
    """Up to a limit; after a steady time at the full rate the count begins anew."""
    standing, rests = after([True] * TO_FALL), []
    for _ in range(8):
        rests.append(standing.rest_ms)
        standing = after([False] * int(standing.rest_ms / CHUNK_MS), standing)
        assert standing.rung is Rung.FULL
        standing = after([True] * TO_FALL, standing)
        assert standing.rung is Rung.LOW
    assert rests[:4] == [FIRST_REST_MS * 2**n for n in range(4)] and rests[-1] == MAX_REST_MS
    risen = after([False] * int(MAX_REST_MS / CHUNK_MS), standing)
    steady = after([False] * int(STEADY_MS / CHUNK_MS), risen)
    assert after([True] * TO_FALL, steady).rest_ms == FIRST_REST_MS


@given(late=st.lists(st.booleans(), max_size=400))
def test_it_never_flaps(late: list[bool]) -> None:
    """Between two changes lies what a fall, or a rise, takes at least."""
    standing, since = Standing(), 0
    for is_late in late:
        before, standing = standing, judge(standing, is_late=is_late, chunk_ms=CHUNK_MS)
        since += 1
        if standing.rung is not before.rung:
            assert since >= (TO_FALL if standing.rung is Rung.LOW else TO_RISE)
            since = 0


def play(
    meter: RungMeter, *, ack_after_ms: float, buffer_ms: float, every_ms: float, chunks: int = 20
) -> Rung:
    """Each chunk is acknowledged so long after it was sent, the next one sent so long after it."""
    sent = [seq * every_ms for seq in range(chunks)]
    events = [(at, 0, seq) for seq, at in enumerate(sent)]
    events += [(at + ack_after_ms, 1, seq) for seq, at in enumerate(sent)]
    for at, is_ack, seq in sorted(events):
        if is_ack:
            meter.receive_ack(seq, buffer_ms, at)
        else:
            meter.receive_sent(seq, CHUNK_MS, at)
    return meter.rung


def test_a_player_that_waits_for_what_is_on_its_way_falls() -> None:
    """Its network takes longer for a chunk than the chunk lasts."""
    assert play(RungMeter(), ack_after_ms=1200, buffer_ms=200, every_ms=600) is Rung.LOW
    assert play(RungMeter(can_fall=False), ack_after_ms=1200, buffer_ms=200, every_ms=600) is Rung.FULL


def test_others_do_not_fall() -> None:
    """A player far away with enough to show; one whose engine is slow; and a recorder, which never plays."""
    assert play(RungMeter(), ack_after_ms=1200, buffer_ms=1500, every_ms=500) is Rung.FULL
    assert play(RungMeter(), ack_after_ms=100, buffer_ms=0.1, every_ms=1500) is Rung.FULL
    assert play(RungMeter(), ack_after_ms=1200, buffer_ms=0, every_ms=600) is Rung.FULL


def test_a_viewer_falls_for_whom_something_always_waits() -> None:
    """Each chunk counts once, in however many parts and at however many rungs it comes."""
    meter = RungMeter()
    for seq in range(TO_FALL - 1):
        for _ in range(4):
            meter.receive_offered(seq, CHUNK_MS, queued_bytes=1)
    assert meter.rung is Rung.FULL
    meter.receive_offered(TO_FALL, CHUNK_MS, queued_bytes=1)
    assert meter.rung is Rung.LOW


def taken(picked: RungFilter, wanted: Rung, *parts: tuple[int, int, Rung | None]) -> list[bool]:
    return [
        picked.takes(replace(make_part(S, 1, seq, part, 2), rung=rung), wanted) for seq, part, rung in parts
    ]


LOW, FULL = Rung.LOW, Rung.FULL
BOTH = [(part, rung) for part in range(2) for rung in (LOW, FULL)]


def test_a_chunk_that_comes_once_is_for_everybody() -> None:
    """Whatever the client would rather have."""
    assert taken(RungFilter(), LOW, (0, 0, None), (0, 1, None)) == [True, True]


def test_a_chunk_is_taken_at_one_rung_as_a_whole() -> None:
    """A client that changes its mind amid a chunk gets the next one so."""
    picked = RungFilter()
    assert taken(picked, LOW, *((0, *each) for each in BOTH)) == [True, False, True, False]
    assert taken(picked, FULL, *((1, *each) for each in BOTH)) == [False, True, False, True]
    assert taken(picked, FULL, *((2, *each) for each in BOTH[:2])) == [False, True]
    assert taken(picked, LOW, *((2, *each) for each in BOTH[2:])) == [False, True]


def test_a_chunk_sent_again_goes_on_at_the_full_rung() -> None:
    """A replay has that one only; what of it is made later comes at both."""
    picked = RungFilter()
    assert taken(picked, LOW, (0, 0, LOW), (0, 0, FULL)) == [True, False]
    assert taken(picked, LOW, (0, 0, None), (0, 1, LOW), (0, 1, FULL)) == [True, False, True]
