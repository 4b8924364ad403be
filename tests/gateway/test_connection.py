"""Whole paths through a gateway: real sockets, a real Redis, a scripted engine on the link."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import pytest
from websockets.exceptions import ConnectionClosed

from gateway import protocol as wire
from gateway.events import QueueWatcher
from gateway.link import PING_TIMEOUT_S, EngineLink
from gateway.server import Gateway
from scheduler.messages import (
    Accepted,
    Applied,
    Closed,
    ControlInput,
    Credit,
    ErrorCode,
    Pause,
    PromptInput,
    SessionId,
    SessionRecord,
    SessionState,
    Stop,
    Subscribe,
    Unsubscribe,
    Unwatch,
    Watch,
)
from scheduler.store.values import PRIOR_RELEASE_INTERVAL_MS
from tests.cluster import until
from tests.gateway.gateway_fixtures import World, begin, client_of
from tests.gateway.scripted_engine import make_part
from tests.patience import PATIENCE_S, pass_time


@pytest.mark.parametrize("subprotocol", sorted(wire.CODECS))
async def test_a_session_from_start_to_stop(world: World, subprotocol: str) -> None:
    """Start, chunks in parts, prompt, ack, pause, stop and a second start, in both flavours."""
    async with world.engine() as engine, world.gateway() as gateway:
        async with client_of(gateway, subprotocol) as client:
            session = await begin(client, engine, id="first")
            id = SessionId(session.session)
            assert (session.model, session.width, session.fps, session.chunk_frames) == ("shapes", 96, 24, 12)

            await engine.say(Applied(session=id, epoch=1, rev=0, seq=0, id="first"))
            await engine.send_chunk(id, 0)
            assert await client.expect(wire.Applied) == wire.Applied(rev=0, seq=0, id="first")
            parts = [await client.expect(wire.ChunkHeader) for _ in range(2)]
            assert [(p.seq, p.part, p.parts, p.engine) for p in parts] == [
                (0, 0, 2, engine.id),
                (0, 1, 2, engine.id),
            ]

            await client.send(wire.Ack(seq=0, buffer_ms=480))
            credit = await engine.expect(Credit)
            assert isinstance(credit, Credit) and (credit.seq, credit.buffer_ms) == (0, 480.0)

            await client.send(wire.Prompt(text="a blue ball", id="p1"))
            assert (await client.expect(wire.Accepted)).id == "p1"
            log = (await world.store.read_inputs({id: "0-0"}))[id]
            assert [entry for _, entry in log] == [
                PromptInput(text="a red ball", id="first"),
                PromptInput(text="a blue ball", id="p1"),
            ]

            await client.send(wire.Pause(id="p2"))
            pause = await engine.expect(Pause)
            assert isinstance(pause, Pause) and pause.id == "p2"
            await engine.say(Accepted(session=id, id="p2"))
            assert (await client.expect(wire.Accepted)).id == "p2"

            await client.send(wire.Stop())
            await engine.expect(Stop)
            await engine.say(Closed(session=id, epoch=1, reason="stopped"))
            assert (await client.expect(wire.Closed)).reason == "stopped"
            again = await begin(client, engine)
            assert again.session != session.session


async def test_attach_continues_at_another_gateway(world: World) -> None:
    """After a lost connection the session goes on at a second gateway; the first connection gets 4409."""
    async with world.engine() as engine, world.gateway() as one, world.gateway() as two:
        async with client_of(one) as first, client_of(two) as second:
            session = await begin(first, engine)
            id = SessionId(session.session)
            await engine.send_chunk(id, 0)
            await world.store.publish_session(
                engine.id, id, 1, active=True, next_seq=1, next_frame=12, rev=0, slack_ms=0
            )
            attach = wire.Attach(session=id, resume=session.resume, next_seq=1, id="a")
            await second.send(attach)
            resumed = await second.expect(wire.Session)
            assert (resumed.session, resumed.resume) == (session.session, session.resume)
            assert await first.close_code() == 4409
            subscribe = await engine.accept(id)
            assert (subscribe.controller_epoch, subscribe.next_seq, subscribe.next_frame) == (2, 1, 12)
            state = await second.expect(wire.State, skip=(wire.Accepted,))
            assert state.state is SessionState.ACTIVE
            await engine.send_chunk(id, 1)
            assert (await second.expect(wire.ChunkHeader)).seq == 1


async def test_takeover_within_one_gateway(world: World) -> None:
    """A second connection of the same gateway takes the session; the first gets 4409 and no more chunks."""
    async with world.engine() as engine, world.gateway() as gateway:
        async with client_of(gateway) as first, client_of(gateway) as second:
            session = await begin(first, engine)
            id = SessionId(session.session)
            await second.send(wire.Attach(session=id, resume=session.resume, next_seq=0))
            await second.expect(wire.Session)
            assert await first.close_code() == 4409
            await engine.accept(id)
            await second.expect(wire.State)
            await engine.send_chunk(id, 0)
            assert (await second.expect(wire.ChunkHeader)).seq == 0


@pytest.mark.parametrize("resume", ["wrong", "x" * 64])
async def test_a_wrong_resume_token_closes_4404(world: World, resume: str) -> None:
    """An id alone grants nothing; the owner's connection does not notice."""
    async with world.engine() as engine, world.gateway() as gateway:
        async with client_of(gateway) as owner, client_of(gateway) as thief:
            session = await begin(owner, engine)
            await thief.send(wire.Attach(session=session.session, resume=resume, next_seq=0))
            assert (await thief.expect(wire.Error)).code is ErrorCode.NO_SUCH_SESSION
            assert await thief.close_code() == 4404
            await owner.send(wire.Ping(t=1))
            assert (await owner.expect(wire.Pong)).t == 1


