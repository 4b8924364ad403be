"""Video encoding."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pytest
from av.codec.context import OptionType

from engine.codecs import CODECS, Coder, coders_of, find_coder
from engine.encoder import (
    EncodedPart,
    EncoderPool,
    Encoding,
    SessionEncoder,
    part_lengths,
    probe_hardware,
)
from engine.encoder_child import ChildEncoder
from engine.frame_encoder import FrameEncoder
from gateway.client_chunks import ChunkDecoder
from scheduler import messages
from scheduler.messages import Rung

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (20, 40, 230), "white": (255, 255, 255)}


def solid(colour: tuple[int, int, int], frames: int = 12, side: int = 96) -> npt.NDArray[np.uint8]:
    return np.full((frames, side, side, 3), colour, dtype=np.uint8)


def encoder(width: int = 96, height: int = 96) -> SessionEncoder:
    return SessionEncoder(width=width, height=height, fps=16)


def decode(payload: bytes) -> list[av.VideoFrame]:
    """Frames of one payload of access units, on a new decoder."""
    context = av.CodecContext.create("h264", "r")
    context.thread_count = 1
    packets = [*context.parse(payload), *context.parse(b"")]
    return [frame for packet in [*packets, None] for frame in context.decode(packet)]


def unit_types(unit: bytes) -> list[int]:
    """NAL unit types of an Annex-B access unit."""
    starts = [i + 3 for i in range(len(unit) - 3) if unit[i : i + 3] == b"\x00\x00\x01"]
    return [unit[i] & 0x1F for i in starts]


@pytest.mark.parametrize("colour", COLOURS)
def test_colours_survive(colour: str) -> None:
    """A decoder that follows the tags gives the colour back within 3/255."""
    (part,) = encoder().encode(solid(COLOURS[colour]))
    rgb = decode(part.payload)[-1].to_ndarray(format="rgb24").astype(int)
    assert np.abs(rgb - COLOURS[colour]).max() <= 3


def test_the_stream_is_tagged_as_bt601_limited() -> None:
    """Browsers take untagged video for BT.709: the tags must be in the bitstream."""
    (part,) = encoder().encode(solid(COLOURS["red"]))
    smpte170m, limited = 6, 1
    context = av.CodecContext.create("h264", "r")
    context.decode(context.parse(part.payload)[0])
    assert (context.color_primaries, context.color_trc, context.colorspace) == (smpte170m,) * 3
    assert context.color_range == limited


def test_every_chunk_decodes_alone_with_exact_frames() -> None:
    """SPS, PPS and IDR lead each chunk; sizes name each access unit."""
    coder = encoder()
    moving = np.zeros((12, 96, 96, 3), dtype=np.uint8)
    for i in range(12):
        moving[i, :, 8 * i : 8 * i + 8] = 255
    for chunk in range(3):
        (part,) = coder.encode(np.roll(moving, chunk, axis=0))
        assert (part.frames, len(part.sizes), sum(part.sizes)) == (12, 12, len(part.payload))
        first = unit_types(part.payload[: part.sizes[0]])
        assert {7, 8, 5} <= set(first), f"chunk {chunk} starts with NAL units {first}"
        assert 5 not in unit_types(part.payload[part.sizes[0] :])
        decoded = decode(part.payload)
        assert len(decoded) == 12
        columns = [int(f.to_ndarray(format="gray").astype(int).sum(0).argmax()) // 8 for f in decoded]
        assert columns == [(i - chunk) % 12 for i in range(12)]


def test_large_frames_travel_in_parts() -> None:
    """Above 256×256 a chunk is split; the parts together are one decodable chunk, the first one alone too."""
    parts = list(encoder(320, 256).encode(np.full((12, 256, 320, 3), 90, dtype=np.uint8)))
    assert [(p.part, p.parts, p.frames) for p in parts] == [(0, 3, 4), (1, 3, 4), (2, 3, 4)]
    assert len(decode(parts[0].payload)) == 4
    assert len(decode(b"".join(part.payload for part in parts))) == 12
    assert parts[-1].is_last and not parts[0].is_last


def test_part_lengths() -> None:
    """Whole when small, else three or four frames each."""
    assert part_lengths(12, pixels=256 * 256) == (12,)
    assert part_lengths(12, pixels=256 * 256 + 1) == (4, 4, 4)
    assert part_lengths(9, pixels=10**6) == (3, 3, 3)
    assert part_lengths(5, pixels=10**6) == (3, 2)
    assert part_lengths(1, pixels=10**6) == (1,)


def test_encoder_time_goes_on_over_chunks() -> None:
    """Frames are counted for the whole session: x264 wants rising times."""
    coder = encoder()
    for _ in range(2):
        list(coder.encode(solid(COLOURS["blue"], frames=3)))
    at_work = coder._at_work[Rung.FULL]
    assert isinstance(at_work, FrameEncoder)
    assert at_work._next_pts == 6 and at_work._context.time_base == Fraction(1, 16)


def test_the_pool_keeps_a_session_on_one_thread_in_order() -> None:
    """Chunks of a session come out in the order they went in; lanes spread over the threads."""
    pool, seen, names = EncoderPool(threads=2), [], set()
    lanes = [pool.open_lane(encoder()) for _ in range(2)]
    assert {lane.thread for lane in lanes} == {0, 1}

    def note(number: int) -> None:
        seen.append(number)
        names.add(threading.current_thread().name)

    for number in range(4):
        frames = solid(COLOURS["red"], frames=2)
        pool.submit(lanes[0], frames, lambda part, n=number: note(n), pytest.fail)  # type: ignore[misc]
    pool.close()
    assert seen == [0, 1, 2, 3] and len(names) == 1


def test_an_encoding_error_goes_to_its_callback_and_the_thread_lives_on() -> None:
    """Frames of a wrong shape fail; the next chunk on that thread is encoded."""
    pool = EncoderPool(threads=1)
    errors: list[Exception] = []
    parts: list[EncodedPart] = []
    bad = np.zeros((2, 96, 96), dtype=np.uint8)
    pool.submit(pool.open_lane(encoder()), bad, parts.append, errors.append)
    pool.submit(pool.open_lane(encoder()), solid(COLOURS["red"]), parts.append, errors.append)
    pool.close()
    assert len(errors) == 1 and len(parts) == 1


def test_no_encoder_outlives_its_lane_or_the_pool() -> None:
    """A closed lane finishes what was submitted and ends its encoder's process; the pool ends the others."""
    pool, parts = EncoderPool(threads=1), list[EncodedPart]()
    coders = [SessionEncoder(width=96, height=96, fps=16, codec="av1") for _ in range(2)]
    lanes = [pool.open_lane(coder) for coder in coders]
    pids = list[int]()

    def note(part: EncodedPart) -> None:
        parts.append(part)
        at_work = coders[len(pids)]._at_work[Rung.FULL]
        assert isinstance(at_work, ChildEncoder) and at_work.pid is not None
        pids.append(at_work.pid)

    for lane in lanes:
        pool.submit(lane, moving(), note, pytest.fail)  # type: ignore[arg-type]
    pool.close_lane(lanes[0])
    pool.close()
    assert [part.frames for part in parts] == [12, 12]
    for pid in pids:
        with pytest.raises(ChildProcessError):
            os.waitpid(pid, 0)


