"""The session rules as tables: messages, answers, events and link messages in, outputs out."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway import protocol as wire
from gateway.catalog import Catalog
from gateway.limits import MAX_MERGED_IDS, MESSAGE_BURST, MESSAGE_BYTES
from gateway.session import MAX_BACKLOG, MAX_HELD_INPUTS, STOP_TIMEOUT_MS, Draw, SessionMachine, Stage
from gateway.session_core import LOST_AFTER_MS, TRANSITIONS, Cause
from gateway.session_entry import hash_resume
from gateway.session_follow import MAX_DENIED, RELOAD_MS
from gateway.steps import (
    AppendInput,
    Ask,
    Call,
    Close,
    CreateSession,
    EndSession,
    Failure,
    FailureKind,
    Follow,
    Forget,
    LoadSession,
    Output,
    Send,
    SendChunk,
    SetPaused,
    TakeControl,
    Taken,
    Unfollow,
)
from scheduler import messages as link
from scheduler.messages import EngineId, ErrorCode, GatewayId, Phase, SessionId, SessionRecord, SessionState
from scheduler.store.values import AppliedRecord, InputReceipt
from tests.gateway.scripted_engine import MODEL, make_part

S = SessionId("s_0000000000000001")
E1, E2 = EngineId("e_00000001"), EngineId("e_00000002")
G = GatewayId("g_00000001")
Out = TypeVar("Out", bound=Output)

RECORD = SessionRecord(
    id=S,
    model="shapes",
    phase=Phase.QUEUED,
    epoch=0,
    engine=None,
    opened=False,
    active=True,
    paused=False,
    seed=1,
    lead_ms=1500,
    codec="h264",
    resume_hash=hash_resume("secret"),
    controller_epoch=1,
    gateway=G,
    next_seq=0,
    next_frame=0,
    rev=0,
    last_applied="0-0",
    slack_ms=0,
    created_ms=0,
    active_ms=0,
    reason="",
)
DRAW = Draw(session=S, resume="secret", seed=7)
UNAVAILABLE = Failure(kind=FailureKind.UNAVAILABLE, message="away", retry_after_ms=2000)


def make_machine(*, controls: bool = True, codecs: tuple[str, ...] = ("h264",)) -> SessionMachine:
    models = {"shapes": replace(MODEL, controls=controls)}
    catalog = Catalog(models=models, expected=frozenset({"later"}), codecs=codecs)
    serial = itertools.count(1)

    def draw() -> Draw:
        return Draw(session=SessionId(f"s_{next(serial):016x}"), resume="secret", seed=7)

    return SessionMachine(catalog=lambda: catalog, draw=draw)


def sent(outputs: list[Output]) -> list[wire.ServerMessage]:
    return [o.message for o in outputs if isinstance(o, Send)]


def only(outputs: list[Output], kind: type[Out]) -> Out:
    """The one output of this kind."""
    (found,) = [o for o in outputs if isinstance(o, kind)]
    return found


def error_of(outputs: list[Output]) -> wire.Error:
    (found,) = [m for m in sent(outputs) if isinstance(m, wire.Error)]
    return found


def queued(start_id: str | None = None, **settings: bool) -> SessionMachine:
    """A machine whose session waits for an engine."""
    machine = make_machine(**settings)
    call = only(machine.receive_message(wire.Start(prompt="x", id=start_id), 0), CreateSession)
    machine.receive_result(call, RECORD, 0)
    return machine


def flowing(start_id: str | None = None, **settings: bool) -> SessionMachine:
    """A machine whose session is served by E1 at epoch 1."""
    machine = queued(start_id, **settings)
    machine.receive_event(link.SessionOpened(session=S, engine=E1, epoch=1), 0)
    machine.receive_link_up(E1)
    machine.receive_link(subscribed(1, 0), 0)
    return machine


def test_the_clients_order_of_codecs_decides() -> None:
    """The first of its list that is served; H.264 where it says nothing."""
    for accept, codec in (
        (("av1", "vp9", "h264"), "vp9"),
        (("h264", "vp9"), "h264"),
        (("mjpeg",), "mjpeg"),
        (None, "h264"),
    ):
        start = wire.Start(prompt="x") if accept is None else wire.Start(prompt="x", accept=accept)
        machine = make_machine(codecs=("h264", "vp9", "mjpeg"))
        assert only(machine.receive_message(start, 0), CreateSession).codec == codec


def subscribed(epoch: int, start_seq: int) -> link.Subscribed:
    return link.Subscribed(session=S, epoch=epoch, start_seq=start_seq, state=SessionState.ACTIVE)


def feed(machine: SessionMachine, epoch: int, seq: int) -> list[Output]:
    return machine.receive_chunk(make_part(S, epoch, seq), b"x" * 120)


# --- start ------------------------------------------------------------------------------------------------


def test_start_creates_a_session_and_answers_before_anything_else() -> None:
    """The call carries the drawn seed and only the hash of the resume token."""
    machine = make_machine()
    call = only(machine.receive_message(wire.Start(prompt="x", lead_ms=300, id="i"), 0), CreateSession)
    assert (call.session, call.seed, call.lead_ms, call.model) == (S, 7, 300, "shapes")
    assert call.prompt == link.PromptInput(text="x", id="i") and call.resume_hash == hash_resume("secret")
    messages = sent(machine.receive_result(call, RECORD, 0))
    assert isinstance(messages[0], wire.Session) and messages[0].resume == "secret"
    assert messages[1] == wire.Accepted(id="i")
    assert machine.is_queued()


def test_a_given_seed_is_kept() -> None:
    """0 is a seed, not an absence."""
    outputs = make_machine().receive_message(wire.Start(prompt="x", seed=0), 0)
    assert only(outputs, CreateSession).seed == 0


@pytest.mark.parametrize(
    ("start", "code"),
    [
        (wire.Start(prompt="", accept=("theora", "av1")), ErrorCode.UNSUPPORTED),
        (wire.Start(prompt="", model="nope"), ErrorCode.UNSUPPORTED),
        (wire.Start(prompt="", model="later"), ErrorCode.UNAVAILABLE),
        (wire.Prompt(text=""), ErrorCode.BAD_STATE),
        (wire.Ack(seq=-1, buffer_ms=0), ErrorCode.BAD_STATE),
        (wire.Stop(), ErrorCode.BAD_STATE),
    ],
)
def test_refusals_without_a_session(start: wire.ClientMessage, code: ErrorCode) -> None:
    """Each has its code, gives the id back, and leaves the connection fresh."""
    machine = make_machine()
    assert error_of(machine.receive_message(replace(start, id="i"), 0)).code is code
    assert machine.stage is Stage.FRESH


@pytest.mark.parametrize("model", [None, "shapes"])
def test_a_start_before_anything_is_known_of_the_cluster_may_be_tried_again(model: str | None) -> None:
    """The scheduler has not said yet what it wants: nobody can tell that a model is not served."""
    machine = SessionMachine(catalog=lambda: Catalog(default="shapes"), draw=lambda: DRAW)
    error = error_of(machine.receive_message(wire.Start(prompt="x", model=model), 0))
    assert error.code is ErrorCode.UNAVAILABLE and error.retry_after_ms is not None


def test_one_session_per_connection_at_a_time() -> None:
    """A second start or attach is refused while there is a session."""
    machine = queued()
    for message in (wire.Start(prompt="y"), wire.Attach(session=S, resume="r", next_seq=0)):
        assert error_of(machine.receive_message(message, 0)).code is ErrorCode.BAD_STATE


def test_a_start_that_is_repeated_before_its_answer() -> None:
    """In one go with the first: the log knows its id and answers, as it does later."""
    machine, start = make_machine(), wire.Start(prompt="x", id="i")
    call = only(machine.receive_message(start, 0), CreateSession)
    assert machine.receive_message(start, 0) == []
    outputs = machine.receive_result(call, RECORD, 0)
    assert only(outputs, AppendInput).message == link.PromptInput(text="x", id="i")
    assert not any(isinstance(message, wire.Error) for message in sent(outputs))


def test_messages_sent_with_start_wait_for_its_answer() -> None:
    """`start` and `prompt` in one go; the wait is bounded."""
    machine = make_machine()
    call = only(machine.receive_message(wire.Start(prompt="x"), 0), CreateSession)
    assert machine.receive_message(wire.Prompt(text="y", id="p"), 0) == []
    assert only(machine.receive_result(call, RECORD, 0), AppendInput).ids == ("p",)

    machine = make_machine()
    machine.receive_message(wire.Start(prompt="x"), 0)
    for _ in range(MAX_BACKLOG):
        assert machine.receive_message(wire.Pause(), 0) == []
    assert error_of(machine.receive_message(wire.Pause(), 0)).code is ErrorCode.RATE


def test_start_without_redis_may_be_tried_again() -> None:
    """`error unavailable` with a hint; what may have been written is closed in the background."""
    machine = make_machine()
    call = only(machine.receive_message(wire.Start(prompt="x", id="i"), 0), CreateSession)
    outputs = machine.receive_result(call, UNAVAILABLE, 0)
    error = error_of(outputs)
    assert (error.code, error.id, error.retry_after_ms) == (ErrorCode.UNAVAILABLE, "i", 2000)
    assert only(outputs, Forget).close == "abandoned"
    assert only(machine.receive_message(wire.Start(prompt="x"), 0), CreateSession).session != call.session


def test_a_full_queue_closes_4503() -> None:
    """`error capacity` with a hint comes before the close."""
    machine = make_machine()
    call = only(machine.receive_message(wire.Start(prompt="x"), 0), CreateSession)
    full = Failure(kind=FailureKind.QUEUE_FULL, message="full", retry_after_ms=9000)
    outputs = machine.receive_result(call, full, 0)
    assert isinstance(outputs[0], Send) and error_of(outputs).retry_after_ms == 9000
    assert outputs[-1] == Close(code=wire.CloseCode.NO_CAPACITY, reason="no capacity")


def test_a_client_that_leaves_during_start_leaves_no_session() -> None:
    """Nobody knows the resume token, so the session is closed."""
    machine = make_machine()
    call = only(machine.receive_message(wire.Start(prompt="x"), 0), CreateSession)
    machine.receive_disconnect()
    assert only(machine.receive_result(call, RECORD, 0), Forget).close == "abandoned"


# --- attach -----------------------------------------------------------------------------------------------

ATTACH = wire.Attach(session=S, resume="secret", next_seq=3, id="a")
PLACED = replace(
    RECORD,
    phase=Phase.PLACED,
    epoch=2,
    engine=E1,
    opened=True,
    controller_epoch=2,
    next_seq=5,
    next_frame=60,
)


def attach(
    record: SessionRecord | Failure,
    message: wire.Attach = ATTACH,
    pause_ids: tuple[str, ...] = (),
    input_ids: frozenset[str] = frozenset(),
) -> tuple[SessionMachine, list[Output]]:
    machine = make_machine()
    call = only(machine.receive_message(message, 0), TakeControl)
    if isinstance(record, Failure):
        return machine, machine.receive_result(call, record, 0)
    taken = Taken(record=record, pause_ids=pause_ids, input_ids=input_ids)
    return machine, machine.receive_result(call, taken, 0)


def test_attach_is_answered_by_session_state_gap_chunks() -> None:
    """In this order, the resume token being the same."""
    machine, outputs = attach(PLACED)
    (session,) = sent(outputs)
    assert isinstance(session, wire.Session) and session.resume == "secret"
    assert only(outputs, Follow).engine == E1
    request = only(machine.receive_link_up(E1), Ask).request
    assert isinstance(request, link.Subscribe)
    assert (request.epoch, request.controller_epoch, request.next_seq) == (2, 2, 3)
    assert sent(machine.receive_link(subscribed(2, 4), 0)) == [
        wire.Accepted(id="a"),
        wire.State(state=SessionState.ACTIVE, engine=E1),
        wire.Gap(from_seq=3, to_seq=3),
    ]
    assert only(feed(machine, 2, 4), SendChunk).header.seq == 4


@pytest.mark.parametrize("waits_first", [False, True])
def test_attach_from_the_beginning_is_a_gap_at_a_new_owner_too(waits_first: bool) -> None:
    """An owner that has taken over refuses who asks for more than it could make again."""
    waiting = replace(RECORD, epoch=1, reason="engine_lost", next_seq=100, next_frame=1200)
    placed = replace(waiting, phase=Phase.PLACED, epoch=2, engine=E1, opened=True)
    machine, _ = attach(waiting if waits_first else placed, replace(ATTACH, next_seq=0))
    if waits_first:
        machine.receive_event(link.SessionOpened(session=S, engine=E1, epoch=2), 0)
    request = only(machine.receive_link_up(E1), Ask).request
    assert isinstance(request, link.Subscribe)
    assert (request.next_seq, request.next_frame) == (100 - link.REPLAY_CHUNKS, None)
    messages = sent(machine.receive_link(subscribed(2, 90), 0))
    assert messages[-1] == wire.Gap(from_seq=0, to_seq=89)
    assert only(feed(machine, 2, 90), SendChunk).header.seq == 90


def test_answers_to_another_connection_at_this_gateway_are_not_its_own() -> None:
    """One that asked for the same session a moment ago: its window lost chunks that this one still gets."""
    machine, _ = attach(PLACED)
    machine.receive_link_up(E1)
    older = replace(subscribed(2, 9), controller_epoch=1)
    refused = link.Refused(
        session=S, epoch=2, code=ErrorCode.BAD_STATE, message="too far", controller_epoch=1
    )
    accepted = link.Accepted(session=S, id="theirs", controller_epoch=1)
    assert [out for reply in (older, refused, accepted) for out in machine.receive_link(reply, 0)] == []
    messages = sent(machine.receive_link(replace(subscribed(2, 3), controller_epoch=2), 0))
    assert messages == [wire.Accepted(id="a"), wire.State(state=SessionState.ACTIVE, engine=E1)]


def test_attach_to_a_queued_session_tells_its_state() -> None:
    """The client knows that it waits."""
    _machine, outputs = attach(replace(RECORD, epoch=3, reason="engine_lost", next_seq=3))
    assert sent(outputs)[1:] == [
        wire.Accepted(id="a"),
        wire.State(state=SessionState.QUEUED, reason="engine_lost"),
    ]


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (Failure(kind=FailureKind.NO_SUCH_SESSION, message="no"), wire.CloseCode.NO_SUCH_SESSION),
        (Failure(kind=FailureKind.CLOSED, message="idle"), wire.CloseCode.NO_SUCH_SESSION),
    ],
)
def test_attach_to_no_session_closes_4404(failure: Failure, code: wire.CloseCode) -> None:
    """Closed sessions say why they were closed."""
    _machine, outputs = attach(failure)
    assert error_of(outputs).code is ErrorCode.NO_SUCH_SESSION
    assert only(outputs, Close).code is code
    if failure.kind is FailureKind.CLOSED:
        assert "idle" in error_of(outputs).message


def test_attach_with_a_malformed_id_asks_nobody() -> None:
    """Ids have a fixed form."""
    outputs = make_machine().receive_message(replace(ATTACH, session="../x"), 0)
    assert only(outputs, Close).code is wire.CloseCode.NO_SUCH_SESSION
    assert not any(isinstance(o, TakeControl) for o in outputs)


def test_attach_beyond_what_was_generated_is_an_error() -> None:
    """Far beyond: seen by the store. A little: refused by the engine, and the session lingers."""
    machine, outputs = attach(
        Failure(kind=FailureKind.BEYOND, message="beyond"), replace(ATTACH, next_seq=99)
    )
    assert error_of(outputs) == wire.Error(code=ErrorCode.BAD_STATE, message="beyond", id="a")
    assert machine.stage is Stage.FRESH and not any(isinstance(o, Forget) for o in outputs)

    machine, outputs = attach(PLACED, replace(ATTACH, next_seq=7))
    assert wire.Accepted(id="a") not in sent(outputs)
    machine.receive_link_up(E1)
    refused = link.Refused(session=S, epoch=2, code=ErrorCode.BAD_STATE, message="too far")
    outputs = machine.receive_link(refused, 0)
    assert error_of(outputs) == wire.Error(code=ErrorCode.BAD_STATE, message="too far", id="a")
    assert only(outputs, Forget).close is None and machine.stage is Stage.FRESH


def test_an_owner_that_is_far_behind_is_let_come_to_where_the_client_is() -> None:
    """It makes again what the client has, at once and for nobody, and goes on with the next chunk."""
    machine = flowing()
    for seq in range(40):
        feed(machine, 1, seq)
    machine.receive_event(link.SessionOpened(session=S, engine=E2, epoch=2), 0)
    machine.receive_link_up(E2)
    machine.receive_link(link.Refused(session=S, epoch=2, code=ErrorCode.BAD_STATE, message="too far"), 0)
    load = only(machine.receive_tick(RELOAD_MS), LoadSession)
    machine.receive_result(load, replace(PLACED, engine=E2, next_seq=10, controller_epoch=1), 0)
    request = only(machine.receive_link_up(E2), Ask).request
    assert isinstance(request, link.Subscribe)
    assert (request.next_seq, request.next_frame) == (10 + link.REPLAY_CHUNKS, None)
    assert sent(machine.receive_link(subscribed(2, 26), 0))[1:] == []
    for seq in range(26, 40):
        (ask,) = feed(machine, 2, seq)
        assert isinstance(ask, Ask)
        assert ask.request == link.Credit(session=S, controller_epoch=1, seq=seq, buffer_ms=0.0)
    assert only(feed(machine, 2, 40), SendChunk).header.seq == 40
    machine.receive_link_down(E2)
    request = only(machine.receive_link_up(E2), Ask).request
    assert isinstance(request, link.Subscribe) and (request.next_seq, request.next_frame) == (41, 41 * 12)


def test_a_session_that_no_owner_can_go_on_with_is_lost() -> None:
    """Redis was away for longer than any window, and its engine died meanwhile: its client is not left
    waiting for chunks that nobody makes. A single refusal may be of an earlier epoch."""
    machine = flowing()
    machine.receive_message(wire.Control(keys=("a",), id="c"), 0)
    refused = link.Refused(session=S, epoch=2, code=ErrorCode.BAD_STATE, message="too far")
    placed = replace(RECORD, phase=Phase.PLACED, epoch=2, engine=E2, opened=True)
    machine.receive_event(link.SessionOpened(session=S, engine=E2, epoch=2), 0)
    for _ in range(MAX_DENIED - 1):
        machine.receive_link_up(E2)
        assert sent(machine.receive_link(refused, 0)) == []
        load = only(machine.receive_tick(RELOAD_MS), LoadSession)
        assert only(machine.receive_result(load, placed, 0), Follow).engine == E2
    machine.receive_link_up(E2)
    outputs = machine.receive_link(refused, 0)
    assert [type(m) for m in sent(outputs)] == [wire.Error, wire.Closed]
    assert error_of(outputs).id == "c" and sent(outputs)[-1] == wire.Closed(reason="lost")
    assert only(outputs, Forget).close == "lost" and machine.stage is Stage.FRESH


@pytest.mark.parametrize(
    "result",
    [
        Failure(kind=FailureKind.TAKEN_OVER, message="a newer connection controls the session"),
        InputReceipt(entry="5-0", repeat=False, applied=None),
    ],
)
def test_what_was_sent_behind_an_attach_that_is_refused_is_nothing_to_the_next(
    result: Failure | InputReceipt,
) -> None:
    """It gets an error, and its late result neither takes the session away nor holds the next inputs up."""
    machine, _ = attach(PLACED, replace(ATTACH, next_seq=7))
    machine.receive_link_up(E1)
    late = only(machine.receive_message(wire.Prompt(text="x", id="p"), 0), AppendInput)
    refused = link.Refused(session=S, epoch=2, code=ErrorCode.BAD_STATE, message="too far")
    outputs = machine.receive_link(refused, 0)
    told = [(m.code, m.id) for m in sent(outputs) if isinstance(m, wire.Error)]
    assert told == [(ErrorCode.BAD_STATE, "a"), (ErrorCode.BAD_STATE, "p")]

    call = only(machine.receive_message(ATTACH, 0), TakeControl)
    machine.receive_result(call, Taken(record=replace(PLACED, controller_epoch=3)), 0)
    assert machine.receive_result(late, result, 0) == []
    assert machine.stage is Stage.RUNNING
    assert only(machine.receive_message(wire.Control(keys=("left",)), 0), AppendInput).controller_epoch == 3


def test_an_attach_before_the_model_is_known_here_is_told_when_to_come_back() -> None:
    """A gateway that has just come up; the session lingers meanwhile."""
    machine, outputs = attach(replace(PLACED, model="later"))
    error = error_of(outputs)
    assert (error.code, error.id) == (ErrorCode.UNAVAILABLE, "a")
    assert error.retry_after_ms is not None and error.retry_after_ms > 0
    assert only(outputs, Forget).close is None and machine.stage is Stage.FRESH


def test_a_stop_behind_an_attach_that_the_engine_refuses() -> None:
    """All sent in one go: the attach gets its error, the stop its end."""
    machine, _ = attach(PLACED, replace(ATTACH, next_seq=7))
    machine.receive_link_up(E1)
    end = only(machine.receive_message(wire.Stop(id="s"), 0), EndSession)
    refused = link.Refused(session=S, epoch=2, code=ErrorCode.BAD_STATE, message="too far")
    assert error_of(machine.receive_link(refused, 0)).id == "a"
    assert machine.stage is Stage.STOPPING
    outputs = machine.receive_result(end, None, 0)
    assert sent(outputs) == [wire.Accepted(id="s"), wire.Closed(reason="stopped")]
    assert machine.stage is Stage.FRESH


def test_an_attach_is_answered_when_the_session_ends_first() -> None:
    """Its id and `closed`."""
    machine, _ = attach(PLACED)
    outputs = machine.receive_event(link.SessionClosed(session=S, reason="idle_client"), 0)
    assert sent(outputs) == [wire.Accepted(id="a"), wire.Closed(reason="idle_client")]


def test_a_refused_watch_says_nothing_to_the_controller() -> None:
    """Viewers at the same gateway ask the same engine over the same link."""
    machine, _ = attach(PLACED)
    machine.receive_link_up(E1)
    refused = link.Refused(
        session=S, epoch=0, code=ErrorCode.NO_SUCH_SESSION, message="not here", is_watch=True
    )
    assert machine.receive_link(refused, 0) == []
    assert sent(machine.receive_link(subscribed(2, 3), 0))[0] == wire.Accepted(id="a")


def test_events_during_attach_make_it_read_the_record_again() -> None:
    """An event may be newer than the record that the answer carries."""
    machine = make_machine()
    call = only(machine.receive_message(ATTACH, 0), TakeControl)
    machine.receive_event(link.SessionPlaced(session=S, engine=E2, epoch=3), 0)
    assert only(machine.receive_result(call, Taken(record=PLACED), 0), LoadSession).session == S


# --- steering ---------------------------------------------------------------------------------------------


def test_prompt_and_reset_go_to_the_log_and_are_accepted_then() -> None:
    """`accepted` comes with the receipt; a repeat gets the stored `applied`."""
    machine = flowing()
    call = only(machine.receive_message(wire.Prompt(text="y", id="p"), 0), AppendInput)
    assert call.message == link.PromptInput(text="y", id="p")
    receipt = InputReceipt(entry="1-1", repeat=True, applied=AppliedRecord(entry="1-1", id="p", rev=1, seq=4))
    assert sent(machine.receive_result(call, receipt, 0)) == [
        wire.Accepted(id="p"),
        wire.Applied(rev=1, seq=4, id="p"),
    ]
    reset = only(machine.receive_message(wire.Reset(seed=3), 0), AppendInput)
    assert reset.message == link.ResetInput(seed=3)


def test_a_repeated_id_gets_its_applied_again() -> None:
    """Also when the link told it on this same connection: the client asks because it does not know."""
    machine = flowing()
    call = only(machine.receive_message(wire.Prompt(text="y", id="p"), 0), AppendInput)
    machine.receive_result(call, InputReceipt(entry="1-1", repeat=False, applied=None), 0)
    machine.receive_link(link.Applied(session=S, epoch=1, rev=1, seq=4, id="p"), 0)
    again = only(machine.receive_message(wire.Prompt(text="y", id="p"), 0), AppendInput)
    receipt = InputReceipt(entry="1-1", repeat=True, applied=AppliedRecord(entry="1-1", id="p", rev=1, seq=4))
    assert wire.Applied(rev=1, seq=4, id="p") in sent(machine.receive_result(again, receipt, 0))


def test_a_repeated_start_is_answered_by_the_log() -> None:
    """Same id on the same connection: no second session; another id is refused."""
    machine = flowing(start_id="s")
    repeat = only(machine.receive_message(wire.Start(prompt="x", id="s"), 0), AppendInput)
    assert repeat.message == link.PromptInput(text="x", id="s")
    assert error_of(machine.receive_message(wire.Start(prompt="x", id="t"), 0)).code is ErrorCode.BAD_STATE


def test_a_repeated_pause_has_no_second_effect() -> None:
    """It is accepted again and goes nowhere, also after a resume."""
    machine = flowing()
    machine.receive_message(wire.Pause(id="1"), 0)
    machine.receive_message(wire.Resume(id="2"), 0)
    assert sent(machine.receive_message(wire.Pause(id="1"), 0)) == [wire.Accepted(id="1")]


def test_at_most_64_inputs_wait_for_redis() -> None:
    """The next is refused; after a receipt there is room again."""
    machine = flowing()
    calls = [
        only(machine.receive_message(wire.Prompt(text="y"), 0), AppendInput) for _ in range(MAX_HELD_INPUTS)
    ]
    error = error_of(machine.receive_message(wire.Prompt(text="y", id="z"), 0))
    assert (error.code, error.id) == (ErrorCode.UNAVAILABLE, "z") and error.retry_after_ms
    machine.receive_result(calls[0], InputReceipt(entry="1-1", repeat=False, applied=None), 0)
    only(machine.receive_message(wire.Prompt(text="y"), 0), AppendInput)


def test_applied_is_told_once() -> None:
    """The engine repeats it to a new subscription; the client hears it once, with or without id."""
    machine = flowing()
    applied = link.Applied(session=S, epoch=1, rev=1, seq=2)
    assert sent(machine.receive_link(applied, 0)) == [wire.Applied(rev=1, seq=2)]
    assert machine.receive_link(applied, 0) == []


def test_ack_becomes_credit_and_is_checked() -> None:
    """A negative buffer counts as none; a chunk that was not sent can't be acknowledged."""
    machine = flowing()
    feed(machine, 1, 0)
    request = only(machine.receive_message(wire.Ack(seq=0, buffer_ms=-5), 0), Ask).request
    assert request == link.Credit(session=S, controller_epoch=1, seq=0, buffer_ms=0.0)
    assert error_of(machine.receive_message(wire.Ack(seq=1, buffer_ms=0), 0)).code is ErrorCode.BAD_STATE


