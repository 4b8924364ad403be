"""Prompts, resets, seeds and the media itself, as DESIGN section 4 promises them to a stranger's client."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from tests.cluster import Cluster
from tests.conformance.raw import Chunk, Flavour, Part, wire

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]


def same_picture(one: Chunk, other: Chunk) -> bool:
    """Are the decoded frames identical?"""
    pairs = list(zip(one.decoded(), other.decoded(), strict=True))
    return bool(pairs) and all(np.array_equal(a, b) for a, b in pairs)


def difference(one: Chunk, other: Chunk) -> float:
    """Mean distance of the decoded pixels, in levels of 255."""
    a, b = np.stack(one.decoded()).astype(float), np.stack(other.decoded()).astype(float)
    return float(np.abs(a - b).mean())


@pytest.mark.parametrize("flavour", [None, "json", "msgpack"])
async def test_every_chunk_decodes_alone(cluster: Cluster, flavour: Flavour) -> None:
    """Each chunk has exactly its frames, of the stated size, and its time is its frame index."""
    async with wire(cluster.url, flavour) as client:
        session = await client.start(seed=1, id="s")
        for seq in range(3):
            chunk = await client.chunk(seq)
            frames = chunk.decoded()
            assert len(frames) == chunk.num_frames
            assert {f.shape for f in frames} == {(session["height"], session["width"], 3)}
            assert chunk.header["session"] == session["session"]
            assert chunk.header["codec"] == session["codec"] == "h264"
            assert seq == 0 or chunk.num_frames == session["chunk_frames"]
        client.check_stream(fps=session["fps"])
        await client.send("stop", id="e")
        await client.message("closed", reason="stopped")
        assert client.order("session") < client.order("accepted", id="s") < client.order("applied", id="s")
        assert client.order("applied", id="s", rev=0, seq=0) < client.order_of_chunk(0)
        assert client.order("accepted", id="e") < client.order("closed")


async def test_inputs_apply_in_the_order_of_the_log(cluster: Cluster) -> None:
    """Several inputs sent together each have their own rev, ascending, told before part 0 of their chunk."""
    async with wire(cluster.url) as client:
        session = await client.start(seed=1)
        await client.chunk(0)
        sent = [("prompt", {"text": "a blue ring"}), ("reset", {"seed": 9}), ("prompt", {"text": "a star"})]
        for number, (type, fields) in enumerate(sent):
            await client.send(type, id=f"i{number}", **fields)
        await client.send("prompt", text="a green triangle", transition="blend", blend_chunks=2)
        last = await client.message("applied", rev=4)
        await client.chunk(last["seq"])
        assert "id" not in last
        answers = [(await client.message("applied", id=f"i{k}")) for k in range(3)] + [last]
        assert [m["rev"] for m in answers] == [1, 2, 3, 4]
        assert [m["seq"] for m in answers] == sorted(m["seq"] for m in answers)
        for number, answer in enumerate(answers):
            assert client.order("applied", rev=number + 1) < client.order_of_chunk(answer["seq"])
        for part in (p for p in client.log if isinstance(p, Part)):
            due = max(m["rev"] for m in [{"rev": 0, "seq": 0}, *answers] if m["seq"] <= part.header["seq"])
            assert part.header["rev"] == due
        accepted = [client.order("accepted", id=f"i{k}") for k in range(3)]
        assert accepted == sorted(accepted)
        client.check_stream(fps=session["fps"])


async def test_repeated_ids_have_no_second_effect(cluster: Cluster) -> None:
    """A repeat is answered with what is stored: at once, after an attach, and while paused."""
    async with wire(cluster.url) as first, wire(cluster.url, "msgpack") as second:
        session = await first.start(seed=1, id="s")
        await first.send("prompt", text="a blue ring", id="p")
        applied = await first.message("applied", id="p")
        await first.send("prompt", text="other words", id="p")
        await first.until(lambda: len(first.messages("applied", **applied)) == 2, "the stored answer again")
        assert len(first.messages("accepted", id="p")) == 2
        next_seq = (await first.chunk(applied["seq"])).seq
        await second.attach(session, next_seq)
        mark = len(second.log)
        await second.send("prompt", text="other words", id="p")
        await second.send("prompt", text="a green triangle", id="q")
        assert await second.message("applied", after=mark, id="p") == applied
        newer = await second.message("applied", id="q")
        assert newer["rev"] == applied["rev"] + 1
        assert (await second.chunk(newer["seq"])).rev == newer["rev"]
        assert await first.close_code() == 4409


async def test_prompt_does_not_wake_a_paused_session(cluster: Cluster) -> None:
    """It is accepted and applied to the first chunk after resume; seq and time go on."""
    async with wire(cluster.url) as client:
        session = await client.start(seed=1)
        await client.chunk(1)
        await client.send("pause", id="a")
        await client.message("state", state="idle", reason="paused")
        await client.send("prompt", text="a blue ring on white", id="p")
        await client.message("accepted", id="p")
        await client.send("pause", id="b")
        await client.message("accepted", id="b")
        assert not client.messages("applied", id="p")
        mark = len(client.log)
        await client.send("resume", id="c")
        await client.message("state", after=mark, state="active")
        applied = await client.message("applied", id="p")
        assert (await client.chunk(applied["seq"])).rev == applied["rev"] == 1
        client.check_stream(fps=session["fps"])


async def test_reset_goes_back_to_the_start_of_its_seed(cluster: Cluster) -> None:
    """seq and time go on, rev rises; the same seed gives the start again, another one another picture."""
    async with wire(cluster.url) as client:
        session = await client.start("a red ball on a black background", seed=5)
        begin = [await client.chunk(0), await client.chunk(1)]
        await client.send("reset", id="same")
        same = (await client.message("applied", id="same"))["seq"]
        again = [await client.chunk(same), await client.chunk(same + 1)]
        await client.send("reset", id="other", seed=6)
        other = (await client.message("applied", id="other"))["seq"]
        different = [await client.chunk(other), await client.chunk(other + 1)]
        await client.send("reset", id="back", seed=5)
        back = (await client.message("applied", id="back"))["seq"]
        third = [await client.chunk(back), await client.chunk(back + 1)]
        assert all(map(same_picture, begin, again))
        assert all(map(same_picture, begin, third))
        assert not same_picture(begin[1], different[1])
        assert [chunk.rev for chunk in (begin[0], again[0], different[0], third[0])] == [0, 1, 2, 3]
        client.check_stream(fps=session["fps"])


async def test_same_seed_same_picture_also_in_company(cluster: Cluster) -> None:
    """Frames do not depend on who else is served, but for the order of float additions in shared passes, and
    for the key frame with which a session that was moved goes on.
    """

    async def film(seed: int, flavour: Flavour = None) -> list[Chunk]:
        async with wire(cluster.url, flavour) as client:
            await client.start("a red ball on a black background", seed=seed)
            chunks = [await client.chunk(seq) for seq in range(4)]
            await client.send("stop")
            await client.message("closed")
            return chunks

    alone = await film(11)
    *together, _, other = await asyncio.gather(film(11), film(11, "msgpack"), film(11), film(12), film(13))
    for chunks in together:
        assert max(map(difference, alone, chunks)) < 1.0
    assert difference(alone[3], other[3]) > 1.0
