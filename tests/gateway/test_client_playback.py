"""The playhead of a viewer without a screen."""

from __future__ import annotations

from gateway.client_playback import Playhead


def test_buffer_shrinks_as_time_passes() -> None:
    """From the first delivery on, what is left to play shrinks at rate 1."""
    playhead = Playhead()
    assert playhead.buffer_ms(5_000) == 0
    playhead.delivered(0, 750, 10_000)
    assert playhead.buffer_ms(10_000) == 750
    assert playhead.buffer_ms(10_500) == 250
    playhead.delivered(750, 1500, 10_500)
    assert playhead.buffer_ms(10_500) == 1000


def test_dry_playhead_waits_and_counts_a_stall() -> None:
    """Without video the playhead stands still, that time is stalled, and it goes on with the next chunk."""
    playhead = Playhead()
    playhead.delivered(0, 750, 0)
    assert playhead.buffer_ms(900) == 0
    playhead.delivered(750, 1500, 1000)
    assert playhead.buffer_ms(1000) == 750
    assert (playhead.stalls, playhead.stalled_ms, playhead.played_ms) == (1, 250, 750)


def test_pause_stops_the_playhead_without_a_stall() -> None:
    """Paused time is neither played nor stalled."""
    playhead = Playhead()
    playhead.delivered(0, 750, 0)
    playhead.pause(100)
    playhead.resume(5_000)
    assert playhead.buffer_ms(5_000) == 650
    assert (playhead.stalls, playhead.played_ms) == (0, 100)


def test_jump_in_media_time_is_followed_when_reached() -> None:
    """After a gap the playhead jumps over it once the video before it is played."""
    playhead = Playhead()
    playhead.delivered(0, 750, 0)
    playhead.buffer_ms(750)
    playhead.delivered(1500, 2250, 750)
    assert playhead.buffer_ms(750) == 750
