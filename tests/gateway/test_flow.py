"""Which chunk parts are relayed: tables and a property over owners that come, go and repeat themselves."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.flow import MAX_RESUBSCRIBES, Flow, FlowState, PartVerdict
from gateway.protocol import Gap
from scheduler.messages import EngineId, SessionId, SessionState, Subscribed
from tests.gateway.scripted_engine import make_part

S = SessionId("s_0000000000000001")
E1, E2 = EngineId("e_00000001"), EngineId("e_00000002")


def make_flow(next_seq: int = 0, next_frame: int | None = 0) -> Flow:
    return Flow(session=S, controller_epoch=1, next_seq=next_seq, next_frame=next_frame, fps=24)


def subscribed(epoch: int, start_seq: int) -> Subscribed:
    return Subscribed(session=S, epoch=epoch, start_seq=start_seq, state=SessionState.ACTIVE)


def follow(flow: Flow, engine: EngineId, epoch: int, start_seq: int | None = None) -> None:
    """Owner known, link up, subscription answered."""
    assert flow.receive_owner(engine, epoch, opened=True)
    request = flow.receive_link_up()
    assert request is not None and request.epoch == epoch
    flow.receive_subscribed(subscribed(epoch, request.next_seq if start_seq is None else start_seq))


def verdicts(flow: Flow, epoch: int, *parts: tuple[int, int, int]) -> list[str]:
    return [flow.receive_part(make_part(S, epoch, *part)).value for part in parts]


def test_a_placed_session_is_followed_only_when_opened() -> None:
    """SessionPlaced names the owner; only SessionOpened lets the gateway subscribe."""
    flow = make_flow()
    assert not flow.receive_owner(E1, 1, opened=False) and flow.is_waiting()
    assert flow.receive_owner(E1, 1, opened=True) and flow.state is FlowState.CONNECTING


def test_an_older_owner_is_ignored() -> None:
    """News of an older epoch, or of the same one again, change nothing."""
    flow = make_flow()
    follow(flow, E2, 2)
    assert not flow.receive_owner(E1, 1, opened=True)
    assert not flow.receive_owner(E2, 2, opened=True)
    assert flow.is_flowing() and flow.engine == E2


def test_parts_in_order_are_relayed_and_the_subscription_counts_frames() -> None:
    """next_seq and next_frame follow what was relayed completely."""
    flow = make_flow()
    follow(flow, E1, 1)
    assert verdicts(flow, 1, (0, 0, 2), (0, 1, 2), (1, 0, 2)) == ["relay"] * 3
    flow.receive_link_down()
    request = flow.receive_link_up()
    assert request is not None and (request.next_seq, request.next_frame) == (1, 12)


def test_frames_are_learned_from_pts_after_a_gap() -> None:
    """When the count is unknown, pts tells the frame index, also for a short first chunk elsewhere."""
    flow = make_flow(next_seq=3, next_frame=None)
    follow(flow, E1, 1)
    verdicts(flow, 1, (3, 0, 1))
    request = flow.resubscribe()
    assert (request.next_seq, request.next_frame) == (4, 48)


def test_old_epochs_and_delivered_chunks_are_dropped() -> None:
    """Nothing of another epoch, nothing before next_seq."""
    flow = make_flow(next_seq=5)
    follow(flow, E1, 2)
    assert verdicts(flow, 1, (5, 0, 1)) == ["drop"]
    assert verdicts(flow, 2, (4, 0, 1), (5, 0, 1)) == ["drop", "relay"]


def test_nothing_is_relayed_before_the_subscription_is_answered() -> None:
    """Parts between Subscribe and Subscribed belong to an earlier subscription."""
    flow = make_flow()
    flow.receive_owner(E1, 1, opened=True)
    flow.receive_link_up()
    assert verdicts(flow, 1, (0, 0, 1)) == ["drop"]


def test_an_incomplete_chunk_comes_again_whole() -> None:
    """After a change of owner the half-relayed chunk is relayed from part 0, perhaps in other parts."""
    flow = make_flow()
    follow(flow, E1, 1)
    assert verdicts(flow, 1, (0, 0, 3)) == ["relay"]
    follow(flow, E2, 2)
    assert verdicts(flow, 2, (0, 0, 2), (0, 1, 2)) == ["relay", "relay"] and flow.next_seq == 1


def test_a_late_start_is_a_gap() -> None:
    """Chunks that left the replay window are named, both ends included."""
    flow = make_flow(next_seq=2)
    flow.receive_owner(E1, 1, opened=True)
    flow.receive_link_up()
    assert flow.receive_subscribed(subscribed(1, 7)) == (True, Gap(from_seq=2, to_seq=6))
    assert flow.next_seq == 7


def test_a_skipped_part_asks_again_a_few_times() -> None:
    """An engine that skips is asked again from next_seq, but not for ever: then what it skips is a gap."""
    flow = make_flow()
    for _ in range(MAX_RESUBSCRIBES):
        if flow.is_waiting():
            follow(flow, E1, 1)
        assert flow.receive_part(make_part(S, 1, 1)) is PartVerdict.RESUBSCRIBE
        assert flow.resubscribe().next_seq == 0
        flow.receive_subscribed(subscribed(1, 0))
    assert flow.receive_part(make_part(S, 1, 0, 1, 2)) is PartVerdict.DROP, "no chunk begins there"
    assert flow.receive_part(make_part(S, 1, 1)) is PartVerdict.SKIP
    assert flow.skip_to(make_part(S, 1, 1)) == Gap(from_seq=0, to_seq=0)
    assert flow.receive_part(make_part(S, 1, 1)) is PartVerdict.RELAY
    assert flow.receive_part(make_part(S, 1, 3)) is PartVerdict.RESUBSCRIBE


_steps = st.one_of(
    st.tuples(st.just("owner"), st.integers(1, 4), st.booleans()),
    st.tuples(st.just("up")),
    st.tuples(st.just("down")),
    st.tuples(st.just("subscribed"), st.integers(1, 4), st.integers(0, 2)),
    st.tuples(st.just("part"), st.integers(1, 4), st.integers(-1, 2), st.integers(0, 1)),
)


class Viewer:
    """A client that checks what it gets."""

    def __init__(self) -> None:
        self.flow = make_flow()
        self.expected = 0
        self._last_part = -1

    def subscribe(self, epoch: int, ahead: int) -> None:
        ours, gap = self.flow.receive_subscribed(subscribed(epoch, self.flow.next_seq + ahead))
        if gap is not None:
            assert ours and gap.from_seq == self.expected
            self.expected = gap.to_seq + 1

    def feed(self, epoch: int, offset: int, number: int) -> None:
        part = make_part(S, epoch, max(0, self.flow.next_seq + offset), number, 2)
        verdict = self.flow.receive_part(part)
        if verdict is PartVerdict.RESUBSCRIBE:
            self.flow.resubscribe()
        if verdict is PartVerdict.SKIP:
            gap = self.flow.skip_to(part)
            assert gap.from_seq == self.expected
            self.expected, self._last_part = gap.to_seq + 1, -1
            verdict = self.flow.receive_part(part)
            assert verdict is PartVerdict.RELAY
        if verdict is not PartVerdict.RELAY:
            return
        assert part.seq == self.expected and part.epoch == self.flow.epoch
        assert part.part in (0, self._last_part + 1)
        self._last_part = part.part
        if part.part == part.parts - 1:
            self.expected, self._last_part = self.expected + 1, -1


@settings(max_examples=300)
@given(st.lists(_steps, max_size=60))
def test_whatever_happens_the_client_sees_a_contiguous_stream(steps: list[tuple[object, ...]]) -> None:
    """Chunks complete in order, once each; jumps are announced as gaps; parts of a chunk are in order."""
    viewer = Viewer()
    for step in steps:
        match step:
            case ("owner", int(epoch), bool(opened)):
                viewer.flow.receive_owner(EngineId(f"e_{epoch}"), epoch, opened=opened)
            case ("up",):
                viewer.flow.receive_link_up()
            case ("down",):
                viewer.flow.receive_link_down()
            case ("subscribed", int(epoch), int(ahead)):
                viewer.subscribe(epoch, ahead)
            case ("part", int(epoch), int(offset), int(number)):
                viewer.feed(epoch, offset, number)
    assert viewer.flow.next_seq == viewer.expected
