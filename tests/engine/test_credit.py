"""Flow control."""

from __future__ import annotations

import math
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from engine.credit import (
    MAX_UNACKED_CHUNKS,
    Player,
    acknowledged,
    delivered,
    dry_ms,
    full_since_ms,
    start_ms,
    subscribed,
    unplayed_ms,
)

CHUNK = 750.0


def fresh(lead_ms: float = 1500.0) -> Player:
    return Player(lead_ms=lead_ms, chunk_ms=CHUNK)


def deliver(player: Player, seq: int, now_ms: float) -> Player:
    """Chunk `seq` is encoded and handed over."""
    player = replace(player, emitted_seq=seq + 1)
    return delivered(player, seq=seq, end_media_ms=(seq + 1) * CHUNK, now_ms=now_ms)


def ack(player: Player, seq: int, buffer_ms: float, now_ms: float) -> Player:
    return acknowledged(player, seq=seq, end_media_ms=(seq + 1) * CHUNK, buffer_ms=buffer_ms, now_ms=now_ms)


def next_start(player: Player, seq: int) -> float | None:
    """When chunk `seq` may start, all before it being made."""
    return start_ms(player, next_seq=seq, made_ms=seq * CHUNK)


def test_nobody_subscribed_gets_the_lead_and_no_more() -> None:
    """Chunks 0 and 1 may start before any subscriber; chunk 2 would be 1500 ms ahead."""
    player = replace(fresh(), emitted_seq=9)
    assert [next_start(player, seq) is not None for seq in range(4)] == [True, True, False, False]


def test_a_short_lead_still_gives_one_chunk() -> None:
    """The limit is at least one chunk: with one made and unplayed, the next waits."""
    player = replace(fresh(lead_ms=100), emitted_seq=9)
    assert next_start(player, 0) is not None
    assert next_start(player, 1) is None


def test_the_playhead_runs_from_the_first_delivery_up_to_what_was_delivered() -> None:
    """Before any ack it advances at rate 1 and stops at the end of the delivered media."""
    player = deliver(fresh(), 0, now_ms=1000.0)
    assert [player.playhead_ms(t) for t in (1000.0, 1200.0, 9000.0)] == [0.0, 200.0, CHUNK]


def test_a_chunk_starts_when_enough_was_played() -> None:
    """With 1500 ms made and delivered, chunk 2 starts just after the playhead moved."""
    player = deliver(deliver(fresh(), 0, 1000.0), 1, 1000.0)
    assert next_start(player, 2) == 1001.0
    player = deliver(player, 2, 1020.0)
    assert next_start(player, 3) == 1000.0 + CHUNK + 1.0


def test_an_ack_with_a_full_buffer_delays_and_an_empty_one_allows_at_once() -> None:
    """The client knows better than the estimate."""
    player = deliver(deliver(fresh(), 0, 1000.0), 1, 1000.0)
    assert next_start(ack(player, 1, 1500.0, 2000.0), 2) == 2001.0
    assert next_start(ack(player, 1, 0.0, 2000.0), 2) == 2000.0


def test_after_running_dry_the_player_goes_on_from_the_new_delivery() -> None:
    """A stall is not made up for: the playhead continues where it stopped."""
    player = deliver(deliver(fresh(), 0, 0.0), 1, 5000.0)
    assert player.playhead_ms(5100.0) == CHUNK + 100.0


def test_a_client_that_never_acks_gets_eight_chunks() -> None:
    """The ninth waits for an ack, however long the playhead could have run."""
    player, started, now = fresh(), 0, 0.0
    while (start := next_start(player, started)) is not None:
        now = max(now, start) + 10.0
        player = deliver(player, started, now)
        started += 1
    assert started == MAX_UNACKED_CHUNKS
    assert next_start(ack(player, 7, 0.0, now), 8) is not None


def test_a_client_that_stops_acking_is_not_served_for_ever() -> None:
    """So many chunks after its last ack, generation waits."""
    player = ack(deliver(fresh(), 0, 0.0), 0, 0.0, 10.0)
    for seq in range(1, 30):
        player = deliver(player, seq, seq * CHUNK)
    assert next_start(player, 30) is None


def test_acks_of_the_future_and_of_the_past_change_nothing() -> None:
    """A client cannot acknowledge what it was not sent, nor take an ack back."""
    player = ack(deliver(deliver(fresh(), 0, 0.0), 1, 0.0), 1, 0.0, 5.0)
    assert ack(player, 2, 0.0, 9.0) == player
    assert ack(player, 0, 700.0, 9.0) == player


def test_an_ack_of_nothing_before_the_first_delivery_starts_no_playhead() -> None:
    """seq -1 counts as a sign of life, not as playing."""
    player = ack(fresh(), -1, 0.0, 5.0)
    assert player.has_acked and player.playhead_ms(9_999.0) == 0.0


def test_a_new_subscriber_starts_over_where_it_asks() -> None:
    """After attach the playhead waits at the first chunk that will be sent again."""
    player = ack(deliver(deliver(fresh(), 0, 0.0), 1, 0.0), 1, 0.0, 5.0)
    again = subscribed(player, seq=1, media_ms=CHUNK)
    assert (again.playhead_ms(99.0), again.delivered_seq, again.has_acked) == (CHUNK, 1, False)
    assert next_start(again, 2) is not None  # 750 ms unplayed is below the lead


