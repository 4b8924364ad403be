"""Recordings on disk: a folder per session, and in it segments, each a run of whole chunks.

A segment is a sequence of records: a 4-byte big-endian length and a media message in the JSON flavour. Its
name begins with the number of its first chunk. One gateway appends to a segment; every gateway that sees the
folder can read it, also while it grows. An incomplete record at the end (its writer was killed) is not there,
and a chunk that is there twice (its client attached at another gateway) counts once.

Everything here blocks: call it from a thread. FFmpeg is loaded by what needs it: a gateway makes no
file itself.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import struct
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.client_errors import BadServer
from gateway.protocol import CODECS, JSON_SUBPROTOCOL, ChunkHeader, MessageError

if TYPE_CHECKING:
    from gateway.client_chunks import Chunk, ChunkDecoder

__all__ = [
    "FAILED",
    "MADE",
    "NOTHING",
    "SegmentWriter",
    "Stock",
    "download_path",
    "make_mp4",
    "read_chunks",
    "remove",
    "take_stock",
]

logger = logging.getLogger("gateway.recorder")

SUFFIX = ".chunks"
DOWNLOAD_PREFIX, DOWNLOAD_SUFFIX = ".download-", ".mp4"
LENGTH = struct.Struct(">I")
MAX_SEGMENT_BYTES = 8 * 1024 * 1024
SEGMENTS_PER_SESSION = 8
"""At least so many make a full recording: it loses its beginning by such pieces."""
MAX_DOWNLOAD_AGE_S = 600.0
"""A file for a download has lost its name long before; an older one was left by a gateway that was killed."""

SESSION_FOLDER = re.compile(r"s_[0-9a-f]{16}")
MADE, NOTHING, FAILED = 0, 3, 4
"""Exit statuses; Python's own are lower."""
NICENESS = 10

Part = tuple[ChunkHeader, bytes]
_CODEC = CODECS[JSON_SUBPROTOCOL]


