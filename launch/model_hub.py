"""Weights by a path here or by their name on the hub: which files of a repository to take, what licence."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Final

__all__ = ["TRANSFORMER", "VAE", "choose", "find"]

_HUB_ID: Final = re.compile(r"([\w-][\w.-]*/[\w-][\w.-]*)(?::(.+))?")
_WEIGHTS: Final = (".safetensors", ".pt", ".pth")
_INDEX: Final = ".safetensors.index.json"
TRANSFORMER: Final = "transformer"
VAE: Final = "vae"
"""Folders of a diffusers repository."""


def find(
    source: str,
    file: str | None = None,
    *,
    parts: Sequence[str] = (),
    folder: str | None = None,
    say: Callable[[str], None],
) -> Path:
    """A path here, or where a download from the hub lies; the hub's client shows its own progress.

    Args:
        source: a path, or OWNER/NAME[:FILE] on the hub.
        file: which file or folder of it.
        parts: take those of these files and folders that a repository has, and return what holds them.
        folder: which one of a diffusers repository it is, where none is named.

    Raises:
        ValueError: there is no such thing, or it can't be downloaded.
    """
    path = Path(source).expanduser()
    if path.exists():
        if file is None or not path.is_dir():
            return path
        if not (path / file).exists():
            raise ValueError(f"{path} holds no {file}")
        return path / file
    match = _HUB_ID.fullmatch(source)
    if match is None:
        raise ValueError(f"nothing at {source}")
    return _download(match[1], match[2] or file, parts, folder, say)


def choose(names: Sequence[str], wanted: str | None, usual: str | None = None) -> tuple[list[str], str]:
    """(names of a repository's files to fetch, which file or folder of it then holds the weights). Pure.

    Args:
        wanted: a file or folder of it; None: there must be no doubt.
        usual: the folder to take where none is wanted and it is there.

    Raises:
        ValueError: there is no such file, or a choice; the message names what there is.
    """
    weights = [name for name in names if name.endswith(_WEIGHTS)]
    if wanted is None and usual is not None and any(name.startswith(f"{usual}/") for name in weights):
        wanted = usual
    if wanted is not None:
        folder = wanted.rstrip("/") + "/"
        found = [name for name in names if name == wanted or name.startswith(folder)]
        if not found:
            raise ValueError(f"no {wanted} among {_some(weights)}")
        return found, wanted
    shards = [name for name in names if "/" not in name and name.endswith((".safetensors", _INDEX))]
    if any(name.endswith(_INDEX) for name in shards):
        return shards, ""
    if len(weights) != 1:
        raise ValueError(f"which of {_some(weights)}? Name one: OWNER/NAME:FILE, or --file")
    return weights, weights[0]


def _in_parts(names: Sequence[str], parts: Sequence[str]) -> list[str]:
    found = [name for name in names if PurePosixPath(name).parts[0] in parts]
    if not found:
        raise ValueError(f"it has none of {', '.join(parts)}")
    return found


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:12]) + (" …" if len(names) > 12 else "") if names else "no weights at all"


def _download(
    repo: str, wanted: str | None, parts: Sequence[str], folder: str | None, say: Callable[[str], None]
) -> Path:
    try:
        import huggingface_hub as hub
    except ImportError as exc:
        raise ValueError(
            f"{repo} is not here; to download it from the hub: .venv/bin/pip install -e '.[wan]'"
        ) from exc
    try:
        info = hub.model_info(repo)
    except Exception as exc:  # whatever its client raises
        raise ValueError(f"the hub tells nothing of {repo}: {_line(exc)}") from exc
    say(f"{repo}: licence by its card: {_licence(info)}")
    names = [sibling.rfilename for sibling in info.siblings or ()]
    try:
        chosen, inside = choose(names, wanted, folder) if not parts else (_in_parts(names, parts), "")
    except ValueError as exc:
        raise ValueError(f"{repo}: {exc}") from exc
    say(f"{repo}: fetching {_some(chosen)}")
    try:
        return Path(hub.snapshot_download(repo, revision=info.sha, allow_patterns=chosen)) / inside
    except Exception as exc:
        raise ValueError(f"{repo} can't be downloaded: {_line(exc)}") from exc


def _licence(info: Any) -> str:
    card = info.card_data or {}
    return str(card.get("license_name") or card.get("license") or "it says nothing")


def _line(exc: Exception) -> str:
    return " ".join(str(exc).split())[:200] or type(exc).__name__
