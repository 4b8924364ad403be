"""Files that hold the result of long work: looked at before it begins."""

from __future__ import annotations

import os
from pathlib import Path

from launch.supervisor import StartError

__all__ = ["check_writable"]


def check_writable(path: str) -> None:
    """Raises StartError: no file can be written there."""
    file = Path(path)
    if not file.parent.is_dir():
        raise StartError(f"{path} can't be written: there is no folder {file.parent}")
    if file.is_dir():
        raise StartError(f"{path} can't be written: it is a folder")
    if not os.access(file if file.exists() else file.parent, os.W_OK):
        raise StartError(f"{path} can't be written: that is not allowed")
