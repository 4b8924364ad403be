"""What acks tell of a player."""

from __future__ import annotations

from gateway.play_meter import MAX_SILENCE_MS, PlayMeter


def meter_after(chunks: int) -> PlayMeter:
    """Chunks of 500 ms were relayed."""
    meter = PlayMeter()
    for seq in range(chunks):
        meter.receive_chunk(seq, 500.0 * (seq + 1))
    return meter


def test_a_player_with_enough_plays_whenever_its_acks_come() -> None:
    """It holds 1,000 ms: an ack that is 300 ms late is no stall."""
    meter = meter_after(4)
    assert meter.receive_ack(1, 1000, 0) == (0, 0)
    assert meter.receive_ack(2, 1000, 800) == (800, 0)


def test_a_player_that_ran_dry_stalled() -> None:
    """100 ms of media in 600 ms; then the next chunk is there and plays."""
    meter = meter_after(4)
    meter.receive_ack(0, 100, 0)
    assert meter.receive_ack(0, 0, 600) == (100, 500)
    assert meter.receive_ack(1, 300, 800) == (200, 0)


def test_the_time_of_a_pause_does_not_count() -> None:
    meter = meter_after(2)
    meter.receive_ack(0, 0, 0)
    meter.rest()
    assert meter.receive_ack(0, 0, 1000) == (0, 0)
    assert meter.receive_ack(0, 0, 1500) == (0, 500)


def test_a_long_silence_and_unknown_chunks_tell_nothing() -> None:
    meter = meter_after(1)
    meter.receive_ack(0, 0, 0)
    assert meter.receive_ack(0, 0, MAX_SILENCE_MS + 1) == (0, 0)
    assert meter.receive_ack(7, 0, MAX_SILENCE_MS + 2) == (0, 0)


def test_nothing_moves_back() -> None:
    """A playhead or clock that jumps back counts for nothing below zero."""
    meter = meter_after(2)
    meter.receive_ack(1, 0, 1000)
    assert meter.receive_ack(0, 0, 1200) == (0, 200)
    assert meter.receive_ack(1, 0, 1100) == (0, 0)