def moving(chunk: int = 0, side: int = 96) -> npt.NDArray[np.uint8]:
    """A white bar that moves by a twelfth of the picture each frame."""
    frames = np.zeros((12, side, side, 3), dtype=np.uint8)
    step = side // 12
    for i in range(12):
        frames[(i + chunk) % 12, :, step * i : step * (i + 1)] = 255
    return frames


DECODERS = {"h264": "h264", "vp9": "vp9", "av1": "libdav1d", "mjpeg": "mjpeg"}


@pytest.mark.parametrize("codec", CODECS)
def test_every_codec_makes_chunks_that_decode_alone(codec: str) -> None:
    """One access unit per frame, each chunk on a new decoder, pictures and colours as they went in."""
    coder = SessionEncoder(width=96, height=96, fps=16, codec=codec)
    for chunk in range(3):
        (part,) = coder.encode(moving(chunk))
        assert (part.frames, len(part.sizes)) == (12, 12)
        context = av.CodecContext.create(DECODERS[codec], "r")
        context.thread_count = 1
        frames, offset = [], 0
        for size in part.sizes:
            frames += context.decode(av.Packet(part.payload[offset : offset + size]))
            offset += size
        frames += context.decode(None)
        columns = [int(f.to_ndarray(format="gray").astype(int).sum(0).argmax()) // 8 for f in frames]
        assert columns == [(i - chunk) % 12 for i in range(12)]
    (part,) = coder.encode(solid(COLOURS["red"]))
    context = av.CodecContext.create(DECODERS[codec], "r")
    context.thread_count = 1
    (frame, *_) = [*context.decode(av.Packet(part.payload[: part.sizes[0]])), *context.decode(None)]
    assert np.abs(frame.to_ndarray(format="rgb24").astype(int) - COLOURS["red"]).max() <= 8


def scene(chunk: int) -> npt.NDArray[np.uint8]:
    """Grain that scrolls over a ramp, with a red square in it: something for a rate to be spent on."""
    grain = np.random.default_rng(0).integers(0, 48, (192, 96, 3), np.uint8)
    ramp = np.arange(96, dtype=np.uint8)[:, None, None]
    frames = np.stack([grain[k : k + 96] + ramp for k in range(12 * chunk, 12 * chunk + 12)])
    frames[:, 32:64, 32:64] = COLOURS["red"]
    return frames


LOW_SHARE = {"h264": 0.4, "vp9": 0.5, "av1": 0.5, "mjpeg": 0.75}
"""Of the bytes, at most. Keys cost the others more here than in longer chunks."""


def units_of(part: EncodedPart) -> list[bytes]:
    ends = list(itertools.accumulate(part.sizes))
    return [part.payload[end - size : end] for end, size in zip(ends, part.sizes, strict=True)]


@pytest.mark.parametrize("codec", CODECS)
def test_the_lower_rung_is_the_same_scene_in_far_fewer_bytes(codec: str) -> None:
    """A stream that changes rungs at any chunk decodes on, with the same pictures."""
    coder = SessionEncoder(width=96, height=96, fps=16, codec=codec)
    decoder = ChunkDecoder(codec)
    (full,) = coder.encode(scene(0))
    low, full_again = coder.encode(scene(1), (Rung.FULL, Rung.LOW))
    (low_again,) = coder.encode(scene(2), (Rung.LOW,))
    assert [part.rung for part in (full, low, full_again, low_again)] == [None, Rung.LOW, Rung.FULL, None]
    assert list(coder._at_work) == [Rung.LOW]
    for better, worse in ((full_again, low), (full, low_again)):
        assert len(worse.payload) < len(better.payload) * LOW_SHARE[codec]
    for part, chunk in ((full, 0), (low, 1), (low_again, 2), (full_again, 1)):
        for picture, wanted in zip(decoder.decode(units_of(part)), scene(chunk), strict=True):
            assert np.abs(picture[40:56, 40:56].astype(int) - COLOURS["red"]).mean() < 8
            assert np.abs(picture.astype(int) - wanted).mean() < 16
    coder.close()


def test_h264_headers_are_the_same_at_each_rung() -> None:
    """An MP4 file of a recording has one set, for the whole of it."""
    low, full = encoder().encode(scene(0), (Rung.FULL, Rung.LOW))
    assert headers(low.payload) == headers(full.payload)


def headers(payload: bytes) -> list[bytes]:
    """SPS and PPS in Annex-B data."""
    units = payload.replace(b"\x00\x00\x00\x01", b"\x00\x00\x01").split(b"\x00\x00\x01")
    return [unit for unit in units if unit and unit[0] & 0x1F in (7, 8)]


@pytest.mark.parametrize("codec", CODECS)
def test_no_codec_leaves_real_time_threads(codec: str) -> None:
    """SVT-AV1 makes them where root runs it, the caller among them: not here, nor in a process of its own."""
    coder = SessionEncoder(width=96, height=96, fps=16, codec=codec)
    list(coder.encode(moving()))
    assert policies("self") == {os.SCHED_OTHER}
    if isinstance(at_work := coder._at_work[Rung.FULL], ChildEncoder):
        assert policies(str(at_work.pid)) == {os.SCHED_BATCH}


def policies(pid: str) -> set[int]:
    """How the threads of a process are scheduled."""
    return {os.sched_getscheduler(int(thread)) for thread in os.listdir(f"/proc/{pid}/task")}


def test_an_unknown_codec_is_refused() -> None:
    """Before anything is encoded. Everything that a client may ask for is known."""
    assert tuple(CODECS) == messages.CODECS
    with pytest.raises(ValueError, match="no encoder"):
        SessionEncoder(width=96, height=96, fps=16, codec="theora")


def test_a_session_that_hardware_can_not_take_is_encoded_without() -> None:
    """Here there is none: whoever was told otherwise still gets H.264."""
    coder = SessionEncoder(width=96, height=96, fps=16, encoding=Encoding(hardware=frozenset({"h264_nvenc"})))
    (part,) = coder.encode(solid(COLOURS["red"]))
    assert len(decode(part.payload)) == 12
    assert coder.name == "libx264"


@pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="there may be some")
def test_hardware_that_is_not_there_is_not_found() -> None:
    """The probe's answer is what works, not what was compiled in."""
    assert probe_hardware(width=256, height=256, fps=16, crf=23) == frozenset()


