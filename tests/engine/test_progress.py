"""What the watcher is told of the compute thread."""

from __future__ import annotations

from engine.progress import IDLE, STARTING, Progress

BEAT_MS = 500


class Clock:
    """Time that a test moves."""

    now_ms = 0.0

    def __call__(self) -> float:
        return self.now_ms


def test_an_operation_has_a_limit_and_rest_has_none() -> None:
    """left_ms falls while an operation runs; an idle thread may rest for ever. How long a start takes depends
    on the model and its disk: the leader has a limit for it."""
    clock = Clock()
    progress = Progress(clock)
    assert progress.stamp.phase == STARTING
    clock.now_ms = 600_000.0
    assert progress.left_ms(BEAT_MS) is None
    clock.now_ms = 0.0
    progress.enter("pass", limit_ms=5_000.0)
    for since_ms in range(BEAT_MS, 6_500, BEAT_MS):
        clock.now_ms = float(since_ms)
        assert progress.left_ms(BEAT_MS) == 5_000 - since_ms
    progress.rest()
    assert progress.stamp.phase == IDLE and progress.left_ms(BEAT_MS) is None


def test_an_operation_gets_the_time_back_in_which_nobody_could_look() -> None:
    """The process was stopped for 3 s, twice: neither this pass nor the next is suspected for it."""
    clock = Clock()
    progress = Progress(clock)
    progress.enter("pass")
    clock.now_ms = 500.0
    assert progress.left_ms(BEAT_MS) == 1_500.0
    clock.now_ms = 3_500.0
    assert progress.left_ms(BEAT_MS) == 1_500.0
    clock.now_ms = 4_000.0
    assert progress.left_ms(BEAT_MS) == 1_000.0
    clock.now_ms = 7_000.0
    assert progress.left_ms(BEAT_MS) == 1_000.0
    progress.enter("pass")
    clock.now_ms = 7_500.0
    assert progress.left_ms(BEAT_MS) == 1_500.0


def test_where_heartbeats_are_rare_an_operation_that_hangs_is_still_found() -> None:
    """The time between them is a setting: what is usual by it is no standstill."""
    clock = Clock()
    progress = Progress(clock)
    progress.enter("pass")
    for clock.now_ms in (1_500.0, 3_000.0):
        left_ms = progress.left_ms(1_500)
    assert left_ms == -1_000.0


def test_no_operation_is_suspected_within_two_seconds() -> None:
    """A limit of four short passes is raised to 2 s."""
    clock = Clock()
    progress = Progress(clock)
    progress.enter("pass", limit_ms=80.0)
    assert progress.left_ms(BEAT_MS) == 2_000.0


def test_load_is_the_busy_share_of_the_last_seconds() -> None:
    """Half the time busy is 0.5, also when the last operation still runs; starting does not count."""
    clock = Clock()
    progress = Progress(clock)
    clock.now_ms = 1_000.0
    progress.rest()
    assert progress.load() == 0.0
    progress.enter("pass")
    clock.now_ms = 2_000.0
    assert progress.load() == 0.5
    progress.rest()
    clock.now_ms = 10_000.0
    progress.load()
    clock.now_ms = 14_000.0
    assert progress.load() == 0.0
