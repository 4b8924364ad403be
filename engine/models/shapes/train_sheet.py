"""Write weights, and look at them: a picture of streamed samples, one row per prompt."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from engine.models.shapes.model import ShapesModel
from engine.models.shapes.rollout import stream

__all__ = ["save_png", "save_sheet", "save_weights"]

_PROMPTS = (
    ("a red ball bouncing on a blue background", "a green star spinning on a black background"),
    (
        "a yellow square drifting left on a purple background",
        "a yellow square drifting left on a white background",
    ),
    (
        "a small cyan ring orbiting on a night background",
        "a small cyan ring orbiting fast on a night background",
    ),
    (
        "a white triangle moving up slowly on a red background",
        "an orange triangle moving down on a red background",
    ),
    (
        "a large purple star at rest on a grey background",
        "a large blue ball moving right fast on a grey background",
    ),
    ("a green ball bouncing on a sunset background", "a green ball bouncing slowly on a black background"),
)
_CHUNKS = 6  # of each prompt
_EVERY = 8  # frames


def save_weights(path: Path, tensors: Mapping[str, Tensor]) -> Path:
    """Write tensors as float16 safetensors."""
    partial = path.with_suffix(".partial")
    save_file({name: t.detach().cpu().half().contiguous() for name, t in tensors.items()}, partial)
    partial.replace(path)
    return path


def save_sheet(path: Path, weights: Path) -> None:
    """Stream each pair of prompts, switching half way, and draw every eighth frame."""
    model = ShapesModel.from_tensors(load_file(weights), "sheet")
    rows = []
    for seed, (before, after) in enumerate(_PROMPTS):
        rgb, _ = stream(model, [before] * _CHUNKS + [after] * _CHUNKS, seed)
        rows.append(torch.cat(list(rgb[::_EVERY]), dim=1))
    save_png(path, torch.cat(rows))


def save_png(path: Path, picture: Tensor) -> None:
    """Write uint8 [height, width, 3] as PNG."""
    height, width, _ = picture.shape

    def block(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    lines = torch.cat([torch.zeros(height, 1, dtype=torch.uint8), picture.flatten(1)], dim=1)
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(lines.numpy().tobytes())
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + block(b"IHDR", head) + block(b"IDAT", body) + block(b"IEND", b""))
