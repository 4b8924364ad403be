"""Recordings over HTTP: real gateways, a real Redis, real H.264."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from gateway import protocol as wire
from gateway.auth import Identity, Scope, mint_token
from gateway.recorder import MAX_DOWNLOADS, MAX_DOWNLOADS_EACH, MAX_WAITING_BYTES, Download, Recorder
from gateway.segments import SegmentWriter
from gateway.server import Gateway
from scheduler.keys import CLOSED_TTL_S
from scheduler.messages import SessionId, Unsubscribe, encode_json, frame_media
from tests.browser.stream_server import CHUNK_FRAMES, FPS, Encoder
from tests.gateway.gateway_fixtures import Client, World, begin, client_of
from tests.gateway.scripted_engine import ScriptedEngine, make_part
from tests.gateway.test_client_chunks import encode
from tests.gateway.test_routes import ask
from tests.gateway.test_segments import duration_s, numbers_in

SECRET = "s" * 32
UNSERVED = SessionId("s_0123456789abcdef")


def header_of(seq: int, num_bytes: int) -> wire.ChunkHeader:
    return wire.ChunkHeader(
        session=UNSERVED,
        seq=seq,
        part=0,
        parts=1,
        key=True,
        frames=1,
        sizes=(num_bytes,),
        pts_ms=float(seq),
        duration_ms=1.0,
        codec="h264",
        rev=0,
        engine="e_1",
    )


async def send(engine: ScriptedEngine, session: str, seqs: Sequence[int], encoder: Encoder) -> None:
    """Real chunks, numbered in their pictures."""
    for seq in seqs:
        units = encode(seq, encoder=encoder)
        header = make_part(SessionId(session), engine.epochs[SessionId(session)], seq)
        fields = {"sizes": tuple(map(len, units)), "pts_ms": 750.0 * seq, "duration_ms": 750.0}
        header = type(header)(**{name: getattr(header, name) for name in header.__slots__} | fields)
        await engine.links[-1].send(frame_media(encode_json(header), b"".join(units)))


async def receive(client: Client, seqs: Sequence[int]) -> None:
    for seq in seqs:
        assert (await client.expect(wire.ChunkHeader, skip=(wire.State, wire.Accepted))).seq == seq


async def fetch(gateway: Gateway, session: str, bearer: str | None) -> tuple[int, dict[str, str], bytes]:
    headers = {} if bearer is None else {"authorization": f"Bearer {bearer}"}
    return await ask(gateway, f"/v1/sessions/{session}/recording.mp4", **headers)


def token(subject: str, *scopes: Scope, session: str | None = None) -> str:
    identity = Identity(subject=subject, scopes=frozenset(scopes), session=session)
    return mint_token(identity, SECRET, now_s=time.time(), ttl_s=60)


async def take_download(recorder: Recorder, session: SessionId, owner: str) -> Download:
    """One under way, as long as it is kept, of a file that nobody makes: that takes a process."""

    async def make_nothing(download: Download) -> None:
        download.length = 1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Download, "make", make_nothing)
        download = await recorder.open(session, owner)
    assert download is not None
    return download


def names(folder: str | Path) -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


async def written(gateway: Gateway) -> None:
    """Until the chunks that were sent lie on disk."""
    assert gateway.hub.recorder is not None
    await gateway.hub.recorder.written()


async def test_recording_survives_moves_and_gateways(world: World, tmp_path: Path) -> None:
    """Fetched while it runs and after its end, from a gateway that never served it: every frame that its
    client was sent, once, though the session changed its engine and its client the gateway."""
    out, folder = tmp_path / "out.mp4", str(tmp_path / "recordings")
    async with (
        world.engine("e_00000001") as first,
        world.engine("e_00000002") as second,
        world.gateway(recordings=folder) as here,
        world.gateway(recordings=folder) as there,
    ):
        async with client_of(here) as client:
            session = await begin(client, first)
            id = SessionId(session.session)
            assert (await fetch(there, id, None))[0] == 409, "allowed without authentication, but nothing yet"
            await send(first, id, (0, 1), Encoder())
            await receive(client, (0, 1))
            epoch = first.epochs[id]
            await world.store.requeue_session(id, expect_epoch=epoch, term=world.term, reason="moved")
            await second.take(id, epoch + 1)
            await second.accept(id)
            encoder = Encoder()
            await send(second, id, (2, 3), encoder)
            await receive(client, (2, 3))
            await written(here)  # the other gateway knows nothing of it
        status, headers, body = await fetch(there, id, session.resume)
        assert status == 200 and headers["content-type"] == "video/mp4"
        assert headers["content-disposition"] == f'attachment; filename="{id}.mp4"'
        out.write_bytes(body)
        assert numbers_in(out) == [(n, n) for n in range(4 * CHUNK_FRAMES)]

        async with client_of(there) as client:  # the newest chunk was lost on its way
            await client.send(wire.Attach(session=id, resume=session.resume, next_seq=3))
            await client.expect(wire.Session)
            await second.expect(Unsubscribe)
            await second.accept(id)
            await send(second, id, (3, 4), encoder)
            await receive(client, (3, 4))
            await written(there)
        await world.store.close_session(id, "stopped")
        out.write_bytes((await fetch(here, id, session.resume))[2])
        assert numbers_in(out) == [(n, n) for n in range(5 * CHUNK_FRAMES)]
        assert duration_s(out) == pytest.approx(5 * CHUNK_FRAMES / FPS, abs=0.01)
        assert names(folder) == [id]


async def test_who_may_have_it(world: World, tmp_path: Path) -> None:
    """The session's own key, or a token that may see it; an id alone grants nothing."""
    settings = {"recordings": str(tmp_path), "auth": "token", "token_secrets": (SECRET,)}
    bearer = [f"turboserve.token.{token('alice', Scope.CONTROL)}"]
    async with world.engine() as engine, world.gateway(**settings) as gateway:
        async with client_of(gateway, extra_subprotocols=bearer) as client:
            session = await begin(client, engine)
            id = session.session
        allowed = (
            session.resume,
            token("alice", Scope.CONTROL),
            token("alice", Scope.VIEW),
            token("a friend", Scope.VIEW, session=id),
            token("operator", Scope.VIEW, Scope.ADMIN),
        )
        for each in allowed:  # there is no chunk yet
            assert (await fetch(gateway, id, each))[0] == 409
        assert (await fetch(gateway, id, None))[0] == 401
        assert (await fetch(gateway, id, session.resume[:-1]))[0] == 401
        refused = (
            token("bob", Scope.CONTROL, Scope.VIEW),
            token("alice", Scope.VIEW, session="s_0123456789abcdef"),
            token("alice", Scope.CONTROL, session=id),
            token("operator", Scope.ADMIN),
        )
        for each in refused:
            assert (await fetch(gateway, id, each))[0] == 403
        assert (await fetch(gateway, "s_0123456789abcdef", token("alice", Scope.VIEW)))[0] == 404


