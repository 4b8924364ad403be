"""`turboserve compare`: two results as a table, and as a page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from launch.loadtest.compare import comparison, text_table
from launch.loadtest.config import CompareConfig
from launch.settings import SettingsError
from launch.supervisor import StartError

__all__ = ["run"]


def run(config: CompareConfig) -> int:
    """Print the table; write the page. Returns 1 where the second result is one that did not hold its
    objectives, else 0.

    Raises:
        SettingsError: a file is no result.
        StartError: the page can't be written.
    """
    before, after = _read(config.before), _read(config.after)
    names = _names(config.before, config.after)
    print(text_table(before, after, names))
    if config.html is not None:
        try:
            Path(config.html).write_text(comparison(before, after, names), encoding="utf-8")
        except OSError as exc:
            raise StartError(f"the page can't be written: {exc}") from exc
    return 0 if after.get("held", True) else 1


def _read(path: str) -> dict[str, Any]:
    try:
        result = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise SettingsError(f"{path} can't be read: {exc}") from exc
    if not isinstance(result, dict) or "chunk_latency_ms" not in result:
        raise SettingsError(f"{path} holds no results of a load test or simulation")
    return result


def _names(before: str, after: str) -> tuple[str, str]:
    """File names without endings, or whole paths where these are equal."""
    stems = Path(before).stem, Path(after).stem
    return stems if stems[0] != stems[1] else (before, after)
