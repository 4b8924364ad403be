"""Message rate and control merging, without a clock."""

from __future__ import annotations

from gateway.limits import (
    MAX_REFUSED,
    MESSAGE_BURST,
    ControlMerger,
    MessageBucket,
    Places,
    RateBuckets,
    Verdict,
)
from gateway.protocol import MAX_KEYS, Control


def test_a_burst_passes_and_then_the_rate_holds() -> None:
    """MESSAGE_BURST at once, then one more per 10 ms."""
    bucket = MessageBucket()
    assert all(bucket.spend(0) is Verdict.PASS for _ in range(MESSAGE_BURST))
    assert bucket.spend(0) is Verdict.TELL
    assert bucket.spend(0) is Verdict.DROP
    assert bucket.spend(11) is Verdict.PASS


def test_who_does_not_stop_is_closed() -> None:
    """MAX_REFUSED refusals without a pause end the connection."""
    bucket = MessageBucket()
    verdicts = [bucket.spend(0) for _ in range(MESSAGE_BURST + MAX_REFUSED + 1)]
    assert verdicts.index(Verdict.CLOSE) == MESSAGE_BURST + MAX_REFUSED


def test_a_message_may_cost_more() -> None:
    """It passes where so much is left, and takes nothing where it is not."""
    bucket = MessageBucket()
    assert bucket.spend(0, MESSAGE_BURST - 1) is Verdict.PASS
    assert bucket.spend(0, 2) is Verdict.TELL
    assert bucket.spend(0) is Verdict.PASS


def test_a_pause_forgives() -> None:
    """After a pause the count of refusals begins anew."""
    bucket = MessageBucket()
    for _ in range(MESSAGE_BURST + MAX_REFUSED):
        bucket.spend(0)
    assert [bucket.spend(10_000) for _ in range(MESSAGE_BURST)].count(Verdict.PASS) == MESSAGE_BURST
    assert bucket.spend(10_000) is Verdict.TELL


def test_the_first_control_goes_out_at_once() -> None:
    """No delay is added to a single control."""
    merger = ControlMerger()
    merger.push(Control(keys=("w",), id="1"))
    popped = merger.pop(0)
    assert popped is not None and popped[0].keys == ("w",) and popped[1] == ("1",)
    assert merger.due_ms() is None


def test_a_press_and_release_between_two_slots_is_not_lost() -> None:
    """The merged entry has the key, the next one has it released."""
    merger = ControlMerger()
    merger.push(Control())
    merger.pop(0)
    merger.push(Control(keys=("space",)))
    merger.push(Control(keys=()))
    assert merger.pop(10) is None
    pressed = merger.pop(50)
    assert pressed is not None and pressed[0].keys == ("space",)
    assert merger.pop(60) is None
    released = merger.pop(100)
    assert released is not None and released[0].keys == ()
    assert merger.due_ms() is None


def test_a_key_that_stays_held_is_not_let_go_of() -> None:
    """One key down, the next too, the first up, all within a slot: the second is held, and said once."""
    merger = ControlMerger()
    merger.push(Control(keys=("a",)))
    merger.pop(0)
    merger.push(Control(keys=("a", "b")))
    merger.push(Control(keys=("b",)))
    both, one = merger.pop(50), merger.pop(100)
    assert both is not None and both[0].keys == ("a", "b")
    assert one is not None and one[0].keys == ("b",)
    assert merger.due_ms() is None


def test_keys_that_wait_are_bounded() -> None:
    """However many were pressed while Redis was away."""
    merger = ControlMerger()
    for number in range(1_000):
        merger.push(Control(keys=(f"key {number}",)))
    entry = merger.pop(0)
    assert entry is not None and len(entry[0].keys) == MAX_KEYS


def test_twenty_entries_per_second_at_most() -> None:
    """However fast controls come, a slot is 50 ms."""
    merger, entries = ControlMerger(), 0
    for now_ms in range(1000):
        merger.push(Control(axes={"x": now_ms / 1000}))
        entries += merger.pop(now_ms) is not None
    assert entries == 20


def test_buckets_by_name() -> None:
    """Each name has its own: a burst at once, then the rate, and the wait that is told is enough."""
    buckets = RateBuckets(rate_per_s=2, burst=3)
    assert [buckets.spend("a", 0) for _ in range(3)] == [None, None, None]
    wait_ms = buckets.spend("a", 0)
    assert wait_ms is not None and 500 <= wait_ms <= 501
    assert buckets.spend("b", 0) is None
    assert buckets.spend("a", wait_ms) is None
    assert buckets.spend("a", wait_ms) is not None


def test_a_punished_bucket_is_emptied_but_owes_nothing() -> None:
    """However often: after one second one token is there again."""
    buckets = RateBuckets(rate_per_s=1, burst=3)
    for _ in range(5):
        buckets.punish("a", 0, cost=2)
    assert buckets.spend("a", 0) is not None
    assert buckets.spend("a", 1000) is None


def test_buckets_are_bounded() -> None:
    """Full ones are forgotten, and beyond the bound the least lately used."""
    buckets = RateBuckets(rate_per_s=1, burst=1)
    buckets.spend("old", 0)
    buckets.spend("new", 10_000)
    assert len(buckets) == 1
    for number in range(RateBuckets.MAX_NAMES + 5):
        buckets.spend(str(number), 10_000)
    assert len(buckets) == RateBuckets.MAX_NAMES
    assert buckets.spend("9999", 10_000) is not None


def test_places_are_counted_by_name() -> None:
    """As many as the limit says, each name for itself; who holds none is forgotten."""
    places = Places(2)
    assert [places.take("a") for _ in range(3)] == [True, True, False]
    assert places.take("b")
    places.give_back("a")
    assert [places.take("a"), places.take("a")] == [True, False]
    for name in "aab":
        places.give_back(name)
    assert len(places) == 0