async def test_gateway_without_recordings_says_so(world: World, tmp_path: Path) -> None:
    """Nothing is written, and the answer names the setting."""
    for settings in ({}, {"recordings": str(tmp_path / "none"), "recording_mib": 0}):
        async with world.gateway(**settings) as gateway:
            status, _, body = await fetch(gateway, "s_0123456789abcdef", None)
            assert status == 404 and b"recordings" in body
    assert names(tmp_path) == []


async def test_a_full_disk_is_no_fault_of_the_gateway(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no room for the file of a download: later there may be."""
    full = tmp_path / ".download-full.mp4"
    full.symlink_to("/dev/full")
    monkeypatch.setattr("gateway.recorder.download_path", lambda _folder: full)
    async with world.engine() as engine, world.gateway(recordings=str(tmp_path / "all")) as gateway:
        async with client_of(gateway) as client:
            session = await begin(client, engine)
            await send(engine, session.session, (0,), Encoder())
            await receive(client, (0,))
            await written(gateway)
        status, headers, body = await fetch(gateway, session.session, session.resume)
        assert status == 503 and headers["retry-after"] and b'"unavailable"' in body
        assert b"turboserve_gateway_faults_total{" not in (await ask(gateway, "/metrics"))[2]


async def test_sweep_forgets_with_redis(world: World, tmp_path: Path) -> None:
    """A recording stays as long as its session is known, however long it rests, and for a while after its
    end; not while Redis may have lost its data."""
    async with world.engine() as engine, world.gateway(recordings=str(tmp_path)) as gateway:
        recorder = gateway.hub.recorder
        assert recorder is not None
        async with client_of(gateway) as client:
            session = await begin(client, engine)
            await send(engine, session.session, (0,), Encoder())
            await receive(client, (0,))
            await written(gateway)
        later_s = time.time() + 10_000
        unknown = tmp_path / "s_0123456789abcdef"
        unknown.mkdir()
        await world.store.raise_term(world.term + 1)  # as a provisioner does that has outlived Redis's data
        await recorder.sweep(later_s)
        assert names(tmp_path) == ["s_0123456789abcdef", session.session]
        await world.store.mark_new()
        await recorder.sweep(later_s)
        assert names(tmp_path) == [session.session]
        await world.store.close_session(SessionId(session.session), "stopped")
        await recorder.sweep(later_s)
        assert names(tmp_path) == [session.session], "for a while it may still be fetched"
        redis, key = world.store._redis.client, f"{world.store.prefix}session:{session.session}"
        assert 0 < await redis.ttl(key) <= CLOSED_TTL_S
        await redis.pexpire(key, 0)  # the time has passed
        await recorder.sweep(later_s)
        assert names(tmp_path) == []


async def test_slow_disk_costs_video_not_memory(world: World, tmp_path: Path) -> None:
    """What waits for the disk is bounded: beyond it chunks are left out, and counted."""
    async with world.gateway(recordings=str(tmp_path)) as gateway:
        recorder = gateway.hub.recorder
        assert recorder is not None
        take = recorder.begin(UNSERVED)
        take.add(header_of(0, MAX_WAITING_BYTES + 1), memoryview(bytes(MAX_WAITING_BYTES + 1)))
        await written(gateway)
        _, _, page = await ask(gateway, "/metrics")
        assert b"turboserve_gateway_recording_dropped_chunks_total 1.0" in page
        assert names(tmp_path) == []


async def test_a_download_has_what_still_waits_for_the_disk(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever asks has been sent it. Its file is begun once the disk has it."""
    begun, is_free = asyncio.Event(), threading.Event()
    write = SegmentWriter.append

    def append(writer: SegmentWriter, parts: list[tuple[wire.ChunkHeader, bytes]]) -> int:
        is_free.wait()
        return write(writer, parts)

    async def make(download: Download) -> None:
        begun.set()
        download.length = len(names(tmp_path / UNSERVED))

    monkeypatch.setattr(SegmentWriter, "append", append)
    monkeypatch.setattr(Download, "make", make)
    async with world.gateway(recordings=str(tmp_path)) as gateway:
        recorder = gateway.hub.recorder
        assert recorder is not None
        try:
            recorder.begin(UNSERVED).add(header_of(0, 1000), bytes(1000))
            opening = asyncio.create_task(recorder.open(UNSERVED, "alice"))
            for _ in range(5):
                await asyncio.sleep(0)
            assert not begun.is_set()
        finally:
            is_free.set()
        download = await opening
        assert download is not None and download.length == 1


async def test_who_attaches_again_and_again_writes_nothing(world: World, tmp_path: Path) -> None:
    """A chunk that is sent again lies on disk already, whichever connection gets it; a new one is added."""
    async with world.gateway(recordings=str(tmp_path)) as gateway:
        recorder = gateway.hub.recorder
        assert recorder is not None
        for _ in range(100):
            recorder.begin(UNSERVED).add(header_of(0, 1000), bytes(1000))
        await written(gateway)
        (segment,) = (tmp_path / UNSERVED).iterdir()
        size = segment.stat().st_size
        assert 1000 < size < 2000
        recorder.begin(UNSERVED).add(header_of(1, 1000), bytes(1000))
        await written(gateway)
        assert list((tmp_path / UNSERVED).iterdir()) == [segment] and segment.stat().st_size > size + 1000


async def test_who_attaches_to_nothing_is_not_remembered(world: World, tmp_path: Path) -> None:
    """Anybody can make up ids: they would push out what is known of sessions that are recorded."""
    async with world.engine() as engine, world.gateway(recordings=str(tmp_path)) as gateway:
        recorder = gateway.hub.recorder
        assert recorder is not None
        async with client_of(gateway) as client:
            session = await begin(client, engine)
            await send(engine, session.session, (0,), Encoder())
            await receive(client, (0,))
            async with client_of(gateway) as stranger:
                await stranger.send(wire.Attach(session=UNSERVED, resume="x", next_seq=0))
                assert await stranger.close_code() == wire.CloseCode.NO_SUCH_SESSION
            assert list(recorder._writers) == [session.session]


async def test_downloads_of_one_leave_places_to_others(world: World, tmp_path: Path) -> None:
    """A session's slow readers, or those of a subject's sessions together, hold two of the eight places."""
    settings = {"recordings": str(tmp_path), "auth": "token", "token_secrets": (SECRET,)}
    async with world.engine() as engine, world.gateway(**settings) as gateway:
        recorder = gateway.hub.recorder
        assert recorder is not None
        sessions = []
        for subject in ("alice", "alice", "bob"):
            bearer = [f"turboserve.token.{token(subject, Scope.CONTROL)}"]
            async with client_of(gateway, extra_subprotocols=bearer) as client:
                sessions.append(await begin(client, engine))
                await send(engine, sessions[-1].session, (0,), Encoder())
                await receive(client, (0,))
            await engine.expect(Unsubscribe)
        await written(gateway)
        first, second, other = (SessionId(session.session) for session in sessions)
        held = [await take_download(recorder, id, "alice") for id in (first, second)]
        for session in sessions[:2]:
            status, headers, _ = await fetch(gateway, session.session, session.resume)
            assert status == 503 and headers["retry-after"]
        assert (await fetch(gateway, other, sessions[2].resume))[0] == 200
        held += [await take_download(recorder, first, name) for name in "abcdef"]
        assert len(held) == MAX_DOWNLOADS
        assert (await fetch(gateway, other, sessions[2].resume))[0] == 503
        del held[MAX_DOWNLOADS_EACH - 1 :]
        assert (await fetch(gateway, second, sessions[1].resume))[0] == 200
