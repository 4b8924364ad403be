"""Putting parts together and decoding them."""

from __future__ import annotations

import numpy as np
import pytest

from gateway.client_chunks import Chunk, ChunkAssembler, ChunkDecoder
from gateway.client_errors import BadServer
from gateway.protocol import ChunkHeader
from tests.browser.stream_server import CHUNK_FRAMES, FPS, Encoder, draw

FRAME_MS = 1000 / FPS


def encode(seq: int, prompt: str = "red on blue", encoder: Encoder | None = None) -> list[bytes]:
    pictures = [draw(prompt, seq * CHUNK_FRAMES + k) for k in range(CHUNK_FRAMES)]
    return (encoder or Encoder()).encode(pictures)


def part(
    seq: int, number: int, parts: int, units: list[bytes], codec: str = "h264"
) -> tuple[ChunkHeader, memoryview]:
    per_part = len(units) // parts
    mine = units[number * per_part : (number + 1) * per_part]
    header = ChunkHeader(
        session="s_1",
        seq=seq,
        part=number,
        parts=parts,
        key=number == 0,
        frames=len(mine),
        sizes=tuple(len(unit) for unit in mine),
        pts_ms=(seq * CHUNK_FRAMES + number * per_part) * FRAME_MS,
        duration_ms=len(mine) * FRAME_MS,
        codec=codec,
        rev=0,
        engine="e_1",
        gen_ms=5.0 if number == parts - 1 else None,
    )
    return header, memoryview(b"".join(mine))


def make(seq: int, units: list[bytes], codec: str = "h264") -> Chunk:
    chunk = ChunkAssembler(seq).add(*part(seq, 0, 1, units, codec))
    assert chunk is not None
    return chunk


def test_parts_become_one_chunk() -> None:
    """A chunk in three parts is complete with the last one and has the times of the whole."""
    units = encode(0)
    assembler = ChunkAssembler()
    assert assembler.add(*part(0, 0, 3, units)) is None
    assert assembler.add(*part(0, 1, 3, units)) is None
    chunk = assembler.add(*part(0, 2, 3, units))
    assert chunk is not None
    assert chunk.units == tuple(units)
    assert (chunk.pts_ms, chunk.duration_ms, chunk.gen_ms) == (0.0, 750.0, 5.0)
    assert assembler.next_seq == 1


def test_chunk_sent_again_in_other_parts_replaces_what_is_held() -> None:
    """After an incomplete chunk, part 0 begins it anew with another number of parts."""
    units = encode(0)
    assembler = ChunkAssembler()
    assembler.add(*part(0, 0, 3, units))
    assembler.add(*part(0, 1, 3, units))
    assert assembler.add(*part(0, 0, 2, units)) is None
    chunk = assembler.add(*part(0, 1, 2, units))
    assert chunk is not None
    assert chunk.units == tuple(units)


def test_complete_chunk_sent_again_is_ignored() -> None:
    """A chunk that was returned once is not returned twice."""
    units = encode(0)
    assembler = ChunkAssembler()
    assert assembler.add(*part(0, 0, 1, units)) is not None
    assert assembler.add(*part(0, 0, 1, units)) is None
    assert assembler.next_seq == 1


@pytest.mark.parametrize(("seq", "number"), [(2, 0), (0, 1)], ids=["chunk missing", "first part missing"])
def test_silent_hole_is_an_error(seq: int, number: int) -> None:
    """A skipped chunk or part without a gap message is the server's fault, and said so."""
    with pytest.raises(BadServer, match="should come next"):
        ChunkAssembler().add(*part(seq, number, 2, encode(0)))


def test_gap_moves_on() -> None:
    """After a gap the chunk behind it is expected; an older gap changes nothing."""
    assembler = ChunkAssembler()
    assembler.add(*part(0, 0, 2, encode(0)))
    assembler.skip(3)
    assembler.skip(1)
    assert assembler.next_seq == 4
    assert assembler.add(*part(4, 0, 1, encode(4))) is not None


def test_frames_are_the_pictures_that_were_encoded() -> None:
    """Decoding gives one RGB picture per access unit, with the colours that went in."""
    frames = make(0, encode(0)).frames()
    assert len(frames) == CHUNK_FRAMES
    assert (frames[0].shape, frames[0].dtype) == ((96, 96, 3), np.uint8)
    for index in (0, 5, 11):
        difference = np.abs(frames[index].astype(int) - draw("red on blue", index).astype(int))
        assert difference[40:, :20].max() <= 6  # the plain background: no ball, no barcode edges


def test_chunks_decode_in_any_order() -> None:
    """Every chunk decodes on its own: the newest, an older one, the newest again."""
    encoder, decoder = Encoder(), ChunkDecoder()
    chunks = [encode(seq, encoder=encoder) for seq in range(3)]
    late = decoder.decode(chunks[2])
    decoder.decode(chunks[0])
    again = decoder.decode(chunks[2])
    assert all(np.array_equal(a, b) for a, b in zip(late, again, strict=True))


def test_damaged_chunk_is_an_error_and_costs_only_itself() -> None:
    """Garbage raises BadServer; the same decoder then decodes the next chunk."""
    decoder = ChunkDecoder()
    with pytest.raises(BadServer):
        decoder.decode([bytes(200)] * 3)
    assert len(decoder.decode(encode(1))) == CHUNK_FRAMES