async def test_the_stream_goes_on_with_a_new_owner(world: World) -> None:
    """After an engine is lost mid-chunk the next owner sends that chunk again whole: no gap, no repeat."""
    async with world.engine("e_00000001") as one, world.engine("e_00000002") as two:
        async with world.gateway() as gateway, client_of(gateway) as client:
            session = await begin(client, one)
            id = SessionId(session.session)
            await one.send_chunk(id, 0)
            await one.send_chunk(id, 1, upto=1)
            for _ in range(3):
                await client.expect(wire.ChunkHeader)
            await world.store.lose_engine(one.id, term=world.term, reason="engine_lost")
            await two.take(id, expect_epoch=2)
            subscribe = await two.accept(id)
            assert (subscribe.next_seq, subscribe.next_frame, subscribe.epoch) == (1, 12, 3)
            queued = await client.expect(wire.State)
            assert (queued.state, queued.reason) == (SessionState.QUEUED, "engine_lost")
            active = await client.expect(wire.State)
            assert (active.state, active.engine) == (SessionState.ACTIVE, two.id)
            await one.send_chunk(id, 2)  # the old owner still talks: nobody listens
            await two.send_chunk(id, 1)
            await two.send_chunk(id, 2)
            parts = [await client.expect(wire.ChunkHeader) for _ in range(4)]
            assert [(p.seq, p.part, p.engine) for p in parts] == [
                (1, 0, two.id),
                (1, 1, two.id),
                (2, 0, two.id),
                (2, 1, two.id),
            ]


async def test_requests_reach_the_engine_in_order(world: World) -> None:
    """Credits wait for one another, but nothing overtakes them."""
    async with world.engine() as engine, world.gateway() as gateway, client_of(gateway) as client:
        session = await begin(client, engine)
        await engine.send_chunk(SessionId(session.session), 0, parts=1)
        await client.expect(wire.ChunkHeader)
        await client.send(
            wire.Ack(seq=-1, buffer_ms=0),
            wire.Ack(seq=0, buffer_ms=500),
            wire.Pause(),
            wire.Ack(seq=0, buffer_ms=480),
        )
        kinds = (Credit, Credit, Pause, Credit)
        requests = [await engine.expect(kind) for kind in kinds]
        credits = [(r.seq, r.buffer_ms) for r in requests if isinstance(r, Credit)]
        assert credits == [(-1, 0.0), (0, 500.0), (0, 480.0)]


