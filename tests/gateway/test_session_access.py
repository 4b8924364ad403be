"""The session rules where a token is needed: who is let in, and what each refusal says."""

from __future__ import annotations

import itertools

import pytest

from gateway import protocol as wire
from gateway.auth import Identity, Scope, TokenRefused
from gateway.catalog import Catalog
from gateway.protocol import CloseCode
from gateway.session import Draw, SessionMachine, Stage
from gateway.steps import AppendInput, Close, CreateSession, Failure, FailureKind, TakeControl
from scheduler.messages import ErrorCode, SessionClosed, SessionId
from tests.gateway.scripted_engine import MODEL
from tests.gateway.test_session import RECORD, S, error_of, only, sent

ALICE = Identity(subject="alice", scopes=frozenset({Scope.CONTROL}), max_sessions=2)
VIEWER = Identity(subject="bob", scopes=frozenset({Scope.VIEW}))
ATTACH = wire.Attach(session=S, resume="secret", next_seq=0)


class Door:
    """Knows two tokens; lets a subject start `starts` times."""

    def __init__(self, starts: int = 9) -> None:
        self.starts = starts
        self.expired: set[str] = set()

    def identify(self, token: str) -> Identity:
        if token not in ("alice", "bob"):
            raise TokenRefused("the token is not valid")
        return ALICE if token == "alice" else VIEWER

    def has_expired(self, identity: Identity) -> bool:
        return identity.subject in self.expired

    def count_start(self, identity: Identity) -> int | None:
        self.starts -= 1
        return None if self.starts >= 0 else 700

    def quota(self, identity: Identity) -> int | None:
        return identity.max_sessions


def make_machine(identity: Identity | None = None, door: Door | None = None) -> SessionMachine:
    serial = itertools.count(1)
    return SessionMachine(
        catalog=lambda: Catalog(models={"shapes": MODEL}),
        draw=lambda: Draw(session=SessionId(f"s_{next(serial):016x}"), resume="secret", seed=7),
        door=door or Door(),
        identity=identity,
    )


@pytest.mark.parametrize("message", [wire.Start(prompt="x"), ATTACH, wire.Prompt(text="x"), wire.Ping(t=1)])
def test_nothing_without_a_token(message: wire.ClientMessage) -> None:
    """Whatever comes first: error unauthorised, close 4401."""
    machine = make_machine()
    outputs = machine.receive_message(message, 0)
    assert error_of(outputs).code is ErrorCode.UNAUTHORISED
    assert only(outputs, Close).code is CloseCode.NOT_AUTHORISED
    assert machine.stage is Stage.OVER and len(outputs) == 2


def test_a_token_in_the_handshake_or_in_the_first_message() -> None:
    """Either lets a session start, under the subject and quota of the token."""
    for identity, token in ((ALICE, None), (None, "alice"), (VIEWER, "alice")):
        machine = make_machine(identity)
        call = only(machine.receive_message(wire.Start(prompt="x", token=token), 0), CreateSession)
        assert (call.subject, call.max_sessions) == ("alice", 2)
        machine.receive_result(call, RECORD, 0)
        assert sent(machine.receive_message(wire.Ping(t=1), 0)) == [wire.Pong(t=1)]


def test_a_bad_token_is_not_forgiven() -> None:
    """Also where the handshake's was good: close 4401, and a running session lingers."""
    machine = make_machine(ALICE)
    outputs = machine.receive_message(wire.Start(prompt="x", token="forged", id="1"), 0)
    error = error_of(outputs)
    assert (error.code, error.id) == (ErrorCode.UNAUTHORISED, "1") and "forged" not in error.message
    assert only(outputs, Close).code is CloseCode.NOT_AUTHORISED


@pytest.mark.parametrize("message", [wire.Start(prompt="x"), ATTACH, wire.Watch(session=S)])
def test_a_token_that_expires_on_an_open_connection(message: wire.ClientMessage) -> None:
    """What runs goes on; the next session needs a new token, which may come with the message."""
    door = Door()
    machine = make_machine(ALICE, door)
    call = only(machine.receive_message(wire.Start(prompt="x"), 0), CreateSession)
    machine.receive_result(call, RECORD, 0)
    door.expired.add("alice")
    assert only(machine.receive_message(wire.Prompt(text="y", id="1"), 0), AppendInput)
    machine.receive_event(SessionClosed(session=call.session, reason="stopped"), 0)
    assert machine.stage is Stage.FRESH
    outputs = machine.receive_message(message, 0)
    assert error_of(outputs).code is ErrorCode.UNAUTHORISED
    assert only(outputs, Close).code is CloseCode.NOT_AUTHORISED


def test_a_new_token_takes_the_place_of_an_expired_one() -> None:
    """On the same connection."""
    door = Door()
    door.expired.add("bob")
    outputs = make_machine(VIEWER, door).receive_message(wire.Start(prompt="x", token="alice"), 0)
    assert only(outputs, CreateSession).subject == "alice"


def test_the_scope_control_is_needed() -> None:
    """A viewer's start and attach are not allowed; the connection lives and may bring another token."""
    machine = make_machine(VIEWER)
    for message in (wire.Start(prompt="x", id="1"), ATTACH):
        outputs = machine.receive_message(message, 0)
        assert error_of(outputs).code is ErrorCode.NOT_ALLOWED and len(outputs) == 1
    outputs = machine.receive_message(wire.Attach(session=S, resume="r", next_seq=0, token="alice"), 0)
    assert only(outputs, TakeControl)


def test_starting_too_often() -> None:
    """error rate says when to try again; nothing is created."""
    machine = make_machine(ALICE, Door(starts=0))
    error = error_of(machine.receive_message(wire.Start(prompt="x", id="1"), 0))
    assert (error.code, error.id, error.retry_after_ms) == (ErrorCode.RATE, "1", 700)
    assert machine.stage is Stage.FRESH


def test_a_full_quota() -> None:
    """error not_allowed with the sentence of the store; the connection may try again."""
    machine = make_machine(ALICE)
    call = only(machine.receive_message(wire.Start(prompt="x", id="1"), 0), CreateSession)
    outputs = machine.receive_result(call, Failure(kind=FailureKind.QUOTA, message="2 at once"), 0)
    assert error_of(outputs) == wire.Error(code=ErrorCode.NOT_ALLOWED, message="2 at once", id="1")
    assert machine.stage is Stage.FRESH and len(outputs) == 1
