"""`turboserve status`: what a cluster does now, as tables; with --every-s live."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from rich.console import Console
from rich.live import Live
from rich.text import Text

from launch.config import StatusConfig
from launch.http_get import get

__all__ = ["render", "run"]

_TIMEOUT_S: Final = 5.0
_ENGINE_COLUMNS: Final = ("id", "state", "sessions", "capacity", "load", "chunk_ms")
_DECISIONS: Final = 5
_SESSION_COLUMNS: Final = ("id", "state", "engine", "epoch", "seq", "slack_ms")


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
    """In place, on a screen of its own; without a terminal one after the other.

    A cluster that does not answer is asked again.
    """
    console = Console(highlight=False)
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    with Live(console=console, screen=console.is_terminal, auto_refresh=False) as live:
        while not stop.is_set():
            text = await _show(config)
            if console.is_terminal:
                live.update(Text(text, no_wrap=True, overflow="ellipsis"), refresh=True)
            else:
                print(text, end="\n\n", flush=True)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), config.every_s)
    return 0


async def _show(config: StatusConfig) -> str:
    head = f"{config.url}  {datetime.now():%H:%M:%S}  every {config.every_s:g} s, Ctrl-C ends"
    try:
        return f"{head}\n\n{render(await _ask(config))}"
    except (OSError, ValueError) as exc:
        return f"{head}\n\n{_explain(config, exc)}"


async def _ask(config: StatusConfig) -> Mapping[str, Any]:
    """Raises OSError: it does not answer; ValueError: not with a cluster's state."""
    status, body = await get(_address(config), timeout_s=_TIMEOUT_S, token=config.token)
    if status != 200:
        raise ConnectionError(f"HTTP status {status}: {body[:200].decode(errors='replace').strip()}")
    cluster: Mapping[str, Any] = json.loads(body)
    return cluster


def _address(config: StatusConfig) -> str:
    return config.url.rstrip("/") + "/v1/cluster"


def _explain(config: StatusConfig, exc: Exception) -> str:
    return f"no cluster answers at {_address(config)}: {exc or 'timeout'}"


def render(cluster: Mapping[str, Any]) -> str:
    """The answer of `/v1/cluster` as text."""
    summary = (
        f"policy {cluster['policy']}, budget {cluster['budget']} engines, {cluster['queue']} sessions waiting"
    )
    states = Counter(session["state"] for session in cluster["sessions"])
    if states:
        summary += " (" + ", ".join(f"{count} {state}" for state, count in sorted(states.items())) + ")"
    parts = [summary, _table("engines", _ENGINE_COLUMNS, cluster["engines"])]
    parts.append(_table("sessions", _SESSION_COLUMNS, cluster["sessions"]))
    if decisions := cluster.get("decisions", [])[:_DECISIONS]:
        parts.append("\n".join(["newest decisions", *map(_decision, decisions)]))
    return "\n\n".join(parts)


def _decision(decision: Mapping[str, Any]) -> str:
    at = datetime.fromtimestamp(decision["t_ms"] / 1000)
    return f"{at:%H:%M:%S}  {decision['text']}"


def _table(title: str, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return f"no {title}"
    lines = [tuple(columns), *(tuple(_cell(row.get(column)) for column in columns) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if isinstance(value, float) else str(value)