async def test_an_engine_that_sends_fragments_is_hung_up_on(world: World) -> None:
    """No engine of ours does; the link is made again."""
    async with world.engine() as engine, world.gateway() as gateway, client_of(gateway) as client:
        session = await begin(client, engine)
        await engine.links[-1].send(["{", "}"])
        assert (await engine.accept(SessionId(session.session))).next_seq == 0
        assert len(engine.links) == 2


async def test_who_fails_on_a_message_takes_nobody_along(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its socket ends; the link stays, and others get their video over it."""
    async with world.engine() as engine, world.gateway() as gateway:
        async with client_of(gateway) as one, client_of(gateway) as two:
            first, second = await begin(one, engine), await begin(two, engine)
            (broken,) = gateway.hub.of(SessionId(first.session))
            monkeypatch.setattr(broken.machine, "receive_chunk", lambda *_: {}["nothing"])
            await engine.send_chunk(SessionId(first.session), 0)
            await engine.send_chunk(SessionId(second.session), 0)
            assert (await two.expect(wire.ChunkHeader)).session == second.session
            await engine.expect(Unsubscribe)
            assert len(engine.links) == 1
            assert faults(gateway) == {"connection": 2}  # as many as the chunk has parts


@pytest.mark.parametrize("method", ["receive_event", "receive_position", "receive_events_lost"])
async def test_who_fails_on_news_takes_nobody_along(
    world: World, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """Its socket ends; whoever waits beside it hears that it is next."""
    async with world.engine(), world.gateway() as gateway:
        async with client_of(gateway) as one, client_of(gateway) as two:
            await one.send(wire.Start(prompt="1"))
            first = SessionId((await one.expect(wire.Session)).session)
            await one.expect(wire.Queued)
            await two.send(wire.Start(prompt="2"))
            await two.expect(wire.Session)
            assert (await two.expect(wire.Queued)).position == 2
            (broken,) = gateway.hub.of(first)
            monkeypatch.setattr(broken.machine, method, lambda *_: {}["nothing"])
            match method:
                case "receive_event":
                    await world.store.close_session(first, "stopped")
                case "receive_events_lost":
                    gateway._reader._after = "9999999999999-0"  # as if Redis had come back older
                case "receive_position":
                    gateway.hub.queue_changed()
            assert await one.close_code() is None
            assert (await two.expect(wire.Queued)).position == 1
            assert faults(gateway) == {"connection": 1}


async def test_who_fails_on_an_answer_is_cut(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would wait for ever."""
    async with world.engine(), world.gateway() as gateway, client_of(gateway) as client:
        await client.send(wire.Ping(t=1))
        await client.expect(wire.Pong)
        (broken,) = gateway.hub.connections
        monkeypatch.setattr(broken.machine, "receive_result", lambda *_: {}["nothing"])
        await client.send(wire.Start(prompt="1"))
        assert await client.close_code() is None
        assert faults(gateway) == {"connection": 1}


async def test_a_message_that_breaks_the_link_is_survived(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a fault of ours it is cut, and made again."""
    async with world.engine() as engine, world.gateway() as gateway, client_of(gateway) as client:
        id = SessionId((await begin(client, engine)).session)
        with monkeypatch.context() as patch:
            patch.setattr("gateway.link.unframe_media", lambda *_: {}["nothing"])
            await engine.send_chunk(id, 0)
            await engine.accept(id)
        assert faults(gateway)["link"] >= 1
        await engine.send_chunk(id, 0)
        await client.expect(wire.ChunkHeader)


async def test_a_background_task_that_fails_begins_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody would be told a position any more."""
    tell, fails = QueueWatcher._tell_positions, iter([True])

    async def failing(watcher: QueueWatcher) -> None:
        if next(fails, False):
            raise RuntimeError("a fault in a test")
        await tell(watcher)

    monkeypatch.setattr(QueueWatcher, "_tell_positions", failing)
    async with world.engine(), world.gateway() as gateway, client_of(gateway) as client:
        await client.send(wire.Start(prompt="1"))
        await client.expect(wire.Session)
        assert (await client.expect(wire.Queued, skip=())).position == 1
        assert faults(gateway) == {"task": 1}


def faults(gateway: Gateway) -> dict[str, float]:
    """Errors of the gateway's own that it survived, by where they were."""
    samples = gateway.hub.metrics.registry.collect()
    return {
        sample.labels["where"]: sample.value
        for family in samples
        for sample in family.samples
        if sample.name == "turboserve_gateway_faults_total"
    }


async def test_a_link_that_fails_is_made_again_while_it_is_followed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also for a reason that nobody has thought of: who follows waits for nothing else."""
    monkeypatch.setattr("gateway.relay.RETRY_S", 0.01)
    serve_once, fails = EngineLink._serve_once, iter([True])

    async def failing(link: EngineLink, url: str) -> bool:
        if next(fails, False):
            raise RuntimeError("a fault in a test")
        return await serve_once(link, url)

    monkeypatch.setattr(EngineLink, "_serve_once", failing)
    async with world.engine() as engine, world.gateway() as gateway, client_of(gateway) as client:
        await begin(client, engine)


async def test_a_cut_link_is_made_again(world: World) -> None:
    """When only the link breaks, the gateway connects and subscribes again from its next chunk."""
    async with world.engine() as engine, world.gateway() as gateway, client_of(gateway) as client:
        session = await begin(client, engine)
        id = SessionId(session.session)
        await engine.send_chunk(id, 0)
        await client.expect(wire.ChunkHeader)
        await client.expect(wire.ChunkHeader)
        await engine.cut()
        assert (await engine.accept(id)).next_seq == 1
        await engine.send_chunk(id, 1)
        assert (await client.expect(wire.ChunkHeader)).seq == 1


async def test_a_disconnect_starts_linger(world: World) -> None:
    """The engine sees Unsubscribe and Redis that nobody controls the session."""
    async with world.engine() as engine, world.gateway() as gateway:
        async with client_of(gateway) as client:
            session = await begin(client, engine)
        await engine.expect(Unsubscribe)
        await gateway.hub.forgetter.drained()
        record = await world.store.get_session(SessionId(session.session))
        assert record is not None and record.gateway is None


async def test_queue_positions_and_a_full_queue(world: World) -> None:
    """Waiting clients hear their position and its changes; beyond queue_limit: error capacity and 4503."""
    async with world.engine() as engine, world.gateway(queue_limit=2) as gateway:
        async with client_of(gateway) as one, client_of(gateway) as two, client_of(gateway) as three:
            await one.send(wire.Start(prompt="1"))
            first = await one.expect(wire.Session)
            assert (await one.expect(wire.Queued)).position == 1
            await two.send(wire.Start(prompt="2"))
            await two.expect(wire.Session)
            assert (await two.expect(wire.Queued)).position == 2
            await three.send(wire.Start(prompt="3", id="x"))
            refused = await three.expect(wire.Error)
            assert (refused.code, refused.id) == (ErrorCode.CAPACITY, "x")
            assert refused.retry_after_ms is not None and refused.retry_after_ms > 0
            assert await three.close_code() == 4503
            await engine.take(SessionId(first.session))
            assert (await two.expect(wire.Queued)).position == 1


async def test_a_waiting_client_hears_that_its_wait_has_changed(world: World) -> None:
    """Also when nobody comes or goes."""
    async with world.engine(), world.gateway() as gateway, client_of(gateway) as client:
        await client.send(wire.Start(prompt="1"))
        await client.expect(wire.Session)
        assert (await client.expect(wire.Queued)).eta_ms == PRIOR_RELEASE_INTERVAL_MS
        changed_ms = 3 * PRIOR_RELEASE_INTERVAL_MS
        await world.store.publish_cluster(
            world.term, policy="slack", budget=1, release_interval_ms=changed_ms, start_ms=1
        )
        assert await client.expect(wire.Queued, skip=()) == wire.Queued(position=1, eta_ms=changed_ms)


async def test_who_leaves_the_queue_makes_room_until_coming_back(world: World) -> None:
    """A waiting client hears at once that the one before it left, and that it returned to its old place."""
    async with world.engine(), world.gateway() as gateway:
        async with client_of(gateway) as two, client_of(gateway) as again:
            async with client_of(gateway) as one:
                await one.send(wire.Start(prompt="1"))
                first = await one.expect(wire.Session)
                assert (await one.expect(wire.Queued)).position == 1
                await two.send(wire.Start(prompt="2"))
                await two.expect(wire.Session)
                assert (await two.expect(wire.Queued)).position == 2
            assert (await two.expect(wire.Queued)).position == 1
            await again.send(wire.Attach(session=first.session, resume=first.resume, next_seq=0))
            await again.expect(wire.Session)
            assert json.loads(await again.ws.recv()) == {
                "type": "state",
                "state": "queued",
                "engine": None,
                "reason": "",
            }
            assert (await two.expect(wire.Queued)).position == 2


async def test_stop_while_queued(world: World) -> None:
    """A queued session is closed in Redis, and the connection may start again."""
    async with world.engine(), world.gateway() as gateway, client_of(gateway) as client:
        await client.send(wire.Start(prompt="1"), wire.Stop(id="s"), wire.Start(prompt="2"))
        first = await client.expect(wire.Session)
        assert (await client.expect(wire.Accepted)).id == "s"
        await client.expect(wire.Closed)
        second = await client.expect(wire.Session)
        records = await world.store.list_sessions()
        assert [r.id for r in records] == [second.session] != [first.session]


async def test_controls_are_merged_and_logged(world: World) -> None:
    """A burst of controls becomes few log entries and every key press is among them."""
    async with world.engine() as engine, world.gateway() as gateway, client_of(gateway) as client:
        session = await begin(client, engine)
        id = SessionId(session.session)
        presses = [wire.Control(keys=(f"k{n}",), id=f"c{n}") for n in range(8)]
        await client.send(*presses, wire.Control(id="last"))
        accepted = [(await client.expect(wire.Accepted)).id for _ in range(9)]
        assert set(accepted) == {f"c{n}" for n in range(8)} | {"last"}
        log = [entry for _, entry in (await world.store.read_inputs({id: "0-0"}))[id]]
        controls = [entry for entry in log if isinstance(entry, ControlInput)]
        assert len(controls) < 9
        assert {key for entry in controls for key in entry.keys} == {f"k{n}" for n in range(8)}


BAD_FRAMES = {
    "wrong type": ('{"type":"prompt","text":5}', ErrorCode.BAD_MESSAGE),
    "unknown message": ('{"type":"dance"}', ErrorCode.UNKNOWN_TYPE),
    "oversize prompt": ('{"type":"prompt","text":"%s"}' % ("x" * 2001), ErrorCode.TOO_LARGE),
    "binary garbage": (b"\x00\xff\x13garbage", ErrorCode.BAD_MESSAGE),
    "not JSON": ("{", ErrorCode.BAD_MESSAGE),
}


@pytest.mark.parametrize("name", sorted(BAD_FRAMES))
async def test_bad_input_is_answered_and_harms_nobody(world: World, name: str) -> None:
    """Each bad frame gets its error; the session lives on and another one does not notice."""
    frame, code = BAD_FRAMES[name]
    async with world.engine() as engine, world.gateway() as gateway:
        async with client_of(gateway) as bad, client_of(gateway) as good:
            await begin(good, engine)
            session = await begin(bad, engine)
            await bad.ws.send(frame)
            assert (await bad.expect(wire.Error)).code is code
            await engine.send_chunk(SessionId(session.session), 0)
            assert (await bad.expect(wire.ChunkHeader)).seq == 0
            await good.send(wire.Ping(t=7))
            assert (await good.expect(wire.Pong)).t == 7


async def test_three_bad_messages_close_4400_and_the_session_lingers(world: World) -> None:
    """The third bad message in a row closes; the session can be attached to."""
    async with world.engine() as engine, world.gateway() as gateway:
        async with client_of(gateway) as client:
            session = await begin(client, engine)
            for _ in range(3):
                await client.ws.send("{")
            assert await client.close_code() == 4400
        await engine.expect(Unsubscribe)
        async with client_of(gateway) as client:
            await client.send(wire.Attach(session=session.session, resume=session.resume, next_seq=0))
            await client.expect(wire.Session)


async def test_an_oversize_message_closes_1009(world: World) -> None:
    """Beyond 64 KiB there is no error, only the close."""
    async with world.gateway() as gateway, client_of(gateway) as client:
        await client.ws.send("x" * (wire.MAX_CLIENT_MESSAGE_BYTES + 1))
        assert await client.close_code() == 1009


async def test_half_a_frame_and_silence_harm_nobody(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections that send half a frame or nothing at all are dropped; a session runs on beside them."""
    async with world.engine() as engine, world.gateway(start_timeout_s=15.0) as gateway:
        async with client_of(gateway) as client:
            session = await begin(client, engine)
            port = int(gateway.url.rsplit(":", 1)[1])
            silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(100)]
            async with client_of(gateway) as broken:
                broken.ws.transport.write(b"\x81\xfe\x10")
                broken.ws.transport.abort()
            await until(lambda: len(gateway.listener.connections) == 1 + len(silent))
            pass_time(monkeypatch, 16)
            await engine.send_chunk(SessionId(session.session), 0)
            assert (await client.expect(wire.ChunkHeader)).seq == 0
            for reader, writer in silent:
                assert await reader.read() == b""
                writer.close()


async def test_a_foreign_origin_closes_4403(world: World) -> None:
    """A page of another site is told so by the close code."""
    async with world.gateway() as gateway:
        async with client_of(gateway, origin="https://evil.example") as client:
            assert await client.close_code() == 4403
        async with client_of(gateway, origin=gateway.url) as client:
            await client.send(wire.Ping(t=1))
            assert (await client.expect(wire.Pong)).t == 1


async def test_a_stopping_gateway_closes_1012_and_another_serves_attach(world: World) -> None:
    """Clients of a stopping gateway attach to the next one and continue."""
    async with world.engine() as engine, world.gateway() as two:
        async with world.gateway() as one:
            async with client_of(one) as client:
                session = await begin(client, engine)
                stopping = asyncio.create_task(one.close())
                assert await client.close_code() == 1012
                await stopping
        await engine.expect(Unsubscribe)
        async with client_of(two) as client:
            await client.send(wire.Attach(session=session.session, resume=session.resume, next_seq=0))
            await client.expect(wire.Session)
            assert isinstance(await engine.expect(Subscribe), Subscribe)


async def test_a_slow_controller_is_cut_off_and_lingers(world: World) -> None:
    """A client that takes nothing is aborted after send_timeout_s; its session lingers."""
    async with world.engine() as engine, world.gateway(send_timeout_s=0.3) as gateway:
        async with client_of(gateway, max_queue=1) as client:
            session = await begin(client, engine)
            id = SessionId(session.session)
            for seq in range(200):
                part = make_part(id, 1, seq)
                await engine.send_part(replace(part, frames=1, sizes=(100_000,)))
            await engine.expect(Unsubscribe)
            with pytest.raises(ConnectionClosed):
                while True:
                    await client.ws.recv()


async def test_long_messages_beyond_the_rate_are_refused(world: World) -> None:
    """The largest that there may be are few at once, whatever they say."""
    async with world.gateway() as gateway, client_of(gateway) as client:
        message = json.dumps({"type": "ping", "t": 1, **{f"unknown {n}": 0 for n in range(3_000)}})
        for _ in range(100):
            await client.ws.send(message)
        answers = [await client.recv()]
        while not isinstance(answers[-1], wire.Error):
            answers.append(await client.recv())
        assert answers[-1].code is ErrorCode.RATE and 3 <= len(answers) < 50


async def test_who_has_no_session_for_long_is_sent_away(world: World) -> None:
    """A ping keeps nobody's place; who controls a session or watches one stays, until it has ended."""
    async with world.engine() as engine, world.gateway(no_session_timeout_s=0.3) as gateway:
        async with client_of(gateway) as controller, client_of(gateway) as viewer:
            id = SessionId((await begin(controller, engine)).session)
            await viewer.send(wire.Watch(session=id))
            await engine.expect(Watch)
            async with client_of(gateway) as client:
                await client.send(wire.Ping(t=1))
                assert (await client.expect(wire.Pong)).t == 1
                assert await client.close_code() == wire.CloseCode.IDLE
            for client in (controller, viewer):
                await client.send(wire.Ping(t=2))
                await client.expect(wire.Pong, skip=(wire.Session, wire.State))
            await world.store.close_session(id, "stopped")
            for client in (controller, viewer):
                await client.expect(wire.Closed)
                assert await client.close_code() == wire.CloseCode.IDLE


async def test_who_fails_when_it_leaves_is_forgotten(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the registry nor the link holds it any longer."""
    async with world.engine() as engine, world.gateway() as gateway:
        async with client_of(gateway) as client:
            id = SessionId((await begin(client, engine)).session)
            (broken,) = gateway.hub.of(id)
            failing = asyncio.Event()

            def fail() -> None:
                failing.set()
                raise KeyError

            monkeypatch.setattr(broken.machine, "receive_disconnect", fail)
        await asyncio.wait_for(failing.wait(), PATIENCE_S)
        assert faults(gateway) == {"connection": 1}
        assert gateway.hub.of(id) == () and broken not in gateway.hub.connections
        assert not gateway.hub.relay._links[engine.id].is_used()


async def test_who_only_asks_to_watch_keeps_no_stream(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last who watched leaves: the engine hears it, although somebody else is still being looked at."""
    async with world.engine() as engine, world.gateway() as gateway, client_of(gateway) as controller:
        id = SessionId((await begin(controller, engine)).session)
        async with client_of(gateway) as viewer, client_of(gateway) as asker:
            await viewer.send(wire.Watch(session=id))
            await engine.expect(Watch)
            get_session, allowed = gateway.hub.store.get_session, asyncio.Event()

            async def get_late(session: SessionId) -> SessionRecord | None:
                await allowed.wait()
                return await get_session(session)

            monkeypatch.setattr(gateway.hub.store, "get_session", get_late)
            await asker.send(wire.Watch(session=id), wire.Ping(t=1))
            await asker.expect(wire.Pong)
            await viewer.send(wire.Stop())
            await engine.expect(Unwatch)
            allowed.set()
            await engine.expect(Watch)


async def test_a_silent_link_is_made_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its engine's machine is gone without a word: it answers neither a ping nor the close."""
    monkeypatch.setattr("gateway.link.PING_INTERVAL_S", 0.1)
    async with world.engine() as engine, world.gateway() as gateway, client_of(gateway) as client:
        id = SessionId((await begin(client, engine)).session)
        engine.links[-1].transport.pause_reading()
        connection = gateway.hub.relay._links[engine.id]._connection
        assert connection is not None
        await until(lambda: bool(connection.pending_pings))
        pass_time(monkeypatch, PING_TIMEOUT_S + 1)
        await engine.accept(id)
        assert len(engine.links) == 2
        engine.links[0].transport.abort()