def test_control_needs_a_model_that_takes_it() -> None:
    """`error unsupported` otherwise."""
    machine = flowing(controls=False)
    assert error_of(machine.receive_message(wire.Control(), 0)).code is ErrorCode.UNSUPPORTED


def test_controls_are_merged_until_their_slot() -> None:
    """The second one goes out at the deadline, if nothing else waits for Redis."""
    machine = flowing()
    call = only(machine.receive_message(wire.Control(keys=("a",)), 0), AppendInput)
    assert machine.receive_message(wire.Control(keys=("b",)), 1) == [] and machine.deadline_ms() is None
    assert machine.receive_result(call, InputReceipt(entry="1-1", repeat=False, applied=None), 2) == []
    assert machine.deadline_ms() == 50
    merged = only(machine.receive_tick(50), AppendInput).message
    assert isinstance(merged, link.ControlInput) and merged.keys == ("b",)


def test_only_so_many_controls_with_ids_wait() -> None:
    """One more is refused, with its id, and changes nothing; without an id, or as a repeat, it is merged."""
    machine = flowing()
    first = only(machine.receive_message(wire.Control(id="first"), 0), AppendInput)
    ids = tuple(f"c{number}" for number in range(MAX_MERGED_IDS))
    for id in ids:
        assert machine.receive_message(wire.Control(keys=("a",), id=id), 1) == []
    error = error_of(machine.receive_message(wire.Control(keys=("b",), id="more"), 2))
    assert (error.code, error.id) == (ErrorCode.RATE, "more") and error.retry_after_ms
    for control in (wire.Control(keys=("c",)), wire.Control(id=ids[0])):
        assert machine.receive_message(control, 3) == []
    machine.receive_result(first, InputReceipt(entry="1-1", repeat=False, applied=None), 4)
    merged = only(machine.receive_tick(60), AppendInput)
    assert isinstance(merged.message, link.ControlInput)
    assert merged.ids == ids and set(merged.message.keys) == {"a", "c"}
    taken = machine.receive_result(merged, InputReceipt(entry="2-1", repeat=False, applied=None), 61)
    assert sent(taken) == [wire.Accepted(id=id) for id in ids]