X264 = replace(find_coder("libx264"), is_hardware=True)
"""An encoder that every machine has in the place of one that few have."""


def offer(monkeypatch: pytest.MonkeyPatch, **hardware: Coder) -> None:
    """Have these hardware encoders and no others, before what the CPU has."""
    offered: Mapping[str, tuple[Coder, ...]] = {
        codec: (*filter(None, [hardware.get(codec)]), coders[-1]) for codec, coders in CODECS.items()
    }
    monkeypatch.setattr("engine.codecs.CODECS", offered)


def test_hardware_that_works_is_found_and_preferred(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though other hardware does not work."""
    offer(monkeypatch, h264=X264, av1=replace(X264, name="av1_none"))
    found = probe_hardware(width=96, height=96, fps=16, crf=23)
    assert found == {"libx264"}
    assert [coder.name for coder in coders_of("av1", found)] == ["libsvtav1"]
    coder = SessionEncoder(width=96, height=96, fps=16, encoding=Encoding(hardware=found))
    (part,) = coder.encode(solid(COLOURS["red"]))
    assert coder._coder is X264
    assert len(decode(part.payload)) == 12


def test_hardware_is_tried_with_frames_of_the_models_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """GPUs have a smallest and a largest; so has H.263, which knows five sizes."""
    offer(monkeypatch, h264=Coder(name="h263", options=lambda crf: {}, is_hardware=True))
    assert probe_hardware(width=176, height=144, fps=16, crf=23) == {"h263"}
    assert probe_hardware(width=192, height=144, fps=16, crf=23) == frozenset()


@pytest.mark.parametrize(
    "broken",
    [
        replace(X264, name="h264_none"),
        replace(X264, options=lambda crf: {"preset": "none"}),
        replace(X264, options=lambda crf: {"rc-lookahead": "20"}),  # keeps frames back
        replace(X264, pix_fmt="none"),
    ],
    ids=["no encoder", "a refused option", "no packet for a frame", "no such format"],
)
def test_hardware_that_does_not_do_what_is_needed_is_left_out(
    monkeypatch: pytest.MonkeyPatch, broken: Coder
) -> None:
    """Whichever step it fails at."""
    offer(monkeypatch, h264=broken)
    assert probe_hardware(width=96, height=96, fps=16, crf=23) == frozenset()


@pytest.mark.parametrize(
    "error",
    [
        av.error.ExternalError(-542398533, "Generic error in an external library", "avcodec_open2"),
        av.error.OSError(19, "No such device", "avcodec_open2"),
        MemoryError("Cannot allocate codec context"),
        RuntimeError("No codec descriptor"),
    ],
    ids=repr,
)
def test_no_failure_of_hardware_fails_an_engine(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """FFmpeg's own errors, and those that PyAV raises itself."""

    def fail(encoder: SessionEncoder, coder: Coder) -> None:
        if coder.name == "h264_nvenc":
            raise error

    monkeypatch.setattr(SessionEncoder, "try_out", fail)
    assert probe_hardware(width=256, height=256, fps=16, crf=23) == {"av1_nvenc"}


@pytest.mark.parametrize("coder", [*itertools.chain(*CODECS.values())], ids=lambda coder: coder.name)
def test_encoders_know_their_options(coder: Coder) -> None:
    """FFmpeg's encoders ignore those that they do not know, and nobody would hear of a misspelt one."""
    options = av.CodecContext.create(coder.name, "w").supported_options
    known = {option.name: option for option in (*options.generic, *options.private)}
    for crf in (0, 23, 51):
        for name, value in coder.options(crf).items():
            option = known[name]
            if option.type in (OptionType.STRING, OptionType.DICT):
                continue
            if value not in {each.name for each in option.choices}:
                assert option.min <= float(value) <= option.max


def test_the_best_quality_is_not_left_to_the_gpu() -> None:
    """NVENC takes a quality of 0 for the wish to choose one itself."""
    assert find_coder("h264_nvenc").options(0)["cq"] == "1"
    assert find_coder("h264_nvenc").options(51)["cq"] == "51"
