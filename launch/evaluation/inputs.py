"""Traces and profiles of an evaluation that come from files, under names that no other content has."""

from __future__ import annotations

import hashlib
import io
import re
from pathlib import Path

from launch.profile_file import read_json
from launch.settings import SettingsError
from scheduler.sim.profile import Profile, find_profile, read_profile
from scheduler.trace import Trace, TraceError, read_trace

__all__ = ["load_profile", "load_trace"]

MIN_S, MAX_S = 10.0, 86_400.0
"""What a trace may last."""


def load_profile(name: str) -> Profile:
    """A named one, or that of a file that `turboserve profile` wrote, with the file's name and its digest.

    Raises:
        SettingsError: there is none, or the file can't be used.
    """
    try:
        if not name.endswith(".json"):
            return find_profile(name)
        content, data = read_json(name)
        return read_profile(_named(name, content), data)
    except ValueError as exc:
        raise SettingsError(str(exc)) from exc


def load_trace(path: str) -> tuple[str, Trace]:
    """(name, trace) of a trace file; the name is the file's with its digest.

    Raises:
        SettingsError: it can't be used.
    """
    try:
        content = Path(path).read_bytes()
        trace = read_trace(io.StringIO(content.decode("utf-8-sig"), newline=None))
    except (OSError, UnicodeDecodeError, TraceError) as exc:
        raise SettingsError(f"the trace {path} can't be used: {exc}") from exc
    if not MIN_S <= trace.duration_s <= MAX_S:
        raise SettingsError(
            f"the trace {path} can't be used: it lasts {trace.duration_s:g} s, not {MIN_S:g} to {MAX_S:g}"
        )
    return _named(path, content), trace


def _named(path: str, content: bytes) -> str:
    """Fit for a file's name, whatever the path holds."""
    stem = re.sub(r"[^A-Za-z0-9]+", "-", Path(path).stem)[:40].strip("-")
    return f"{stem or 'file'}-{hashlib.sha256(content).hexdigest()[:8]}"