def test_merged_controls_are_answered_each() -> None:
    """The entry has the last one's id; a repeat of any is the log's to answer, and no state any more."""
    machine = flowing()
    first = only(machine.receive_message(wire.Control(id="c0"), 0), AppendInput)
    machine.receive_message(wire.Control(keys=("a",), id="c1"), 1)
    machine.receive_message(wire.Control(id="c2"), 2)
    machine.receive_result(first, InputReceipt(entry="1-1", repeat=False, applied=None), 3)
    merged = only(machine.receive_tick(50), AppendInput)
    assert (merged.ids, merged.message.id) == (("c1", "c2"), "c2")
    accepted = sent(machine.receive_result(merged, InputReceipt(entry="2-1", repeat=False, applied=None), 51))
    assert accepted == [wire.Accepted(id="c1"), wire.Accepted(id="c2")]
    told = sent(machine.receive_link(link.Applied(session=S, epoch=1, rev=0, seq=4, id="c2"), 52))
    assert told == [wire.Applied(rev=0, seq=4, id=id) for id in ("c1", "c2")]
    release = only(machine.receive_tick(100), AppendInput)
    machine.receive_result(release, InputReceipt(entry="3-1", repeat=False, applied=None), 101)
    repeat = only(machine.receive_message(wire.Control(keys=("a",), id="c1"), 102), AppendInput)
    assert repeat.ids == ("c1",) and machine.deadline_ms() is None
    receipt = InputReceipt(
        entry="2-1", repeat=True, applied=AppliedRecord(entry="2-1", id="c1", rev=0, seq=4)
    )
    answers = sent(machine.receive_result(repeat, receipt, 103))
    assert answers == [wire.Accepted(id="c1"), wire.Applied(rev=0, seq=4, id="c1")]


