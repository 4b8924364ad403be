"""Profiles on disk, as a person names them: every trouble becomes a sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from launch.settings import SettingsError

__all__ = ["read_json"]


def read_json(path: str) -> tuple[bytes, Any]:
    """What a profile's file holds, as it is and as JSON. Raises SettingsError."""
    try:
        content = Path(path).read_bytes()
        return content, json.loads(content)
    except (OSError, ValueError, RecursionError) as exc:
        raise SettingsError(f"the profile {path} can't be read: {exc}") from exc
