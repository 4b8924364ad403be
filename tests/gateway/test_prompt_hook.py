"""What a prompt hook lets pass, what it refuses, and what counts when it fails."""

from __future__ import annotations

import asyncio
import json
import ssl
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from gateway import protocol as wire
from gateway.calls import finish_calls
from gateway.prompt_hook import AWAY, REFUSED, Answer, PromptHook, Question, load_hook
from gateway.steps import AppendInput, FailureKind
from scheduler.messages import ErrorCode, PromptInput, ResetInput, SessionId
from tests.gateway.gateway_fixtures import World, begin, client_of, make_certificate
from tests.patience import PATIENCE_S

S = SessionId("s_0000000000000001")


def prompt(text: str) -> AppendInput:
    return AppendInput(session=S, controller_epoch=1, message=PromptInput(text=text), write="1-1", ids=())


async def no_cats(question: Question) -> Answer:
    """An example of a hook."""
    match question.text:
        case "a cat":
            return "no cats here"
        case "two cats":
            return False
        case "a broken cat":
            raise RuntimeError("meow")
        case "a cancelled cat":
            raise asyncio.CancelledError
        case "a slow cat":
            await asyncio.Event().wait()
    return None


@pytest.mark.parametrize("fail_open", [False, True])
async def test_judgements(fail_open: bool) -> None:
    """Refusals say why; a hook that fails or is late counts as the setting says; a reset is no prompt."""
    hook = PromptHook(no_cats, timeout_s=0.02, fail_open=fail_open)
    assert await hook.judge(prompt("a dog")) is None
    reset = AppendInput(session=S, controller_epoch=1, message=ResetInput(), write="1-1", ids=())
    assert await hook.judge(reset) is None
    for text, sentence in (("a cat", "no cats here"), ("two cats", REFUSED)):
        refusal = await hook.judge(prompt(text))
        assert refusal is not None and (refusal.kind, refusal.message) == (FailureKind.NOT_ALLOWED, sentence)
    for text in ("a broken cat", "a cancelled cat", "a slow cat"):
        refusal = await hook.judge(prompt(text))
        assert (refusal is None) is fail_open
        assert refusal is None or (refusal.kind, refusal.message) == (FailureKind.UNAVAILABLE, AWAY)


async def test_who_asks_can_be_cancelled() -> None:
    """That is no failure of the hook."""
    hook = PromptHook(no_cats, timeout_s=60, fail_open=True)
    task = asyncio.create_task(hook.judge(prompt("a slow cat")))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


HANGING: dict[str, object] = {
    "prompt_hook": f"{__name__}:no_cats",
    "prompt_hook_timeout_s": 3600.0,
    "prompt_hook_fail_open": True,
}


@pytest.mark.parametrize("who_ends", ["client", "gateway"])
async def test_ends_do_not_wait_for_the_hook(world: World, who_ends: str) -> None:
    """A connection's, and the gateway's: what nobody has judged is in no log then."""
    async with world.engine() as engine, AsyncExitStack() as running:
        gateway = await running.enter_async_context(world.gateway(**HANGING))
        async with client_of(gateway) as client:
            session = await begin(client, engine)
            await client.send(*(wire.Prompt(text="a slow cat") for _ in range(64)), wire.Ping(t=1))
            await client.expect(wire.Pong, skip=(wire.Accepted, wire.Applied))
            (connection,) = gateway.hub.connections
            tasks = connection.calls_tasks
            assert not all(task.done() for task in tasks)
            async with asyncio.timeout(PATIENCE_S):
                if who_ends == "gateway":
                    await running.aclose()
                await client.ws.close()
                await asyncio.wait(tasks)
        assert not any(task.cancelled() for task in tasks)
        id = SessionId(session.session)
        assert [entry.text for _, entry in (await world.store.read_inputs({id: "0-0"}))[id]] == ["a red ball"]


