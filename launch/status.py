"""`turboserve status`: what a cluster does now, as tables."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from launch.config import StatusConfig
from launch.http_get import get

__all__ = ["render", "run"]

_TIMEOUT_S: Final = 5.0
_ENGINE_COLUMNS: Final = ("id", "state", "sessions", "capacity", "load", "chunk_ms")
_DECISIONS: Final = 5
_SESSION_COLUMNS: Final = ("id", "state", "engine", "epoch", "seq", "slack_ms")


async def run(config: StatusConfig) -> int:
    """Print the tables. Returns 0, or 1 when the cluster does not answer."""
    url = config.url.rstrip("/") + "/v1/cluster"
    try:
        status, body = await get(url, timeout_s=_TIMEOUT_S, token=config.token)
        if status != 200:
            raise ConnectionError(f"HTTP status {status}: {body[:200].decode(errors='replace').strip()}")
        cluster = json.loads(body)
    except (OSError, ValueError) as exc:
        print(f"turboserve status: no cluster answers at {url}: {exc or 'timeout'}", file=sys.stderr)
        return 1
    print(render(cluster))
    return 0


def render(cluster: Mapping[str, Any]) -> str:
    """The answer of `/v1/cluster` as text."""
    summary = (
        f"policy {cluster['policy']}, budget {cluster['budget']} engines, {cluster['queue']} sessions waiting"
    )
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