@pytest.mark.parametrize("by", ["engine", "store"])
def test_what_the_end_leaves_without_an_answer_is_told_so(by: str) -> None:
    """Whoever asked for it would wait for ever: an input, merged controls, a pause; each of them once."""
    machine = flowing()
    answered = only(machine.receive_message(wire.Prompt(text="a", id="p1"), 0), AppendInput)
    machine.receive_result(answered, InputReceipt(entry="1-1", repeat=False, applied=None), 0)
    call = only(machine.receive_message(wire.Prompt(text="b", id="p2"), 0), AppendInput)
    machine.receive_message(wire.Control(id="c"), 0)
    machine.receive_message(wire.Pause(id="h"), 0)
    if by == "engine":
        outputs = machine.receive_link(link.Closed(session=S, epoch=1, reason="idle engine"), 1)
    else:
        failure = Failure(kind=FailureKind.CLOSED, message="idle engine")
        outputs = machine.receive_result(call, failure, 1)
    *errors, closed = sent(outputs)
    assert closed == wire.Closed(reason="idle engine")
    told = [(e.id, e.code) for e in errors if isinstance(e, wire.Error)]
    assert told == [(id, ErrorCode.BAD_STATE) for id in ("p2", "c", "h")]
    assert sent(machine.receive_result(call, InputReceipt(entry="1-2", repeat=False, applied=None), 2)) == []


