"""What the protocol promises of a session's messages and end, looked at from the next connection."""

from __future__ import annotations

import pytest

from tests.cluster import Cluster
from tests.conformance.raw import wire

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]


async def test_who_hears_of_the_end_finds_the_session_closed(cluster: Cluster) -> None:
    """An attach or a watch right after `closed` is told so at once: 4404, and no `session` before."""
    for what, fields in (("attach", {"next_seq": 0}), ("watch", {})):
        async with wire(cluster.url) as owner, wire(cluster.url) as late:
            session = await owner.start(seed=1)
            await owner.chunk(0)
            await owner.send("stop")
            await owner.message("closed", reason="stopped")
            resume = {"resume": session["resume"]} if what == "attach" else {}
            await late.send(what, session=session["session"], **resume, **fields)
            assert await late.close_code() == 4404
            assert [m["code"] for m in late.messages("error")] == ["no_such_session"]
            assert not late.messages("session")


async def test_repeated_controls_get_their_answers_after_an_attach(cluster: Cluster) -> None:
    """Sent in one go they are merged with nothing, a new one among them neither."""
    async with wire(cluster.url) as first, wire(cluster.url) as second:
        session = await first.start(seed=1)
        await first.chunk(0)
        ids = [f"c{number}" for number in range(5)]
        for number, id in enumerate(ids):
            await first.send("control", keys=["ArrowLeft"] if number % 2 else [], id=id)
        told = {id: await first.message("applied", id=id) for id in ids}
        first.lingers = True
        await first.chunk(max(first.chunks) + 2)
        await second.attach(session, max(first.chunks) + 1)
        for number, id in enumerate(ids):
            await second.send("control", keys=["ArrowLeft"] if number % 2 else [], id=id)
        await second.send("control", keys=[], id="new")
        new = await second.message("applied", id="new")
        assert new["seq"] > max(message["seq"] for message in told.values())
        assert {id: await second.message("applied", id=id) for id in ids} == told
        assert len([m for m in second.messages("applied") if m.get("id") in ids]) == len(ids)
