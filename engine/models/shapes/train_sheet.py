"""Write weights, and look at them: a picture of streamed samples, one row per prompt."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from engine.models.shapes.model import ShapesConfig, ShapesModel
from engine.models.shapes.rollout import stream
from engine.models.shapes.train_util import Job

__all__ = ["export_weights", "import_weights", "save_png", "save_sheet"]

_PROMPTS = (
    ("a red ball bouncing on a blue background", "a green star spinning on a black background"),
    ("a yellow square drifting left on a purple background", "two yellow squares drifting left on white"),
    ("three small cyan rings orbiting in the night", "three large cyan rings orbiting fast in the night"),
    ("a white triangle moving up slowly on a red background", "an orange triangle pulsing on a grid"),
    ("a large purple star at rest on a grey background", "a large blue ball moving right fast on grey"),
    ("three green balls bouncing on a sunset background", "a green ball bouncing slowly on black"),
    ("two large red squares spinning on a grid", "two small blue triangles spinning fast on a grid"),
)
_CHUNKS = 6  # of each prompt
_EVERY = 8  # frames


def export_weights(job: Job) -> Path:
    """Join the averaged transformer of `out/dit.pt` and the decoder of `out/codec.pt` into
    `out/shapes.safetensors` (float16), write the encoder beside it, and stream a sample sheet."""
    out = job.out
    saved = torch.load(out / "dit.pt", weights_only=True, map_location="cpu")
    codec = torch.load(out / "codec.pt", weights_only=True, map_location="cpu")
    tensors: dict[str, Tensor] = saved["net"] | saved["average"]
    tensors |= {name: tensor for name, tensor in codec.items() if name.startswith("decoder.")}
    path = out / "shapes.safetensors"
    partial = path.with_suffix(".partial")
    save_file({name: tensor.half().contiguous() for name, tensor in tensors.items()}, partial)
    partial.chmod(0o644)
    partial.replace(path)
    encoder = {k: v.half().contiguous() for k, v in codec.items() if k.startswith("encoder.")}
    save_file(encoder, out / "shapes-encoder.safetensors")
    save_sheet(out / f"sheet-{saved['steps']:06d}.png", path, job.config)
    return path


def import_weights(job: Job, weights: Path) -> None:
    """Unpack weights, and the encoder that lies beside them, as checkpoints to go on from.

    The steps count from zero and the optimizer begins afresh.
    """
    tensors = {name: tensor.float() for name, tensor in load_file(weights).items()}
    encoder = load_file(weights.with_name("shapes-encoder.safetensors"))
    codec = {name: tensor.float() for name, tensor in encoder.items()}
    codec |= {name: tensor for name, tensor in tensors.items() if name.startswith("decoder.")}
    torch.save(codec, job.out / "codec.pt")
    net = {name: tensor for name, tensor in tensors.items() if name not in codec}
    torch.save({"steps": 0, "net": net, "average": net, "optimizer": None}, job.out / "dit.pt")


def save_sheet(path: Path, weights: Path, config: ShapesConfig) -> None:
    """Stream each pair of prompts, switching half way, and draw every eighth frame."""
    model = ShapesModel.from_tensors(load_file(weights), "sheet", config=config)
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