@pytest.mark.parametrize(
    ("message", "kind"), [(wire.Pause(id="i"), link.Pause), (wire.Resume(id="i"), link.Resume)]
)
def test_pause_and_resume_go_over_the_link(message: wire.ClientMessage, kind: type) -> None:
    """Redis gets a copy; the engine's word is the client's `accepted`."""
    machine = flowing()
    outputs = machine.receive_message(message, 0)
    assert only(outputs, Ask).request == kind(session=S, controller_epoch=1, id="i")
    copy = only(outputs, SetPaused)
    assert copy.paused is (kind is link.Pause) and (copy.ids, copy.answers) == (("i",), ())
    assert sent(machine.receive_result(copy, None, 0)) == []
    assert sent(machine.receive_link(link.Accepted(session=S, id="i"), 0)) == [wire.Accepted(id="i")]


def test_a_control_of_an_earlier_connection_is_merged_with_no_other() -> None:
    """The log answers it as it did before, and what it held down then is not pressed again."""
    machine, _ = attach(PLACED, input_ids=frozenset({"c1", "c2"}))
    machine.receive_link_up(E1)
    machine.receive_link(subscribed(2, 3), 0)
    first = only(machine.receive_message(wire.Control(keys=("a",), id="c1"), 0), AppendInput)
    second = only(machine.receive_message(wire.Control(keys=("b",), id="c2"), 1), AppendInput)
    assert (first.ids, second.ids) == (("c1",), ("c2",))
    assert machine.receive_message(wire.Control(keys=("c",), id="c3"), 2) == []
    for number, call in enumerate((first, second), 1):
        applied = AppliedRecord(entry=f"{number}-1", id=call.ids[0], rev=0, seq=number)
        receipt = InputReceipt(entry=f"{number}-1", repeat=True, applied=applied)
        outputs = machine.receive_result(call, receipt, 3)
        assert sent(outputs)[1] == wire.Applied(rev=0, seq=number, id=call.ids[0])
    merged = only(outputs, AppendInput)
    assert isinstance(merged.message, link.ControlInput)
    assert (merged.ids, merged.message.keys) == (("c3",), ("c",))


def test_merged_controls_of_an_earlier_connection_are_answered_each_too() -> None:
    """They wait in one entry, whose `applied` names one of them."""
    machine, _ = attach(PLACED, input_ids=frozenset({"c1", "c2", "c3"}))
    machine.receive_link_up(E1)
    machine.receive_link(subscribed(2, 3), 0)
    for id, entry in (("c1", "1-1"), ("c2", "1-1"), ("c3", "2-1"), ("c1", "1-1")):
        call = only(machine.receive_message(wire.Control(id=id), 0), AppendInput)
        receipt = InputReceipt(entry=entry, repeat=True, applied=None)
        assert sent(machine.receive_result(call, receipt, 0)) == [wire.Accepted(id=id)]
    told = sent(machine.receive_link(link.Applied(session=S, epoch=2, rev=0, seq=4, id="c2"), 1))
    assert sorted(str(m.id) for m in told if isinstance(m, wire.Applied)) == ["c1", "c2"]
    told = sent(machine.receive_link(link.Applied(session=S, epoch=2, rev=0, seq=5, id="c3"), 1))
    assert told == [wire.Applied(rev=0, seq=5, id="c3")]


def test_a_pause_of_an_earlier_connection_is_not_repeated() -> None:
    """After an attach the remembered ids are answered and have no second effect; new ones have theirs."""
    machine, _ = attach(PLACED, pause_ids=("p", "r"))
    machine.receive_link_up(E1)
    machine.receive_link(subscribed(2, 3), 0)
    assert machine.receive_message(wire.Pause(id="p"), 0) == [Send(message=wire.Accepted(id="p"))]
    assert isinstance(only(machine.receive_message(wire.Pause(id="q"), 0), Ask).request, link.Pause)


def test_a_pause_that_was_lost_with_a_gateway_is_asked_again() -> None:
    """Redis has it, so its repeat after an attach is known; the engine may never have heard of it."""
    for is_flowing in (True, False):
        machine, _ = attach(replace(PLACED, paused=True), pause_ids=("r", "p"))
        machine.receive_link_up(E1)
        if is_flowing:
            machine.receive_link(subscribed(2, 3), 0)
        outputs = machine.receive_message(wire.Pause(id="p"), 0)
        assert sent(outputs) == [wire.Accepted(id="p")]
        assert not any(isinstance(output, SetPaused) for output in outputs)
        if not is_flowing:
            outputs = machine.receive_link(subscribed(2, 3), 0)
        assert only(outputs, Ask).request == link.Pause(session=S, controller_epoch=2)
        assert sent(machine.receive_message(wire.Resume(id="r"), 0)) == [wire.Accepted(id="r")]


def test_a_pause_while_queued_is_recorded_and_told_to_the_engine_later() -> None:
    """Calls are merged while one is under way, and every id is answered."""
    machine = queued()
    first = only(machine.receive_message(wire.Pause(id="1"), 0), SetPaused)
    machine.receive_message(wire.Resume(id="2"), 0)
    assert machine.receive_message(wire.Pause(id="3"), 0) == []
    outputs = machine.receive_result(first, None, 0)
    assert sent(outputs) == [wire.Accepted(id="1")]
    second = only(outputs, SetPaused)
    assert second.paused and second.ids == second.answers == ("2", "3")
    machine.receive_event(link.SessionOpened(session=S, engine=E1, epoch=1), 0)
    machine.receive_link_up(E1)
    asked = [o.request for o in machine.receive_link(subscribed(1, 0), 0) if isinstance(o, Ask)]
    assert asked == [link.Pause(session=S, controller_epoch=1)]


def test_every_pause_is_answered_while_redis_is_away() -> None:
    """More than may wait are refused, and may come again; none is forgotten."""
    machine = queued()
    first = only(machine.receive_message(wire.Pause(id="0"), 0), SetPaused)
    for n in range(1, MAX_HELD_INPUTS + 1):
        assert machine.receive_message(wire.Pause(id=str(n)), 0) == []
    error = error_of(machine.receive_message(wire.Resume(id="late"), 0))
    assert (error.code, error.id) == (ErrorCode.UNAVAILABLE, "late")
    merged = only(machine.receive_result(first, None, 0), SetPaused)
    assert merged.paused
    answers = sent(machine.receive_result(merged, None, 0))
    assert answers == [wire.Accepted(id=str(n)) for n in range(1, MAX_HELD_INPUTS + 1)]
    assert not only(machine.receive_message(wire.Resume(id="late"), 0), SetPaused).paused


def test_a_pause_that_was_on_a_broken_link_is_asked_again() -> None:
    """The engine lives on and may not have heard of it."""
    machine = flowing()
    machine.receive_message(wire.Pause(id="p"), 0)
    machine.receive_link_down(E1)
    machine.receive_link_up(E1)
    outputs = machine.receive_link(subscribed(1, 0), 0)
    assert only(outputs, Ask).request == link.Pause(session=S, controller_epoch=1)
    assert wire.Accepted(id="p") in sent(outputs)


