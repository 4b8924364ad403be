"""`turboserve model`: bring in published checkpoints, list what is here, check that a model works."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

__all__ = ["main"]

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
    add.add_argument("source", metavar="PATH|HUB-ID", help="checkpoint: a file, a folder, or OWNER/NAME")
    add.add_argument("--preset", required=True, help="the model's name; see `turboserve model list`")
    add.add_argument("--file", help="which file of a folder or hub repository")
    add.add_argument("--decoder", required=True, type=Path, metavar="FILE", help="taew2_1 or Wan's VAE")
    add.add_argument("--lora", type=Path, metavar="FILE", help="merged into the weights")
    add.add_argument("--lora-scale", type=float, default=1.0, metavar="X", help="alpha divided by rank")
    add.add_argument("--text", type=Path, metavar="DIR", help="holds text_encoder/ and tokenizer/")
    add.set_defaults(run=_add)
    listing = actions.add_parser("list", help="presets, licences, and which are here", allow_abbrev=False)
    listing.set_defaults(run=_list)
    check = actions.add_parser("check", help="load a model and render two prompts", allow_abbrev=False)
    check.add_argument("name")
    check.add_argument("--device", default="cpu")
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
    from engine.models.wan.folder import add_model

    config = PRESETS.get(parsed.preset)
    if config is None:
        raise ValueError(f"no preset {parsed.preset!r}; known: {', '.join(PRESETS)}")
    print(f"{config.name}: weights of {config.source or 'nobody'}; licence: {config.licence}", flush=True)
    source = _found(parsed.source, parsed.file)
    target = _folder(parsed) / config.name
    print(f"reading {source}", flush=True)
    add_model(
        config,
        target,
        dit=source,
        decoder=parsed.decoder,
        lora=parsed.lora,
        lora_scale=parsed.lora_scale,
        text=parsed.text,
    )
    print(f"written to {target}")
    return 0


def _found(source: str, file: str | None) -> Path:
    """A path here, or a download from the hub (which shows its own progress)."""
    path = Path(source)
    if not path.exists():
        if source.count("/") != 1 or source.startswith((".", "/")):
            raise ValueError(f"no checkpoint at {source}")
        try:
            from huggingface_hub import snapshot_download
        except ImportError as exc:
            raise ValueError(
                f"{source} is not here; to download it from the hub: pip install 'turboserve[wan]'"
            ) from exc
        path = Path(snapshot_download(source, allow_patterns=[file] if file else ["*.safetensors", "*.pt"]))
    return path / file if file and path.is_dir() else path


def _list(parsed: argparse.Namespace) -> int:
    from engine.models.wan.config import PRESETS

    folder = _folder(parsed)
    for config in PRESETS.values():
        dit = config.dit
        here = "here" if (folder / config.name).is_dir() else "not here"
        print(f"{config.name}: {here}; {config.source or 'no source'}; licence: {config.licence}")
        print(
            f"    {len(config.steps)} steps, shift {config.shift:g}, {dit.chunk_frames} frames a chunk, "
            f"window {dit.window_frames}, sink {config.sink_frames}"
        )
    return 0


def _check(parsed: argparse.Namespace) -> int:
    """Figures without a judge: a broken model gives NaN, one colour, or unrelated frames."""
    import torch

    from engine.models.registry import load_model
    from engine.models.shapes.rollout import stream

    folder = _folder(parsed) / parsed.name
    weights = folder if folder.is_dir() else None
    model = load_model(parsed.name, device=torch.device(parsed.device), weights=weights)
    print(f"{parsed.name}: names, shapes and types fit; weights {model.spec.weights_hash[:12]}")
    is_sound = True
    for prompt in _PROMPTS:
        frames, latents = stream(model, [prompt] * 3, seed=1)
        video = frames[model.spec.first_chunk_drop_frames :].float()
        is_sound = is_sound and bool(latents.isfinite().all()) and float(video.std()) > 1
        print(
            f"{prompt!r}: latents {latents.mean():+.2f} ± {latents.std():.2f} (trained: 0 ± 1), pixels "
            f"{video.mean():.0f} ± {video.std():.0f}, between frames {video.diff(dim=0).abs().mean():.1f}"
        )
    if not is_sound:
        raise ValueError("the video is not finite, or is one colour")
    return 0
