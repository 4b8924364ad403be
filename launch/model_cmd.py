"""`turboserve model`: bring in published checkpoints, list what is here, check that a model works."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

    from engine.models.base import CausalVideoModel

__all__ = ["main"]

_PLACE = "PATH|HUB-ID[:FILE]"
_TEXT_PARTS = ("text_encoder", "tokenizer", "models_t5_umt5-xxl-enc-bf16.pth", "google")
"""Of a diffusers repository, and of Wan's own."""
_PROMPTS = ("a red fox runs through snow", "waves roll onto a beach at sunset")


def main(arguments: Sequence[str]) -> int:
    """Exit status: 0 done, 1 it failed, 2 a wrong command line."""
    parsed = _parser().parse_args(arguments)
    try:
        status: int = parsed.run(parsed)
        return status
    except (ValueError, OSError, MemoryError) as exc:
        print(f"turboserve model {parsed.action}: {exc}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="turboserve model", description="Manage large models.", allow_abbrev=False
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    add = actions.add_parser("add", help="check a checkpoint and make a model of it", allow_abbrev=False)
    add.add_argument("source", metavar=_PLACE, help="checkpoint: a file, a folder, or OWNER/NAME of the hub")
    add.add_argument("--preset", required=True, help="the model's name; see `turboserve model list`")
    add.add_argument("--file", help="which file or folder of a folder or hub repository")
    add.add_argument(
        "--part", metavar="NAME", help="of a training checkpoint, e.g. generator; default: the preset's"
    )
    add.add_argument("--decoder", required=True, metavar=_PLACE, help="taew2_1 or Wan's VAE")
    add.add_argument("--lora", metavar=_PLACE, help="merged into the weights")
    add.add_argument("--lora-scale", type=float, default=1.0, metavar="X", help="alpha divided by rank")
    add.add_argument("--text", metavar=_PLACE, help="text_encoder/ and tokenizer/, or Wan's own folder")
    add.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=JSON",
        help="a setting that is not the preset's: shift=8, text_device=cpu, … (docs/wan.md)",
    )
    add.set_defaults(run=_add)
    listing = actions.add_parser("list", help="presets, licences, and which are here", allow_abbrev=False)
    listing.set_defaults(run=_list)
    check = actions.add_parser("check", help="load a model and render two prompts", allow_abbrev=False)
    check.add_argument("name")
    check.add_argument("--device", default="cpu")
    check.add_argument(
        "--save", type=Path, metavar="FILE", help="keep the videos, one after the other (.mp4)"
    )
    check.set_defaults(run=_check)
    for action in (add, listing, check):
        action.add_argument("--dir", type=Path, help="folder of models")
    return parser


def _folder(parsed: argparse.Namespace) -> Path:
    from engine.models.wan.folder import MODELS_DIR

    chosen: Path = parsed.dir or MODELS_DIR
    return chosen.expanduser()


def _add(parsed: argparse.Namespace) -> int:
    from engine.models.wan.config import PRESETS
    from engine.models.wan.folder import Sources, add_model, settings_of
    from launch.model_hub import TRANSFORMER, VAE, find

    config = PRESETS.get(parsed.preset)
    if config is None:
        raise ValueError(f"no preset {parsed.preset!r}; known: {', '.join(PRESETS)}")
    _say(f"{config.name}: weights of {config.source or 'nobody'}; licence: {config.licence}")
    target = _folder(parsed) / config.name
    if target.exists():
        raise ValueError(f"{target} is there already")
    changes = dict(map(_setting, parsed.set))
    settings_of(config, changes)  # before anything is fetched
    sources = Sources(
        dit=find(parsed.source, parsed.file, folder=TRANSFORMER, say=_say),
        decoder=find(parsed.decoder, folder=VAE, say=_say),
        lora=find(parsed.lora, say=_say) if parsed.lora else None,
        lora_scale=parsed.lora_scale,
        text=find(parsed.text, parts=_TEXT_PARTS, say=_say) if parsed.text else None,
        parts=(parsed.part,) if parsed.part else None,
        changes=changes,
    )
    _say(f"reading {sources.dit}")
    add_model(config, target, sources, say=_say)
    _say(f"written to {target}")
    return 0


def _say(line: str) -> None:
    print(line, flush=True)


def _setting(text: str) -> tuple[str, object]:
    """KEY=JSON; what is no JSON is a string."""
    key, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--set {text}: KEY=VALUE is wanted")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def _list(parsed: argparse.Namespace) -> int:
    from engine.models.wan.config import PRESETS

    folder = _folder(parsed)
    for config in PRESETS.values():
        dit = config.dit
        here = "here" if (folder / config.name).is_dir() else "not here"
        print(f"{config.name}: {here}; {config.source or 'no source'}; licence: {config.licence}")
        levels = ", ".join(f"{1000 * sigma:.0f}" for sigma in config.sigmas(is_first=False))
        first = f" (first chunk: {len(config.first_steps)} steps)" if config.first_steps else ""
        print(
            f"    noise levels {levels}{first}; latent frames: {dit.chunk_frames} a chunk, "
            f"window {dit.window_frames}, sink {config.sink_frames}"
        )
    return 0


def _check(parsed: argparse.Namespace) -> int:
    """Figures without a judge: a broken model gives NaN, one colour, or unrelated frames."""
    import torch

    from engine.models.registry import load_model

    device = _device(parsed.device)
    folder = _folder(parsed) / parsed.name
    weights = folder if folder.is_dir() else None
    try:
        model = load_model(parsed.name, device=device, weights=weights)
        return _render(model, parsed)
    except torch.OutOfMemoryError as exc:
        raise MemoryError(f"{parsed.name} does not fit into the memory of {device}: {exc}") from exc


def _device(name: str) -> torch.device:
    """Raises ValueError: there is none."""
    import torch

    if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", name):
        raise ValueError(f"--device must be cpu, cuda or cuda:N, not {name!r}")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"--device {name}: torch sees {torch.cuda.device_count()} GPUs here")
    return device


def _render(model: CausalVideoModel, parsed: argparse.Namespace) -> int:
    import torch

    from engine.models.shapes.rollout import stream

    print(f"{parsed.name}: names, shapes and types fit; weights {model.spec.weights_hash[:12]}")
    is_sound, videos = True, []
    for prompt in _PROMPTS:
        frames, latents = stream(model, [prompt] * 3, seed=1)
        videos.append(frames[model.spec.first_chunk_drop_frames :])
        video = videos[-1].float()
        is_sound = is_sound and bool(latents.isfinite().all()) and float(video.std()) > 1
        print(
            f"{prompt!r}: latents {latents.mean():+.2f} ± {latents.std():.2f} (trained: 0 ± 1), pixels "
            f"{video.mean():.0f} ± {video.std():.0f}, between frames {video.diff(dim=0).abs().mean():.1f}"
        )
    if parsed.save is not None:
        _save(parsed.save, torch.cat(videos).cpu().numpy(), model.spec.fps)
        print(f"saved to {parsed.save}")
    if not is_sound:
        raise ValueError("the video is not finite, or is one colour")
    return 0


def _save(path: Path, frames: npt.NDArray[np.uint8], fps: int) -> None:
    """RGB frames [F, height, width, 3] as H.264. Raises OSError."""
    import av

    with av.open(str(path), "w") as file:
        video = file.add_stream("libx264", rate=fps, options={"crf": "18"})
        video.height, video.width = frames.shape[1:3]
        video.pix_fmt = "yuv420p"
        for frame in frames:
            file.mux(video.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(video.encode())