# --- stop -------------------------------------------------------------------------------------------------


def test_stop_over_the_link_then_start_again() -> None:
    """Messages behind the stop wait for `closed`; late acks are no error."""
    machine = flowing()
    assert isinstance(only(machine.receive_message(wire.Stop(id="s"), 0), Ask).request, link.Stop)
    assert machine.receive_message(wire.Start(prompt="y"), 0) == []
    assert machine.receive_message(wire.Ack(seq=0, buffer_ms=0), 0) == []
    machine.receive_link(link.Accepted(session=S, id="s"), 0)
    outputs = machine.receive_link(link.Closed(session=S, epoch=1, reason="stopped"), 0)
    assert sent(outputs) == [wire.Closed(reason="stopped")]
    only(outputs, Unfollow), only(outputs, CreateSession)


def test_stop_of_a_queued_session_goes_to_the_store() -> None:
    """`accepted` and `closed` come when it is done."""
    machine = queued()
    call = only(machine.receive_message(wire.Stop(id="s"), 0), EndSession)
    assert sent(machine.receive_result(call, True, 0)) == [
        wire.Accepted(id="s"),
        wire.Closed(reason="stopped"),
    ]
    assert machine.stage is Stage.FRESH


def test_a_stop_that_the_engine_does_not_confirm_goes_to_the_store() -> None:
    """After STOP_TIMEOUT_MS, or when the link breaks."""
    machine = flowing()
    machine.receive_message(wire.Stop(), 100)
    assert machine.deadline_ms() == 100 + STOP_TIMEOUT_MS
    only(machine.receive_tick(100 + STOP_TIMEOUT_MS), EndSession)
    machine = flowing()
    machine.receive_message(wire.Stop(), 0)
    only(machine.receive_link_down(E1), EndSession)


def test_an_idle_session_closes_4408() -> None:
    """`closed` comes first; other reasons leave the connection open."""
    outputs = flowing().receive_link(link.Closed(session=S, epoch=1, reason="idle"), 0)
    assert sent(outputs) == [wire.Closed(reason="idle")]
    assert only(outputs, Close).code is wire.CloseCode.IDLE
    outputs = flowing().receive_event(link.SessionClosed(session=S, reason="admin"), 0)
    assert not any(isinstance(o, Close) for o in outputs)


# --- owners -----------------------------------------------------------------------------------------------


def test_a_lost_engine_is_told_and_the_next_one_followed() -> None:
    """state queued with the reason, then active with the new engine; chunks stay contiguous."""
    machine = flowing()
    feed(machine, 1, 0)
    outputs = machine.receive_event(link.SessionQueued(session=S, reason="engine_lost"), 0)
    load = only(outputs, LoadSession)
    lost = replace(RECORD, epoch=2, reason="engine_lost", next_seq=1)
    outputs = machine.receive_result(load, lost, 0)
    assert sent(outputs) == [wire.State(state=SessionState.QUEUED, reason="engine_lost")]
    assert machine.is_queued() and feed(machine, 1, 1) == []
    assert sent(machine.receive_position(1, 30_000, 0)) == [wire.Queued(position=1, eta_ms=30_000)]
    assert (
        only(machine.receive_event(link.SessionOpened(session=S, engine=E2, epoch=3), 0), Follow).engine == E2
    )
    request = only(machine.receive_link_up(E2), Ask).request
    assert isinstance(request, link.Subscribe) and (request.epoch, request.next_seq) == (3, 1)
    assert sent(machine.receive_link(subscribed(3, 1), 0)) == [
        wire.State(state=SessionState.ACTIVE, engine=E2)
    ]


@pytest.mark.parametrize(
    ("position", "eta_ms", "now_ms", "is_told"),
    [
        (2, 30_000, 9_000, False),
        (2, 36_000, 9_000, False),
        (2, 36_001, 9_000, True),
        (2, 23_999, 2_000, True),
        (2, 60_000, 1_999, False),
        (1, 30_000, 0, True),
        (3, 30_000, 0, True),
    ],
)
def test_a_wait_that_changes_is_told(position: int, eta_ms: int, now_ms: float, is_told: bool) -> None:
    """Another place at once; another wait at the same place if it differs by a fifth, and not too often."""
    machine = queued()
    assert sent(machine.receive_position(2, 30_000, 0)) == [wire.Queued(position=2, eta_ms=30_000)]
    told = [wire.Queued(position=position, eta_ms=eta_ms)] * is_told
    assert sent(machine.receive_position(position, eta_ms, now_ms)) == told
    assert sent(machine.receive_position(position, eta_ms, now_ms)) == []


def test_a_short_wait_is_not_told_anew_for_a_second() -> None:
    """A fifth of little is nothing."""
    machine = queued()
    machine.receive_position(1, 1_000, 0)
    assert sent(machine.receive_position(1, 2_000, 9_000)) == []
    assert sent(machine.receive_position(1, 2_001, 9_000)) == [wire.Queued(position=1, eta_ms=2_001)]


def test_a_stale_queued_event_disturbs_nothing() -> None:
    """It names no epoch: the record decides."""
    machine = flowing()
    load = only(machine.receive_event(link.SessionQueued(session=S, reason="engine_lost"), 0), LoadSession)
    assert machine.receive_result(load, replace(PLACED, epoch=1, controller_epoch=1), 0) == []
    assert only(feed(machine, 1, 0), SendChunk).header.seq == 0


def test_a_move_needs_no_queued_state() -> None:
    """Moved to another engine by a drain: the client hears only the new engine."""
    machine = flowing()
    outputs = machine.receive_link(link.Moved(session=S, epoch=2, engine=E2, next_seq=0), 0)
    assert sent(outputs) == [] and only(outputs, Unfollow)
    outputs = machine.receive_event(link.SessionOpened(session=S, engine=E2, epoch=2), 0)
    assert only(outputs, Follow).engine == E2


def test_a_late_moved_does_not_undo_the_new_subscription() -> None:
    """Events may be faster than the old engine's last word."""
    machine = flowing()
    machine.receive_event(link.SessionOpened(session=S, engine=E2, epoch=2), 0)
    machine.receive_link_up(E2)
    machine.receive_link(subscribed(2, 0), 0)
    machine.receive_link(link.Closed(session=S, epoch=1, reason="dropped"), 0)
    assert only(feed(machine, 2, 0), SendChunk).header.engine == E2


def test_an_engine_that_denies_the_session_is_asked_again_after_a_look_at_the_record() -> None:
    """Not in a hot loop."""
    machine = queued()
    machine.receive_event(link.SessionOpened(session=S, engine=E1, epoch=1), 0)
    machine.receive_link_up(E1)
    refused = link.Refused(session=S, epoch=0, code=ErrorCode.NO_SUCH_SESSION, message="not here")
    assert sent(machine.receive_link(refused, 10)) == []
    assert machine.deadline_ms() == 10 + RELOAD_MS
    load = only(machine.receive_tick(10 + RELOAD_MS), LoadSession)
    record = replace(PLACED, epoch=1, controller_epoch=1)
    assert only(machine.receive_result(load, record, 600), Follow).engine == E1


LOST_NEWS: dict[str, tuple[SessionRecord | None, type]] = {
    "closed": (replace(RECORD, phase=Phase.CLOSED, reason="stopped"), wire.Closed),
    "queued again": (replace(RECORD, epoch=2, reason="engine_lost"), wire.State),
}


@pytest.mark.parametrize("name", sorted(LOST_NEWS))
def test_missed_events_are_made_up_for_by_the_record(name: str) -> None:
    """Whatever happened while the events stream was lost, the client hears it."""
    record, kind = LOST_NEWS[name]
    machine = flowing()
    load = only(machine.receive_events_lost(), LoadSession)
    (message,) = sent(machine.receive_result(load, record, 0))
    assert isinstance(message, kind)


