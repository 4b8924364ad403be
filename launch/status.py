"""`turboserve status`: what a cluster does now, as tables; with --every-s live."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from rich.console import Console
from rich.live import Live
from rich.text import Text

from launch.config import StatusConfig, http_address
from launch.http_get import get, read_cluster

__all__ = ["render", "run"]

_TIMEOUT_S: Final = 5.0
_ENGINE_COLUMNS: Final = ("id", "state", "sessions", "capacity", "load", "chunk_ms")
_DECISIONS: Final = 5
_KEYS: Final = frozenset({"policy", "budget", "queue", "engines", "sessions"})
_LINES_AROUND: Final = 3
"""Of a table that is cut: an empty one, its head, and what says how many more there are."""
_SESSION_COLUMNS: Final = ("id", "state", "engine", "epoch", "seq", "slack_ms")


class _RefusedError(OSError):
    """An answer, but not the one: a token is missing, or the gateway itself gets none from Redis."""


async def run(config: StatusConfig) -> int:
    """Print the tables, once or live until Ctrl-C. Returns 0, or 1 when the cluster does not answer."""
    if config.every_s:
        return await _run_live(config)
    try:
        cluster = await _ask(config)
    except (OSError, ValueError) as exc:
        print(f"turboserve status: {_explain(config, exc)}", file=sys.stderr)
        return 1
    print(render(cluster))
    return 0


async def _run_live(config: StatusConfig) -> int:
    """In place, on a screen of its own; without a terminal that has one, one after the other.

    A cluster that does not answer is asked again.
    """
    console = Console(highlight=False)
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    in_place = console.is_terminal and not console.is_dumb_terminal
    with Live(console=console, screen=in_place, auto_refresh=False) as live:
        while not stop.is_set():
            text = await _show(config, console.height if in_place else None)
            if in_place:
                live.update(Text(text, no_wrap=True, overflow="ellipsis"), refresh=True)
            else:
                print(text, end="\n\n", flush=True)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), config.every_s)
    return 0


async def _show(config: StatusConfig, height: int | None) -> str:
    head = f"{config.url}  {datetime.now():%H:%M:%S}  every {config.every_s:g} s, Ctrl-C ends"
    try:
        return f"{head}\n\n{render(await _ask(config), None if height is None else height - 2)}"
    except (OSError, ValueError) as exc:
        return f"{head}\n\n{_explain(config, exc)}"


async def _ask(config: StatusConfig) -> Mapping[str, Any]:
    """Raises OSError: it does not answer; ValueError: not with a cluster's state."""
    status, body = await get(_address(config), timeout_s=_TIMEOUT_S, token=config.token or None)
    if status != 200:
        raise _RefusedError(f"HTTP status {status}: {body[:200].decode(errors='replace').strip()}")
    return read_cluster(body, _KEYS)


def _address(config: StatusConfig) -> str:
    return http_address(config.url) + "/v1/cluster"


def _explain(config: StatusConfig, exc: Exception) -> str:
    if isinstance(exc, _RefusedError):
        return f"{_address(config)} answers with {exc}"
    return f"no cluster answers at {_address(config)}: {str(exc) or f'nothing came in {_TIMEOUT_S:g} s'}"


def render(cluster: Mapping[str, Any], height: int | None = None) -> str:
    """The answer of `/v1/cluster` as text; with `height`, in so many lines if that is possible: the first
    engines and sessions, and how many more there are.
    """
    summary = (
        f"policy {cluster['policy']}, budget {cluster['budget']} engines, {cluster['queue']} sessions waiting"
    )
    states = Counter(session["state"] for session in cluster["sessions"])
    if states:
        summary += " (" + ", ".join(f"{count} {state}" for state, count in sorted(states.items())) + ")"
    engines, sessions = cluster["engines"], cluster["sessions"]
    decisions = cluster.get("decisions", [])[:_DECISIONS]
    num_engines, num_sessions = len(engines), len(sessions)
    if height is not None:
        left = height - 1 - 2 * _LINES_AROUND - (2 + len(decisions) if decisions else 0)
        num_engines = max(1, min(num_engines, max(left // 2, left - num_sessions)))
        num_sessions = max(1, left - num_engines)
    parts = [summary, _table("engines", _ENGINE_COLUMNS, engines, num_engines)]
    parts.append(_table("sessions", _SESSION_COLUMNS, sessions, num_sessions))
    if decisions:
        parts.append("\n".join(["newest decisions", *map(_decision, decisions)]))
    return "\n\n".join(parts)


def _decision(decision: Mapping[str, Any]) -> str:
    at = datetime.fromtimestamp(decision["t_ms"] / 1000)
    return f"{at:%H:%M:%S}  {decision['text']}"


def _table(title: str, columns: Sequence[str], rows: Sequence[Mapping[str, Any]], shown: int) -> str:
    if not rows:
        return f"no {title}"
    lines = [tuple(columns), *(tuple(_cell(row.get(column)) for column in columns) for row in rows[:shown])]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    table = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    if len(rows) > shown:
        table.append(f"… and {len(rows) - shown} more {title}")
    return "\n".join(table)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if isinstance(value, float) else str(value)
