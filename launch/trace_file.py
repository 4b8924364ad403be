"""Traces in files."""

from __future__ import annotations

from launch.settings import SettingsError
from scheduler.trace import Trace, TraceError, read_trace

__all__ = ["load_trace"]


def load_trace(path: str) -> Trace:
    """Read a trace file. Raises SettingsError."""
    try:
        with open(path, encoding="utf-8-sig") as lines:
            return read_trace(lines)
    except (OSError, UnicodeDecodeError, TraceError) as exc:
        raise SettingsError(f"the trace {path} can't be used: {exc}") from exc