def test_news_while_the_record_is_read_has_it_read_again() -> None:
    """What is on its way may be older: the client would never hear that it waits, nor why."""
    machine = flowing()
    load = only(machine.receive_events_lost(), LoadSession)
    assert machine.receive_event(link.SessionQueued(session=S, reason="engine_lost"), 0) == []
    outputs = machine.receive_result(load, replace(PLACED, epoch=1, controller_epoch=1), 0)
    assert sent(outputs) == []
    outputs = machine.receive_result(only(outputs, LoadSession), replace(RECORD, epoch=2, reason="x"), 0)
    assert sent(outputs) == [wire.State(state=SessionState.QUEUED, engine=None, reason="x")]
    assert not any(isinstance(each, LoadSession) for each in outputs)


def test_a_session_without_a_record_is_lost_only_after_a_while() -> None:
    """Redis came back empty: the owner writes it again. Chunks flow meanwhile."""
    machine = flowing()
    load = only(machine.receive_events_lost(), LoadSession)
    assert machine.receive_result(load, None, 1_000) == []
    assert only(feed(machine, 1, 0), SendChunk).header.seq == 0
    load = only(machine.receive_tick(1_000 + RELOAD_MS), LoadSession)
    owned = replace(PLACED, epoch=1, controller_epoch=1)
    assert machine.receive_result(load, owned, 1_500) == []
    load = only(machine.receive_events_lost(), LoadSession)
    assert machine.receive_result(load, None, 20_000) == []
    load = only(machine.receive_tick(20_000 + RELOAD_MS), LoadSession)
    (message,) = sent(machine.receive_result(load, None, 20_000 + LOST_AFTER_MS))
    assert message == wire.Closed(reason="lost")


def test_a_session_that_waits_is_written_again_by_its_gateway() -> None:
    """With all that was accepted; once an engine has it, the engine does so."""
    machine = queued()
    append = only(machine.receive_message(wire.Prompt(text="next", id="p"), 0), AppendInput)
    receipt = InputReceipt(entry="5-0", repeat=False, applied=None)
    machine.receive_result(append, receipt, 0)
    load = only(machine.receive_events_lost(), LoadSession)
    assert load.copy is not None and (load.copy.session, load.copy.prompt.text) == (S, "x")
    assert load.copy.inputs == [("5-0", link.PromptInput(text="next", id="p"))]
    machine.receive_result(load, RECORD, 0)
    machine.receive_event(link.SessionOpened(session=S, engine=E1, epoch=1), 0)
    assert only(machine.receive_events_lost(), LoadSession).copy is None


def test_what_is_accepted_only_as_a_repeat_is_written_again_too() -> None:
    """The answer to the first append was lost with its connection. Once; the start's own prompt is there."""
    machine = queued(start_id="s")
    prompt = wire.Prompt(text="next", id="p")
    receipt = InputReceipt(entry="5-0", repeat=True, applied=None)
    for message, entry in ((wire.Start(prompt="x", id="s"), "1-0"), (prompt, "5-0"), (prompt, "5-0")):
        append = only(machine.receive_message(message, 0), AppendInput)
        machine.receive_result(append, replace(receipt, entry=entry), 0)
    load = only(machine.receive_events_lost(), LoadSession)
    assert load.copy is not None
    assert load.copy.inputs == [("5-0", link.PromptInput(text="next", id="p"))]


def test_a_prompt_without_an_id_is_written_again_too() -> None:
    """Its write has a name of its own, and was made although its first answer was lost."""
    machine = queued()
    calls = [only(machine.receive_message(wire.Prompt(text="next"), 0), AppendInput) for _ in range(2)]
    assert calls[0].write != calls[1].write
    for call, entry in zip(calls, ("5-0", "6-0"), strict=True):
        machine.receive_result(call, InputReceipt(entry=entry, repeat=True, applied=None), 0)
    load = only(machine.receive_events_lost(), LoadSession)
    assert load.copy is not None and [entry for entry, _ in load.copy.inputs] == ["5-0", "6-0"]


def test_missed_events_may_hide_a_takeover() -> None:
    """The record names a higher controller_epoch."""
    machine = flowing()
    load = only(machine.receive_events_lost(), LoadSession)
    outputs = machine.receive_result(load, replace(PLACED, controller_epoch=2), 0)
    assert only(outputs, Close).code is wire.CloseCode.TAKEN_OVER


TAKEOVERS = {
    "event": lambda m: m.receive_event(
        link.ControllerChanged(session=S, controller_epoch=2, gateway=GatewayId("g_2")), 0
    ),
    "link": lambda m: m.receive_link(link.Superseded(session=S, controller_epoch=2), 0),
    "same gateway": lambda m: m.receive_taken_over(2),
}


@pytest.mark.parametrize("way", sorted(TAKEOVERS))
def test_takeover_closes_4409_and_touches_nothing(way: str) -> None:
    """No Unsubscribe, no Forget: the session is the other connection's."""
    machine = flowing()
    outputs = TAKEOVERS[way](machine)
    assert only(outputs, Close).code is wire.CloseCode.TAKEN_OVER
    assert [type(o) for o in outputs] == [Unfollow, Close]
    assert machine.receive_disconnect() == []


def test_a_stale_write_means_takeover() -> None:
    """When the event was missed, the store tells."""
    machine = flowing()
    call = only(machine.receive_message(wire.Prompt(text="y"), 0), AppendInput)
    stale = Failure(kind=FailureKind.TAKEN_OVER, message="")
    assert only(machine.receive_result(call, stale, 0), Close).code is wire.CloseCode.TAKEN_OVER


# --- ends and limits --------------------------------------------------------------------------------------


def test_disconnect_lingers() -> None:
    """Unsubscribe first, then the link is left, then Redis hears it."""
    outputs = flowing().receive_disconnect()
    assert outputs == [
        Ask(request=link.Unsubscribe(session=S, controller_epoch=1)),
        Unfollow(),
        Forget(session=S, controller_epoch=1, close=None),
    ]


def test_shutdown_closes_1012_and_lingers() -> None:
    """The client shall attach elsewhere."""
    outputs = flowing().receive_shutdown()
    assert only(outputs, Close).code is wire.CloseCode.RESTART and only(outputs, Forget).close is None


def test_the_third_bad_message_closes_4400() -> None:
    """A good one between resets the count; an oversize prompt neither counts nor resets."""
    bad = wire.MessageError("bad", code=ErrorCode.BAD_MESSAGE, id="b")
    long = wire.MessageError("long", code=ErrorCode.TOO_LARGE)
    machine = flowing()
    for _ in range(2):
        assert error_of(machine.receive_bad(bad, 0)).id == "b"
    machine.receive_message(wire.Ping(t=1), 0)
    for _ in range(2):
        machine.receive_bad(bad, 0)
        assert error_of(machine.receive_bad(long, 0)).code is ErrorCode.TOO_LARGE
    outputs = machine.receive_bad(bad, 0)
    assert error_of(outputs).code is ErrorCode.BAD_MESSAGE
    assert only(outputs, Close).code is wire.CloseCode.PROTOCOL and only(outputs, Forget).close is None


def test_a_flood_is_refused_and_then_closed_4429() -> None:
    """First error rate, then the close; the session lingers."""
    machine, outputs = flowing(), list[Output]()
    while machine.stage is not Stage.OVER:
        outputs += machine.receive_message(wire.Ping(t=0), 0)
    errors = [m for m in sent(outputs) if isinstance(m, wire.Error)]
    assert errors and {e.code for e in errors} == {ErrorCode.RATE}
    assert only(outputs, Close).code is wire.CloseCode.RATE and only(outputs, Forget).close is None