class SegmentWriter:
    """Appends one session's chunks, each once: what its client is sent again by an attach is there already.

    When they are more than `limit_bytes`, the oldest segment goes.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self._folder = folder
        self._limit_bytes = limit_bytes
        self._segment_bytes = min(MAX_SEGMENT_BYTES, limit_bytes // SEGMENTS_PER_SESSION)
        self._path: Path | None = None
        self._size = 0
        self._next_seq = 0

    def append(self, parts: Sequence[Part]) -> int:
        """Add one whole chunk. Returns the bytes written, 0 for one that is not new. Raises OSError."""
        seq = parts[0][0].seq
        if seq < self._next_seq:
            return 0
        messages = [(_CODEC.encode_media_head(header), payload) for header, payload in parts]
        data = b"".join(
            piece
            for head, payload in messages
            for piece in (LENGTH.pack(len(head) + len(payload)), head, payload)
        )
        # Behind a gap too: another gateway may have what lies between, and segments are read one by one.
        is_next = self._path is not None and seq == self._next_seq
        if not is_next or self._size + len(data) > self._segment_bytes:
            self._begin(seq)
        assert self._path is not None
        # Opened each time: nothing is held for sessions that rest, and the folder may be swept meanwhile.
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path, self._path = self._path, None  # a file that ends with half a chunk is not added to
        _append(path, data)
        self._path = path
        self._size += len(data)
        self._next_seq = seq + 1
        return len(data)

    def _begin(self, seq: int) -> None:
        sizes = {path: _size(path) for path in _segments(self._folder)}
        excess = sum(sizes.values()) + self._segment_bytes - self._limit_bytes
        for path, size in sizes.items():
            if excess <= 0:
                break
            path.unlink(missing_ok=True)
            excess -= size
        self._path = self._folder / f"{seq:016d}-{secrets.token_hex(4)}{SUFFIX}"
        self._size = 0


def _append(path: Path, data: bytes) -> None:
    """All or nothing, as far as the disk lets us: a full one must not get a file more with each chunk.

    Raises OSError.
    """
    size: int | None = None
    try:
        with path.open("ab") as file:
            size = file.tell()
            file.write(data)
    except OSError:
        with contextlib.suppress(OSError):
            if size:
                os.truncate(path, size)
            elif size == 0:
                path.unlink()
        raise


def read_chunks(folder: Path) -> Iterator[Chunk]:
    """Every chunk once, oldest first."""
    from gateway.client_chunks import ChunkDecoder, make_chunk

    decoder: ChunkDecoder | None = None
    next_seq = 0
    for path in _segments(folder):
        parts: list[tuple[ChunkHeader, memoryview]] = []
        for header, payload in _read_parts(path):
            if header.part == 0:
                parts.clear()
            if header.seq < next_seq or header.part != len(parts):
                continue
            parts.append((header, payload))
            if len(parts) == header.parts:
                next_seq = header.seq + 1
                decoder = decoder or ChunkDecoder(header.codec)
                yield make_chunk(parts, decoder)
                parts = []


def _read_parts(path: Path) -> Iterator[tuple[ChunkHeader, memoryview]]:
    try:
        with path.open("rb") as file:
            while len(head := file.read(LENGTH.size)) == LENGTH.size:
                (length,) = LENGTH.unpack(head)
                data = file.read(length)
                if len(data) < length:
                    return
                yield _CODEC.decode_media(data)
    except FileNotFoundError:
        return  # it was the oldest, and there is no room for it any more
    except MessageError as exc:
        logger.warning("%s can't be read any further: %s", path, exc)


def download_path(folder: Path) -> Path:
    """Where to make an MP4 file of the recording in `folder` for somebody."""
    return folder / f"{DOWNLOAD_PREFIX}{secrets.token_hex(8)}{DOWNLOAD_SUFFIX}"


def make_mp4(folder: Path, path: Path) -> int:
    """Write what is recorded as an MP4 file, encoding nothing again. Returns the number of frames, maybe 0.

    Chunks that are missing leave their time open, like a `gap`. Raises OSError, BadServer.
    """
    from gateway.recording import Mp4Writer

    chunks = read_chunks(folder)
    first = next(chunks, None)
    if first is None:
        return 0
    with Mp4Writer(path, round(first.num_frames * 1000 / first.duration_ms), index_first=True) as writer:
        writer.add(first)
        for chunk in chunks:
            writer.add(chunk)
    return writer.num_frames


# --- all recordings ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Stock:
    """What a folder of recordings holds."""

    num_bytes: int
    rested: tuple[str, ...]
    """Sessions to which nothing was added for long."""


def take_stock(root: Path, *, limit_bytes: int, now_s: float, rest_s: float) -> Stock:
    """Remove the oldest segments of all sessions until limit_bytes hold the rest; tell what there is.

    `now_s` is Unix time; a session has rested when its newest segment is older than rest_s.
    """
    folders = _folders(root)
    found = sorted((stat, path) for folder in folders for path in _segments(folder) if (stat := _stat(path)))
    num_bytes = sum(size for (_, size), _ in found)
    newest: dict[str, float] = {folder.name: 0.0 for folder in folders}
    for (changed_s, size), path in found:
        if num_bytes > limit_bytes:
            path.unlink(missing_ok=True)
            num_bytes -= size
        else:
            newest[path.parent.name] = changed_s
    for path in root.glob(f"*/{DOWNLOAD_PREFIX}*{DOWNLOAD_SUFFIX}"):
        if (stat := _stat(path)) is not None and stat[0] < now_s - MAX_DOWNLOAD_AGE_S:
            path.unlink(missing_ok=True)
    rested = tuple(sorted(name for name, changed_s in newest.items() if changed_s < now_s - rest_s))
    return Stock(num_bytes=num_bytes, rested=rested)


def remove(folder: Path) -> None:
    """Forget a session's recording."""
    for path in _segments(folder):
        path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # something else lies there, or another gateway was faster
        folder.rmdir()


def main(folder: str, path: str) -> int:
    """`python -m gateway.segments FOLDER PATH`: make the MP4 file, without haste. Returns the exit status."""
    os.nice(NICENESS)
    try:
        return MADE if make_mp4(Path(folder), Path(path)) else NOTHING
    except (OSError, BadServer) as exc:
        sys.stderr.write(f"no MP4 file of {folder}: {exc}\n")
        return FAILED


def _folders(root: Path) -> list[Path]:
    """What else lies there is not ours to touch."""
    return [path for path in root.iterdir() if SESSION_FOLDER.fullmatch(path.name)] if root.is_dir() else []


def _segments(folder: Path) -> list[Path]:
    """Oldest first."""
    return sorted(folder.glob(f"*{SUFFIX}")) if folder.is_dir() else []


def _size(path: Path) -> int:
    stat = _stat(path)
    return stat[1] if stat is not None else 0


def _stat(path: Path) -> tuple[float, int] | None:
    """(when it was changed, its size)."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_mtime, found.st_size


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
