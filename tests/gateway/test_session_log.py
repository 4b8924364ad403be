"""Beginnings and ends of sessions are in the log, with ids and without secrets."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from gateway import protocol as wire
from gateway.auth import Scope
from gateway.listener import Listener, ListenerLimits
from gateway.prompt_hook import PromptHook
from gateway.session_log import MAX_LINES, SessionLog
from scheduler.logs import JsonFormatter
from scheduler.messages import SessionId
from tests.cluster import until
from tests.gateway.gateway_fixtures import World, begin, client_of
from tests.gateway.test_access import SECRET, SETTINGS, token_for
from tests.gateway.test_listener import App, ask, unread
from tests.gateway.test_prompt_hook import no_cats, prompt

S = SessionId("s_0000000000000001")


def lines(caplog: pytest.LogCaptureFixture, name: str = "gateway.session") -> list[dict[str, Any]]:
    """As a collector of JSON gets them."""
    formatter = JsonFormatter({"gateway": "g_00000001"})
    return [json.loads(formatter.format(record)) for record in caplog.records if record.name == name]


async def test_a_sessions_life(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Start, take-over, watch, end and closes: a line each, under the session's id, and no secret in any."""
    caplog.set_level(logging.INFO)
    token = token_for(Scope.CONTROL, Scope.VIEW)
    async with world.engine() as engine, world.gateway(**SETTINGS) as gateway:
        async with client_of(gateway) as first, client_of(gateway) as second, client_of(gateway) as viewer:
            session = await begin(first, engine, token=token)
            id = SessionId(session.session)
            await engine.send_chunk(id, 0)
            for _ in range(2):
                await first.expect(wire.ChunkHeader)
            await first.send(wire.Ack(seq=0, buffer_ms=400), wire.Prompt(text="a blue ball", id="p"))
            await first.expect(wire.Accepted)
            await viewer.send(wire.Watch(session=id, token=token))
            await viewer.expect(wire.Session)
            await second.send(wire.Attach(session=id, resume=session.resume, next_seq=1, token=token))
            await second.expect(wire.Session)
            assert await first.close_code() == wire.CloseCode.TAKEN_OVER
            await second.send(wire.Attach(session=id, resume=session.resume, next_seq=1, token="x.y.z"))
            assert await second.close_code() == wire.CloseCode.NOT_AUTHORISED
            await viewer.ws.close(4321, "bye")
            await until(lambda: not gateway.hub.connections)
    told = lines(caplog)
    assert {line["session"] for line in told} == {id} and {line["level"] for line in told} == {"INFO"}
    messages = [line["message"].removeprefix(f"{id}: ") for line in told]
    assert messages[:2] == ["start", "watch"] and messages[-1] == "close, code 4321"
    assert sorted(messages[2:-1]) == [  # the older connection may hear of it first
        "attach",
        "close, code 4401: the token is not valid: it is not a JWT signed with HS256",
        "take-over, code 4409: another connection attached to this session",
    ]
    ours = {record.name for record in caplog.records if record.name.startswith(("gateway", "scheduler"))}
    everything = json.dumps([lines(caplog, name) for name in ours])
    for secret in (token, session.resume, "a red ball", "a blue ball", "bye", SECRET):
        assert secret not in everything


async def test_an_abort_names_the_session(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with world.engine() as engine, world.gateway() as gateway:
        async with client_of(gateway) as client, client_of(gateway):
            session = await begin(client, engine)
            for connection in tuple(gateway.hub.connections):
                connection.receive_fault(RuntimeError("a fault in a test"))
            await until(lambda: not gateway.hub.connections)
    ends = sorted(line["message"] for line in lines(caplog) if "start" not in line["message"])
    assert ends == ["no session: abort: an internal error", f"{session.session}: abort: an internal error"]


async def test_a_connection_without_a_session_is_no_news(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with world.gateway() as gateway:
        async with client_of(gateway) as client:
            await client.send(wire.Ping(t=1))
            await client.expect(wire.Pong)
        await until(lambda: not gateway.hub.connections)
    assert lines(caplog) == []


async def test_what_fails_says_where(caplog: pytest.LogCaptureFixture) -> None:
    """The hook of which session's prompt, the answer to which request."""
    caplog.set_level(logging.INFO)
    await PromptHook(no_cats, timeout_s=60, fail_open=True).judge(prompt("a broken cat"))
    (line,) = lines(caplog, "gateway.prompt_hook")
    assert (line["session"], line["message"]) == (S, f"{S}: the prompt hook failed: RuntimeError")
    app = App()
    listener = Listener(app, limits=ListenerLimits(stall_timeout_s=0.05))
    writer = await unread(await listener.start("127.0.0.1", 0), ask("/page", close=False) * 10_000)
    await app.asked.wait()
    await listener.drained()
    writer.transport.abort()
    await listener.close()
    (line,) = lines(caplog, "gateway.listener")
    assert line["message"].startswith("response cut off: GET '/page': ")


def test_who_starts_and_stops_for_ever_does_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """The end of the connection is told all the same."""
    caplog.set_level(logging.INFO)
    log = SessionLog()
    for _ in range(1000):
        log.begin(S, "start")
        log.end("stopped")
    log.lose(None, 1001)
    told = [line["message"] for line in lines(caplog)]
    assert len(told) == MAX_LINES + 1
    assert told[0] == f"{S}: start" and told[-2].endswith("further ones are not told")
    assert told[-1] == f"{S}: close, code 1001"