def test_long_messages_count_as_several() -> None:
    """They take longer to read. Those beyond the rate are not even read."""
    machine, outputs, num_read = flowing(), list[Output](), 0
    while machine.stage is not Stage.OVER:
        may_be_read, now = machine.receive_long(7 * MESSAGE_BYTES, 0)
        outputs += now
        num_read += may_be_read
    assert num_read == MESSAGE_BURST // 7
    errors = [m for m in sent(outputs) if isinstance(m, wire.Error)]
    assert errors and {e.code for e in errors} == {ErrorCode.RATE}
    assert only(outputs, Close).code is wire.CloseCode.RATE and only(outputs, Forget).close is None
    assert machine.receive_long(7 * MESSAGE_BYTES, 0) == (False, [])


def test_ping_works_in_every_stage() -> None:
    """Also while start is under way, and with an id."""
    machine = make_machine()
    machine.receive_message(wire.Start(prompt="x"), 0)
    assert sent(machine.receive_message(wire.Ping(t=2, id="i"), 0)) == [wire.Pong(t=2), wire.Accepted(id="i")]


def test_silence_closes_only_a_fresh_connection() -> None:
    """A session may be silent, and so may who watches one."""
    assert only(make_machine().receive_silence(), Close).code is wire.CloseCode.IDLE
    viewer = make_machine()
    viewer.receive_message(wire.Watch(session=S), 0)
    assert flowing().receive_silence() == viewer.receive_silence() == []


def test_every_stage_can_end_and_none_can_be_left_from_over() -> None:
    """The transition table: LOST leads to OVER from everywhere, and OVER is final."""
    assert all(TRANSITIONS[stage][Cause.LOST] is Stage.OVER for stage in Stage)
    assert TRANSITIONS[Stage.OVER] == {Cause.LOST: Stage.OVER}


# --- anything at any time ---------------------------------------------------------------------------------

_epochs = st.integers(0, 3)
_messages = st.sampled_from(
    [
        wire.Start(prompt="x", id="i"),
        wire.Prompt(text="y", id="p"),
        wire.Control(keys=("a",), id="c"),
        wire.Ack(seq=-1, buffer_ms=0),
        wire.Ack(seq=2, buffer_ms=0),
        wire.Pause(id="q"),
        wire.Resume(),
        wire.Stop(id="s"),
        wire.Reset(),
        ATTACH,
        wire.Ping(t=1),
    ]
)
_events = st.one_of(
    st.builds(link.SessionQueued, session=st.just(S), reason=st.sampled_from(["", "engine_lost"])),
    st.builds(link.SessionPlaced, session=st.just(S), engine=st.sampled_from([E1, E2]), epoch=_epochs),
    st.builds(link.SessionOpened, session=st.just(S), engine=st.sampled_from([E1, E2]), epoch=_epochs),
    st.builds(link.SessionClosed, session=st.just(S), reason=st.sampled_from(["idle", "stopped"])),
    st.builds(link.ControllerChanged, session=st.just(S), controller_epoch=_epochs, gateway=st.just(G)),
)
_replies = st.one_of(
    st.builds(
        link.Subscribed,
        session=st.just(S),
        epoch=_epochs,
        start_seq=st.integers(0, 4),
        state=st.just(SessionState.ACTIVE),
    ),
    st.builds(
        link.Refused,
        session=st.just(S),
        epoch=_epochs,
        code=st.sampled_from([ErrorCode.BAD_STATE, ErrorCode.NO_SUCH_SESSION]),
        message=st.just("no"),
    ),
    st.builds(link.Applied, session=st.just(S), epoch=_epochs, rev=_epochs, seq=_epochs),
    st.builds(link.Closed, session=st.just(S), epoch=_epochs, reason=st.just("stopped")),
    st.builds(link.Superseded, session=st.just(S), controller_epoch=_epochs),
    st.builds(link.Moved, session=st.just(S), epoch=_epochs, engine=st.just(E2), next_seq=_epochs),
)
_records = st.sampled_from(
    [RECORD, PLACED, replace(RECORD, epoch=3, reason="engine_lost"), replace(RECORD, phase=Phase.CLOSED)]
)
_failures = st.builds(Failure, kind=st.sampled_from(FailureKind), message=st.just("x"))
_happenings = st.one_of(
    st.tuples(st.just("message"), _messages),
    st.tuples(st.just("event"), _events),
    st.tuples(st.just("link"), _replies),
    st.tuples(st.just("chunk"), st.tuples(_epochs, st.integers(0, 5))),
    st.tuples(st.just("answer"), st.one_of(_records, _failures)),
    st.tuples(st.just("up"), st.sampled_from([E1, E2])),
    st.tuples(st.just("down"), st.sampled_from([E1, E2])),
    st.tuples(st.just("tick"), st.just(None)),
    st.tuples(st.just("disconnect"), st.just(None)),
)


class Driver:
    """Plays happenings into a machine and keeps the books that a client and a store would keep."""

    def __init__(self) -> None:
        self.machine = make_machine()
        self.calls: list[Call] = []
        self.next_seq: int | None = None
        self.is_over = False
        self.now_ms = 0.0

    def play(self, kind: str, value: object) -> None:
        self.now_ms += 30
        for output in self._outputs(kind, value):
            self._check(output)

    def _outputs(self, kind: str, value: object) -> list[Output]:
        m, now_ms = self.machine, self.now_ms
        actions = {
            "message": lambda: m.receive_message(value, now_ms),  # type: ignore[arg-type]
            "event": lambda: m.receive_event(value, now_ms),  # type: ignore[arg-type]
            "link": lambda: m.receive_link(value, now_ms),  # type: ignore[arg-type]
            "chunk": lambda: feed(m, *value),  # type: ignore[misc]
            "answer": lambda: self._answer(value),
            "up": lambda: m.receive_link_up(value),  # type: ignore[arg-type]
            "down": lambda: m.receive_link_down(value),  # type: ignore[arg-type]
            "tick": lambda: m.receive_tick(now_ms),
            "disconnect": m.receive_disconnect,
        }
        return actions[kind]()

    def _answer(self, value: object) -> list[Output]:
        if not self.calls:
            return []
        call = self.calls.pop(0)
        if isinstance(value, SessionRecord) and not isinstance(
            call, CreateSession | TakeControl | LoadSession
        ):
            receipt = InputReceipt(entry="1-1", repeat=False, applied=None)
            return self.machine.receive_result(call, receipt, self.now_ms)
        if isinstance(value, SessionRecord):
            value = replace(value, id=call.session)
            if isinstance(call, TakeControl):
                value = Taken(record=value)
        return self.machine.receive_result(call, value, self.now_ms)

    def _check(self, output: Output) -> None:
        match output:
            case Send(message=message):
                assert not self.is_over, "nothing is said behind a close"
                self._check_message(message)
            case SendChunk(header=header):
                assert not self.is_over and header.seq == self.next_seq
                self.next_seq = header.seq + 1
            case Close():
                assert not self.is_over
                self.is_over = True
            case Ask() | Follow() | Unfollow() | Forget():
                pass
            case _:
                self.calls.append(output)

    def _check_message(self, message: wire.ServerMessage) -> None:
        match message:
            case wire.Session(session=session):
                self.next_seq = ATTACH.next_seq if self._is_attached else 0
                assert session
            case wire.Gap(from_seq=from_seq, to_seq=to_seq):
                assert from_seq == self.next_seq and to_seq >= from_seq
                self.next_seq = to_seq + 1

    @property
    def _is_attached(self) -> bool:
        flow_start = self.machine.next_seq()
        return flow_start == ATTACH.next_seq


@settings(max_examples=400)
@given(st.lists(_happenings, max_size=60))
def test_whatever_happens_the_machine_keeps_its_promises(happenings: list[tuple[str, object]]) -> None:
    """Nothing raises, the chunk sequence has no hole that was not announced, calls in flight are bounded."""
    driver = Driver()
    for kind, value in happenings:
        driver.play(kind, value)
        if kind == "disconnect":
            driver.is_over = True
    assert len(driver.calls) <= MAX_HELD_INPUTS + 4