def test_two_chunks_in_the_encoder_hold_the_third_back() -> None:
    """The encoder's queue is bounded by credit."""
    player = replace(fresh(lead_ms=10_000), emitted_seq=3)
    assert next_start(player, 4) is not None
    assert next_start(player, 5) is None


def test_the_deadline_is_when_the_player_runs_dry() -> None:
    """All made chunks shown; a dry player keeps that moment; with none yet, soon after it is due."""
    player = deliver(fresh(), 0, 1000.0)
    assert dry_ms(player, made_ms=CHUNK, due_ms=1000.0, now_ms=1100.0) == 1000.0 + CHUNK
    assert dry_ms(player, made_ms=CHUNK, due_ms=1000.0, now_ms=9000.0) == 1000.0 + CHUNK
    assert dry_ms(fresh(), made_ms=0.0, due_ms=100.0, now_ms=120.0) == 600.0


events = st.lists(
    st.tuples(
        st.sampled_from(["make", "deliver", "ack", "wait", "subscribe"]),
        st.floats(0, 2_000),
        st.integers(-1, 40),
    ),
    max_size=60,
)


@given(events, st.floats(100, 10_000))
def test_whatever_happens_the_bounds_hold(history: list[tuple[str, float, int]], lead_ms: float) -> None:
    """The playhead stays within the delivered media, and no chunk starts beyond the limit."""
    player, now, made, sent = fresh(lead_ms), 0.0, 0, 0
    for what, amount, seq in history:
        match what:
            case "make":
                start = next_start(player, made)
                if start is not None and start <= now:
                    unplayed = unplayed_ms(player, made_ms=made * CHUNK, now_ms=now)
                    assert unplayed < player.limit_ms
                    made += 1
                    player = replace(player, emitted_seq=made)
            case "deliver" if sent < made:
                player = deliver(player, sent, now)
                player = replace(player, emitted_seq=made)
                sent += 1
            case "ack":
                player = ack(player, seq, amount, now)
            case "subscribe" if sent:
                player = subscribed(player, seq=sent - 1, media_ms=(sent - 1) * CHUNK)
                sent -= 1
            case _:
                now += amount
        assert 0.0 <= player.playhead_ms(now) <= max(player.delivered_media_ms, player.anchor_media_ms)
        assert made - sent <= 14
        start = next_start(player, made)
        assert start is None or not math.isnan(start)


def test_a_dry_player_keeps_the_moment_it_ran_dry() -> None:
    """The deadline does not move with the clock or with acks of nothing new: who waits longest is first."""
    player = ack(deliver(fresh(), 0, now_ms=0.0), 0, buffer_ms=CHUNK, now_ms=0.0)
    for now_ms in (2_000.0, 2_500.0):
        assert dry_ms(player, made_ms=CHUNK, due_ms=-9e9, now_ms=now_ms) == CHUNK
        player = ack(player, 0, buffer_ms=0.0, now_ms=now_ms)


def test_a_recorder_is_not_more_urgent_than_its_rate() -> None:
    """It acks each chunk with nothing unplayed: its next deadline is one chunk after the chunk was due."""
    player = ack(deliver(fresh(), 0, now_ms=100.0), 0, buffer_ms=0.0, now_ms=100.0)
    assert dry_ms(player, made_ms=CHUNK, due_ms=100.0, now_ms=110.0) == 100.0 + CHUNK


def full_since(player: Player, seq: int, now_ms: float, before_ms: float | None = None) -> float | None:
    """Since when it takes no more, all before `seq` being made."""
    made_ms = seq * CHUNK
    return full_since_ms(player, next_seq=seq, made_ms=made_ms, now_ms=now_ms, before_ms=before_ms)


def test_a_player_that_stands_with_a_full_buffer_is_full_since_it_stood() -> None:
    """Its acks go on and tell the same; one that plays, or could take a chunk, is not full."""
    player = deliver(deliver(deliver(fresh(), 0, 0.0), 1, 0.0), 2, 0.0)
    for now in range(1_000, 5_000, 500):
        player = ack(player, 2, 2200.0 + now % 1_000 / 1e3, float(now))
    assert full_since(player, 3, 5_000.0) == 1_000.0
    assert full_since(player, 3, 6_000.0) is None  # no ack for so long: it plays, and the chunk is due
    moved = ack(player, 2, 2100.0, 5_000.0)
    assert full_since(moved, 3, 5_000.0) == 5_000.0
    assert full_since(deliver(moved, 3, 5_100.0), 4, 5_100.0) is None
    assert full_since(ack(player, 2, 0.0, 5_000.0), 3, 5_000.0) is None


def test_a_player_that_acks_nothing_is_full_since_its_last_chunk() -> None:
    """Nothing but an ack lets it go on, so the first moment counts."""
    player = fresh()
    for seq in range(MAX_UNACKED_CHUNKS):
        player = deliver(player, seq, 0.0)
    assert full_since(player, MAX_UNACKED_CHUNKS, 7_000.0) == 7_000.0
    assert full_since(player, MAX_UNACKED_CHUNKS, 9_000.0, before_ms=7_000.0) == 7_000.0
