"""Coming back to a session, and being replaced, as DESIGN section 4 promises it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools

import pytest
from websockets.exceptions import ConnectionClosed

from tests.cluster import Cluster
from tests.conformance.raw import wire

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]

REPLAY_CHUNKS = 16


async def test_a_late_attach_is_told_the_gap(cluster: Cluster) -> None:
    """`session` with the same token, `state`, `gap` up to the replay window, then chunks."""
    async with wire(cluster.url) as older, wire(cluster.url, "msgpack") as newer:
        session = await older.start(seed=1)
        await older.chunk(REPLAY_CHUNKS + 4)
        assert await newer.attach(session, 1) == session
        gap = await newer.message("gap")
        first = await newer.chunk(gap["to_seq"] + 1)
        assert gap["from_seq"] == 1 and gap["to_seq"] >= 4
        assert first.pts_ms == older.chunks[first.seq].pts_ms
        state = newer.log.index(await newer.message("state"))  # another one comes if it is moved
        assert newer.order("session") < state < newer.order("gap") < newer.order_of_chunk(first.seq)
        await newer.chunk(max(older.chunks) + 2)
        newer.check_stream(fps=session["fps"], first_seq=first.seq)
        assert await older.close_code() == 4409


@pytest.mark.parametrize("resume", ["nonsense", ""])
async def test_a_wrong_token_closes_4404(cluster: Cluster, resume: str) -> None:
    """The id alone grants nothing, and the session's controller notices nothing."""
    async with wire(cluster.url) as owner, wire(cluster.url) as thief:
        session = await owner.start(seed=1)
        await owner.chunk(0)
        await thief.send("attach", session=session["session"], resume=resume or "x", next_seq=0, id="a")
        assert await thief.close_code() == 4404
        assert [(m["code"], m["id"]) for m in thief.messages("error")] == [("no_such_session", "a")]
        await owner.chunk(max(owner.chunks) + 2)


async def test_a_stopped_session_cannot_be_attached(cluster: Cluster) -> None:
    """Its connection may start again; an attach is closed with 4404."""
    async with wire(cluster.url) as owner, wire(cluster.url) as late:
        session = await owner.start(seed=1)
        await owner.chunk(0)
        await owner.send("stop")
        await owner.message("closed", reason="stopped")
        again = await owner.start(seed=1)
        assert again["session"] != session["session"]
        await owner.message("applied", after=owner.order("closed"), rev=0, seq=0)
        await late.send("attach", session=session["session"], resume=session["resume"], next_seq=1)
        assert await late.close_code() == 4404


async def test_a_repeated_pause_has_no_second_effect_after_an_attach(cluster: Cluster) -> None:
    """A client that does not know whether its old pause arrived may repeat it: the resume since counts."""
    async with wire(cluster.url) as first, wire(cluster.url) as second:
        session = await first.start(seed=1)
        await first.chunk(0)
        await first.send("pause", id="p")
        await first.message("accepted", id="p")
        await first.send("resume", id="r")
        await first.message("accepted", id="r")
        await second.attach(session, 1)
        await second.send("pause", id="p")
        await second.message("accepted", id="p")
        await second.chunk(max([*first.chunks, *second.chunks]) + 3)
        assert {m["state"] for m in second.messages("state")} == {"active"}


async def test_an_attach_of_the_future_is_an_error(cluster: Cluster) -> None:
    """The session's connection notices nothing; the other may attach where the session is."""
    async with wire(cluster.url) as owner, wire(cluster.url) as heir:
        session = await owner.start(seed=1)
        await owner.chunk(1)
        owner.recording = False  # so that it gets eight more, and none leaves what is kept for the other
        resume = session["resume"]
        await heir.send("attach", session=session["session"], resume=resume, next_seq=1000, id="a")
        await heir.message("error", code="bad_state", id="a")
        await owner.chunk(max(owner.chunks) + 2)
        await heir.attach(session, 1, id="b")
        await heir.chunk(3)
        heir.check_stream(fps=session["fps"], first_seq=1)


async def test_no_gap_and_no_repeat_around_disconnects(cluster: Cluster) -> None:
    """Eight connections one after the other, half of them cut off: each goes on with the next chunk."""
    async with wire(cluster.url) as first:
        session = await first.start(seed=1)
        await first.chunk(1)
        first.lingers = True
        await first.socket.close()
    next_seq = max(first.chunks) + 1
    for number in range(8):
        async with wire(cluster.url) as client:
            await client.attach(session, next_seq)
            await client.chunk(next_seq + number % 3)
            client.check_stream(fps=session["fps"], first_seq=next_seq)
            assert not client.messages("gap")
            next_seq = max(client.chunks) + 1
            client.lingers = number < 7
            if number in (1, 3, 5):
                client.socket.transport.abort()


async def test_a_client_that_never_acks_gets_eight_chunks(cluster: Cluster) -> None:
    """An ack with an empty buffer brings more; one of the future is an error."""
    async with wire(cluster.url) as client:
        await client.start(seed=1, recording=False, lead_ms=10000)
        await client.chunk(7)
        await client.send("ack", seq=99, buffer_ms=0, id="x")
        await client.message("error", code="bad_state", id="x")
        assert max(client.chunks) == 7
        await client.send("ack", seq=7, buffer_ms=0)
        await client.chunk(8)


async def test_limits(cluster: Cluster) -> None:
    """A flood is told and closed 4429; a message over 64 KiB closes 1009 without an error."""
    async with wire(cluster.url) as flood, wire(cluster.url) as large:
        with contextlib.suppress(ConnectionClosed):
            for number in itertools.count():  # until it is closed: while this stands still, more are allowed
                await flood.socket.send(f'{{"type":"ping","t":{number}}}')
                await asyncio.sleep(0)
        assert await flood.close_code() == 4429
        assert {m["code"] for m in flood.messages("error")} == {"rate"}
        await large.socket.send('{"type":"start","prompt":"%s"}' % ("x" * 70_000))
        assert await large.close_code() == 1009
        assert not large.messages("error")
