"""What does each codec cost at the engine's settings, and what does it save?

One session's encoder on one core, fed with the chunks of a recording (96×96 from `turboserve client`: what an
engine encodes): CPU time per frame of all its threads, also those of a child, colour conversion included; the
slowest chunk; bytes per chunk; PSNR of the luma against what went in; memory and threads of an encoder, over
ten of them.
Bounded by the encoder's own work. The recording was encoded once already, the same for all.

    .venv/bin/python -m bench.codecs VIDEO.mp4
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
from av.codec.context import CodecContext
from av.video.codeccontext import VideoCodecContext

from bench.stats import machine, print_json, print_table
from engine.codecs import CODECS
from engine.encoder import SessionEncoder

CHUNK_FRAMES = 12
FPS = 16
NUM_ENCODERS = 10
DECODERS = {"h264": "h264", "vp9": "vp9", "av1": "libdav1d", "mjpeg": "mjpeg"}
Frames = npt.NDArray[np.uint8]


def read(path: Path) -> list[Frames]:
    """Whole chunks, RGB."""
    with av.open(str(path)) as file:
        frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    whole = len(frames) // CHUNK_FRAMES * CHUNK_FRAMES
    return [np.stack(frames[i : i + CHUNK_FRAMES]) for i in range(0, whole, CHUNK_FRAMES)]


def luma(frame: av.VideoFrame) -> npt.NDArray[np.float64]:
    return frame.to_ndarray(format="gray").astype(np.float64)


def measure(codec: str, chunks: list[Frames]) -> dict[str, float | str]:
    """One row of the table."""
    height, width = chunks[0].shape[1:3]
    before_mb, before_threads = resident_mb(), num_threads()
    encoders = [SessionEncoder(width=width, height=height, fps=FPS, codec=codec) for _ in range(NUM_ENCODERS)]
    for encoder in encoders:
        list(encoder.encode(chunks[0]))
    memory_mb = (resident_mb() - before_mb) / NUM_ENCODERS
    threads = (num_threads() - before_threads) / NUM_ENCODERS
    encoder, slowest_ms, units = encoders[0], 0.0, list[bytes]()
    began_s = cpu_s()
    for chunk in chunks:
        at_s = cpu_s()
        for part in encoder.encode(chunk):
            ends = np.cumsum(part.sizes)
            units += [part.payload[end - size : end] for end, size in zip(ends, part.sizes, strict=True)]
        slowest_ms = max(slowest_ms, (cpu_s() - at_s) * 1000)
    cpu_ms = (cpu_s() - began_s) * 1000
    for encoder in encoders:
        encoder.close()
    return {
        "codec": codec,
        "encoder": encoder.name,
        "cpu_ms_per_frame": round(cpu_ms / len(units), 3),
        "slowest_chunk_ms": round(slowest_ms, 1),
        "bytes_per_chunk": round(sum(map(len, units)) / len(chunks)),
        "psnr_db": round(psnr(codec, units, chunks), 1),
        "mb_per_encoder": round(memory_mb, 1),
        "threads_per_encoder": round(threads, 1),
    }


def psnr(codec: str, units: list[bytes], chunks: list[Frames]) -> float:
    """Of the luma, over all frames."""
    context = CodecContext.create(DECODERS[codec], "r")
    assert isinstance(context, VideoCodecContext)
    context.thread_count = 1
    packets = [*map(av.Packet, units), None]
    frames = [frame for packet in packets for frame in context.decode(packet)]
    pictures = [picture for chunk in chunks for picture in chunk]
    errors = [
        np.mean((luma(frame) - luma(av.VideoFrame.from_ndarray(picture, format="rgb24"))) ** 2)
        for frame, picture in zip(frames, pictures, strict=True)
    ]
    return float(10 * np.log10(255**2 / np.mean(errors)))


def processes() -> list[Path]:
    """Of this process and its children."""
    children = " ".join(path.read_text() for path in Path("/proc/self/task").glob("*/children")).split()
    return [Path("/proc/self"), *(Path("/proc") / pid for pid in children)]


def cpu_s() -> float:
    """Of all their threads."""
    threads = [thread for process in processes() for thread in process.glob("task/*/schedstat")]
    return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9


def num_threads() -> int:
    return sum(len(list(process.glob("task/*"))) for process in processes())


def resident_mb() -> float:
    """What they have for themselves, and their parts of what they share."""
    pages = [(process / "smaps_rollup").read_text() for process in processes()]
    return (
        sum(int(line.split()[1]) for text in pages for line in text.splitlines() if line[:4] == "Pss:") / 1e3
    )


def main() -> None:
    """Measure, print the table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("video", type=Path)
    chunks = read(parser.parse_args().video)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    rows = [measure(codec, chunks) for codec in CODECS]
    print_table(list(rows[0]), [[str(value) for value in row.values()] for row in rows])
    print_json({"bench": "codecs", "machine": machine(), "chunks": len(chunks), "rows": rows})


if __name__ == "__main__":
    main()
