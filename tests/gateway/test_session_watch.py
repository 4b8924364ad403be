"""The rules for viewers as tables, and a hundred of them on a real gateway."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import replace

import pytest

from gateway import protocol as wire
from gateway.auth import Identity, Scope
from gateway.protocol import CloseCode
from gateway.session import SessionMachine
from gateway.session_core import LOST_AFTER_MS
from gateway.session_follow import RELOAD_MS
from gateway.session_watch import MAX_LOADS, MAX_VIEWER_QUEUE_BYTES
from gateway.steps import Ask, Close, CreateSession, Follow, LoadSession, Output, SendChunk, Unfollow
from scheduler import messages as link
from scheduler.messages import ErrorCode, Phase, SessionId, SessionState
from tests.gateway.gateway_fixtures import World, begin, client_of
from tests.gateway.scripted_engine import make_part
from tests.gateway.test_session import E1, E2, RECORD, S, error_of, make_machine, only, sent
from tests.gateway.test_session_access import make_machine as make_guarded

PLACED = replace(RECORD, phase=Phase.PLACED, engine=E1, epoch=1, opened=True)
WATCH = wire.Watch(session=S, id="w")


def watching() -> SessionMachine:
    """A viewer of a session that E1 serves at epoch 1."""
    machine = make_machine()
    call = only(machine.receive_message(WATCH, 0), LoadSession)
    outputs = machine.receive_result(call, PLACED, 0)
    session, accepted = sent(outputs)
    assert isinstance(session, wire.Session) and session.resume == "" and accepted == wire.Accepted(id="w")
    assert only(outputs, Follow).engine == E1
    request = only(machine.receive_link_up(E1), Ask).request
    assert request == link.Watch(session=S, epoch=1)
    state = link.StateChanged(session=S, epoch=1, state=SessionState.ACTIVE)
    assert sent(machine.receive_link(state, 0)) == [wire.State(state=SessionState.ACTIVE, engine=E1)]
    return machine


def view(machine: SessionMachine, seq: int, part: int = 0, parts: int = 1, queued: int = 0) -> list[Output]:
    made = make_part(S, 1, seq, part, parts)
    return machine.receive_viewed(made, bytes(sum(made.sizes)), queued)


def relayed(outputs: list[Output]) -> list[tuple[int, int]]:
    return [(o.header.seq, o.header.part) for o in outputs if isinstance(o, SendChunk)]


def test_a_late_joiner_begins_with_the_next_chunk() -> None:
    """What is left of the present one is of no use to it, and no gap."""
    machine = watching()
    assert view(machine, 7, 1, 2) == []
    assert relayed(view(machine, 8, 0, 2)) == [(8, 0)]
    assert relayed(view(machine, 8, 1, 2)) == [(8, 1)]
    assert view(machine, 8, 0, 2) == [], "a repeat for the controller's sake"
    assert relayed(view(machine, 9)) == [(9, 0)]


def test_a_slow_viewer_misses_whole_chunks() -> None:
    """A chunk that has begun is finished; then nothing until the queue is short, and a gap says what."""
    machine = watching()
    size = sum(make_part(S, 1, 0).sizes)
    view(machine, 0, 0, 2)
    assert relayed(view(machine, 0, 1, 2, queued=MAX_VIEWER_QUEUE_BYTES + 1)) == [(0, 1)]
    for seq, queued in ((1, 2 * size + 1), (2, MAX_VIEWER_QUEUE_BYTES + 1)):
        assert view(machine, seq, queued=queued) == []
    outputs = view(machine, 3, queued=2 * size)
    assert sent(outputs) == [wire.Gap(from_seq=1, to_seq=2)] and relayed(outputs) == [(3, 0)]


def test_a_viewer_follows_the_session() -> None:
    """To another engine without a gap; old epochs are no longer heard; to the end."""
    machine = watching()
    view(machine, 0)
    outputs = machine.receive_event(link.SessionOpened(session=S, engine=E2, epoch=2), 0)
    assert only(outputs, Unfollow) and only(outputs, Follow).engine == E2
    assert only(machine.receive_link_up(E2), Ask).request == link.Watch(session=S, epoch=2)
    assert view(machine, 1) == []
    assert relayed(machine.receive_viewed(make_part(S, 2, 1), b"", 0)) == [(1, 0)]
    outputs = machine.receive_event(link.SessionClosed(session=S, reason="stopped"), 0)
    assert sent(outputs) == [wire.Closed(reason="stopped")]
    assert not machine.is_watching() and machine.session_id is None


def test_a_refused_viewer_asks_again() -> None:
    """The engine does not have the session: the record is read after a pause."""
    machine = watching()
    refused = link.Refused(
        session=S, epoch=0, code=ErrorCode.NO_SUCH_SESSION, message="not here", is_watch=True
    )
    assert only(machine.receive_link(refused, 100), Unfollow)
    assert machine.deadline_ms() == 100 + RELOAD_MS
    call = only(machine.receive_tick(100 + RELOAD_MS), LoadSession)
    assert only(machine.receive_result(call, replace(PLACED, epoch=2), 0), Follow).engine == E1


@pytest.mark.parametrize(
    "reply",
    [
        link.Refused(session=S, epoch=1, code=ErrorCode.BAD_STATE, message="next_seq is too high"),
        link.Moved(session=S, epoch=0, engine=E2, next_seq=1),
    ],
)
def test_what_is_not_for_viewers_costs_them_nothing(reply: link.LinkReply) -> None:
    """An attach at the same gateway that the engine refuses; a move of long ago, from an engine that has the
    session again: no chunk is missed."""
    machine = watching()
    view(machine, 0)
    assert machine.receive_link(reply, 100) == [] and machine.deadline_ms() is None
    assert relayed(view(machine, 1)) == [(1, 0)]


def test_a_viewer_that_leaves_before_it_was_let_in_is_answered() -> None:
    """Each of its messages once."""
    machine = make_machine()
    machine.receive_message(replace(WATCH, id="1"), 0)
    outputs = machine.receive_message(wire.Stop(id="2"), 0)
    assert sent(outputs) == [wire.Accepted(id="1"), wire.Accepted(id="2"), wire.Closed(reason="stopped")]


@pytest.mark.parametrize(
    "message",
    [wire.Prompt(text="x", id="1"), wire.Pause(id="1"), wire.Reset(id="1"), wire.Start(prompt="x", id="1")],
)
def test_a_viewer_steers_nothing(message: wire.ClientMessage) -> None:
    """Error not_allowed, and nothing else happens."""
    outputs = watching().receive_message(message, 0)
    assert (error_of(outputs).code, error_of(outputs).id) == (ErrorCode.NOT_ALLOWED, "1") and len(
        outputs
    ) == 1


def test_a_viewer_leaves() -> None:
    """By stop, after which it may start a session, or by going: the engine hears it."""
    machine = watching()
    outputs = machine.receive_message(wire.Stop(id="1"), 0)
    assert sent(outputs) == [wire.Accepted(id="1"), wire.Closed(reason="stopped")]
    assert only(outputs, Ask).request == link.Unwatch(session=S)
    assert only(machine.receive_message(wire.Start(prompt="x"), 0), CreateSession)
    assert only(watching().receive_disconnect(), Ask).request == link.Unwatch(session=S)


@pytest.mark.parametrize("record", [None, replace(RECORD, phase=Phase.CLOSED, reason="stopped")])
def test_nothing_to_watch(record: link.SessionRecord | None) -> None:
    """Error no_such_session, close 4404."""
    machine = make_machine()
    outputs = machine.receive_result(only(machine.receive_message(WATCH, 0), LoadSession), record, 0)
    assert error_of(outputs).code is ErrorCode.NO_SUCH_SESSION
    assert only(outputs, Close).code is CloseCode.NO_SUCH_SESSION


def test_a_record_that_is_missing_for_a_while() -> None:
    """Redis came back older: the owner writes the session again, and until then its viewers go on; for good
    it is lost, and it is not missing for longer because it was before."""
    machine = watching()
    load = only(machine.receive_events_lost(), LoadSession)
    for at_ms, record in ((0, None), (20_000, PLACED), (40_000, None)):
        outputs = machine.receive_result(load, record, at_ms)
        assert outputs == [] and relayed(view(machine, at_ms)) == [(at_ms, 0)]
        load = only(machine.receive_events_lost(), LoadSession)
    assert only(machine.receive_tick(40_000 + RELOAD_MS), LoadSession) == load
    machine.receive_result(load, None, 40_000 + LOST_AFTER_MS - 1)
    outputs = machine.receive_result(load, None, 40_000 + LOST_AFTER_MS)
    assert sent(outputs) == [wire.Closed(reason="lost")]


def test_few_records_are_looked_for_at_once() -> None:
    """Calls wait while Redis is away: who watches and stops over and over must not pile them up."""
    machine = make_machine()
    loads = []
    for _ in range(MAX_LOADS):
        loads.append(only(machine.receive_message(WATCH, 0), LoadSession))
        machine.receive_message(wire.Stop(), 0)
    outputs = machine.receive_message(WATCH, 0)
    assert error_of(outputs).code is ErrorCode.UNAVAILABLE and len(outputs) == 1
    machine.receive_result(loads[0], PLACED, 0)
    assert only(machine.receive_message(WATCH, 0), LoadSession)


def test_who_may_watch() -> None:
    """The scope view, and a token for one session only that one."""
    view_scope = frozenset({Scope.VIEW})
    for identity, allowed in (
        (Identity(subject="a", scopes=frozenset({Scope.CONTROL, Scope.ADMIN})), False),
        (Identity(subject="a", scopes=view_scope, session="s_0000000000000002"), False),
        (Identity(subject="a", scopes=view_scope, session=S), True),
        (Identity(subject="a", scopes=view_scope), True),
    ):
        outputs = make_guarded(identity).receive_message(WATCH, 0)
        assert any(isinstance(output, LoadSession) for output in outputs) is allowed
        assert allowed or error_of(outputs).code is ErrorCode.NOT_ALLOWED


def test_an_id_alone_grants_nothing() -> None:
    """A token that names no session shows its own subject's sessions, an administrator's any."""
    view_scope = frozenset({Scope.VIEW})
    record = replace(PLACED, subject="alice")
    for identity, allowed in (
        (Identity(subject="alice", scopes=view_scope), True),
        (Identity(subject="bob", scopes=view_scope), False),
        (Identity(subject="bob", scopes=view_scope, session=S), True),
        (Identity(subject="bob", scopes=view_scope | {Scope.ADMIN}), True),
    ):
        machine = make_guarded(identity)
        call = only(machine.receive_message(WATCH, 0), LoadSession)
        outputs = machine.receive_result(call, record, 0)
        assert machine.is_watching() is any(isinstance(output, Follow) for output in outputs) is allowed
        assert allowed or (error_of(outputs).code, len(outputs)) == (ErrorCode.NOT_ALLOWED, 1)


async def test_who_comes_to_watch_while_sessions_are_written_again(world: World) -> None:
    """Redis lost its data: that it knows no such session means nothing until all could say what they have."""
    redis, prefix = world.store._redis.client, f"{world.store.prefix}session:"
    async with world.engine() as engine, world.gateway() as gateway, client_of(gateway) as client:
        session = (await begin(client, engine)).session
        async with client_of(gateway) as viewer, client_of(gateway) as stranger:
            await redis.rename(prefix + session, "elsewhere")
            await world.store.raise_term(world.term + 1)
            for each, id in ((viewer, session), (stranger, "s_0123456789abcdef")):
                await each.send(wire.Watch(session=id), wire.Ping(t=1))
                await each.expect(wire.Pong)
            await redis.rename("elsewhere", prefix + session)
            assert (await viewer.expect(wire.Session)).session == session
            await world.store.mark_new()
            assert (await stranger.expect(wire.Error)).code is ErrorCode.NO_SUCH_SESSION


async def test_a_hundred_viewers(world: World) -> None:
    """Each gets every chunk of one stream, also while nobody controls it; the last one's end is told."""
    async with (
        world.engine() as engine,
        world.gateway() as gateway,
        world.gateway() as other,
        client_of(gateway) as client,
        AsyncExitStack() as stack,
    ):
        session = SessionId((await begin(client, engine)).session)
        viewers = [await stack.enter_async_context(client_of(other)) for _ in range(100)]
        for viewer in viewers:
            await viewer.send(wire.Watch(session=session))
            assert (await viewer.expect(wire.Session)).resume == ""
        for _ in viewers:
            assert await engine.expect(link.Watch) == link.Watch(session=session, epoch=1)
        await client.ws.close()
        assert len(engine.links) == 2
        await engine.send_chunk(session, 4)
        for viewer in viewers:
            parts = [await viewer.expect(wire.ChunkHeader) for _ in range(2)]
            assert [(part.seq, part.part) for part in parts] == [(4, 0), (4, 1)]
        await stack.aclose()
        while not isinstance(request := await engine.expect(link.LinkRequest), link.Unwatch):  # type: ignore[arg-type]
            assert isinstance(request, link.Unsubscribe | link.Watch)