async def test_pause_and_stop_do_not_wait_for_the_hook(world: World) -> None:
    """Of a session that waits for an engine; inputs keep their order. Nor does the next start."""
    async with world.engine(), world.gateway(**HANGING) as gateway, client_of(gateway) as client:
        await client.send(wire.Start(prompt="a dog"))
        session = SessionId((await client.expect(wire.Session)).session)
        await client.send(wire.Prompt(text="a slow cat", id="1"), wire.Reset(id="2"), wire.Pause(id="3"))
        assert await client.expect(wire.Accepted) == wire.Accepted(id="3")
        record = await world.store.get_session(session)
        assert record is not None and record.paused
        await client.send(wire.Stop(id="4"))
        assert await client.expect(wire.Accepted) == wire.Accepted(id="4")
        for id in ("1", "2"):  # with the session nobody would answer them any more
            error = await client.expect(wire.Error)
            assert (error.code, error.id) == (ErrorCode.BAD_STATE, id)
        assert (await client.expect(wire.Closed)).reason == "stopped"
        await client.send(wire.Start(prompt="a dog"))
        await client.expect(wire.Session)


async def test_a_stop_drops_what_redis_does_not_answer() -> None:
    """It waits for the others."""
    answer = asyncio.Event()
    quick = asyncio.create_task(_wait(answer))
    never = asyncio.create_task(_wait(asyncio.Event()))
    answer.set()
    await finish_calls((quick, never), within_s=0.01)
    assert quick.done() and not quick.cancelled() and never.cancelled()
    await finish_calls((), within_s=0.01)


async def _wait(event: asyncio.Event) -> None:
    await event.wait()


@pytest.mark.parametrize(
    "name", ["nowhere.at.all:f", "json:nothing", "json:__name__", "json:dumps", "json", ""]
)
def test_hooks_that_cannot_be(name: str) -> None:
    """The gateway does not start with them."""
    with pytest.raises(ValueError, match="prompt_hook"):
        load_hook(name)


async def test_a_hook_over_https_reads_the_authorities_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When it is set up: it takes tens of ms, in which every prompt would stop all streams."""
    cert, key = await make_certificate(tmp_path)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(cert, key)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"}")
        writer.write(b'HTTP/1.1 200 OK\r\nContent-Length: 17\r\n\r\n{"allowed": true}')
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0, ssl=tls) as server:
        monkeypatch.setenv("SSL_CERT_FILE", str(cert))
        hook = load_hook(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/judge")
        cert.unlink()
        for _ in range(2):
            assert await hook(Question(session=S, subject="", text="a dog")) is True


async def test_a_hook_over_http(world: World) -> None:
    """A start is refused with its sentence; what passes, passes; a broken answer refuses."""
    seen: list[dict[str, str]] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        seen.append(question := json.loads(await reader.readexactly(length)))
        allowed = "cat" not in question["text"]
        body = json.dumps({"allowed": allowed, "message": "no cats here"}).encode()
        status = "500 Oops" if "broken" in question["text"] else "200 OK"
        writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/judge"
        async with (
            world.engine() as engine,
            world.gateway(prompt_hook=url, prompt_hook_timeout_s=PATIENCE_S) as gateway,
            client_of(gateway) as client,
        ):
            await client.send(wire.Start(prompt="a cat", id="1"))
            refused = wire.Error(code=ErrorCode.NOT_ALLOWED, message="no cats here", id="1")
            assert await client.expect(wire.Error) == refused
            session = await begin(client, engine)
            await client.send(wire.Prompt(text="a broken dog", id="2"), wire.Prompt(text="a dog", id="3"))
            assert (await client.expect(wire.Error)).code is ErrorCode.UNAVAILABLE
            assert await client.expect(wire.Accepted) == wire.Accepted(id="3")
    assert [question["text"] for question in seen] == ["a cat", "a red ball", "a broken dog", "a dog"]
    assert seen[1] == {"session": session.session, "subject": "", "text": "a red ball"}
