"""Public traces of language-model services as traces of video sessions. Pure.

A request is a time in which its user wants video, as long as its answer's tokens say; the time to the next
request of the same conversation is idle. Requests without a conversation are sessions of their own.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from scheduler.trace import MAX_SESSION_CHARS, EventKind, Trace, TraceError, TraceEvent

__all__ = ["FORMATS", "TOKENS_PER_S", "import_trace"]

TOKENS_PER_S: Final = 20.0
"""An answer of 300 tokens is 15 s of video, the mean of the demo trace."""
MIN_ACTIVE_S: Final = 1.0
LINGER_S: Final = 2.0
"""A session leaves so long after its last video, idle."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request of a service."""

    t: float
    tokens: float
    conversation: str
    """"" if it is not known."""


def import_trace(format: str, lines: Iterable[str], *, tokens_per_s: float = TOKENS_PER_S) -> Trace:
    """Parse and convert.

    Raises:
        ValueError: there is no such format, or `tokens_per_s` is not above 0.
        TraceError: a line can't be read; it says which and why.
    """
    read = FORMATS.get(format)
    if read is None:
        raise ValueError(f"format {format!r} does not exist; available: {', '.join(FORMATS)}")
    if not tokens_per_s > 0:
        raise ValueError(f"tokens_per_s must be above 0, got {tokens_per_s:g}")
    counted = _Counted(lines)
    try:
        requests = sorted(read(counted), key=lambda request: request.t)
    except UnicodeDecodeError as exc:
        raise TraceError(f"this is no {format} trace: {exc}") from exc
    except (ValueError, TypeError, OverflowError, RecursionError, csv.Error) as exc:
        raise TraceError(f"this is no {format} trace: line {counted.number}: {exc}") from exc
    if not requests:
        raise TraceError("the trace has no requests")
    return _sessions(requests, tokens_per_s)


class _Counted:
    """Lines, one after another, and the number of the newest."""

    def __init__(self, lines: Iterable[str]) -> None:
        self._lines = iter(lines)
        self.number = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        text = next(self._lines)
        self.number += 1
        return text


def _sessions(requests: list[Request], tokens_per_s: float) -> Trace:
    begin_s = requests[0].t
    by_session: dict[str, list[tuple[float, float]]] = {}
    for number, request in enumerate(requests):
        spans = by_session.setdefault(request.conversation or f"r{number:06}", [])
        t = request.t - begin_s
        end = t + max(MIN_ACTIVE_S, request.tokens / tokens_per_s)
        if spans and t <= spans[-1][1]:
            spans[-1] = (spans[-1][0], max(end, spans[-1][1]))
        else:
            spans.append((t, end))
    events: list[TraceEvent] = []
    for session, spans in by_session.items():
        for number, (start, end) in enumerate(spans):
            kind = EventKind.ACTIVE if number else EventKind.ARRIVE
            events.append(TraceEvent(t=start, session=session, event=kind))
            events.append(TraceEvent(t=end, session=session, event=EventKind.IDLE))
        events.append(TraceEvent(t=spans[-1][1] + LINGER_S, session=session, event=EventKind.DEPART))
    return Trace(tuple(sorted(events, key=lambda event: event.t)))


def _read_mooncake(lines: Iterable[str]) -> list[Request]:
    """JSON lines; a request continues the latest that shares its longest prefix beyond block 0."""
    owner: dict[tuple[int, int], str] = {}
    """(place in the prefix, block) → the conversation that had it last."""
    requests: list[Request] = []
    for number, text in enumerate(line for line in lines if line.strip()):
        line = json.loads(text)
        blocks = [int(block) for block in _field(line, "hash_ids")]
        conversation = f"c{number:06}"
        for at in range(len(blocks) - 1, 0, -1):
            found = owner.get((at, blocks[at]))
            if found is not None:
                conversation = found
                break
        for at in range(1, len(blocks)):
            owner[at, blocks[at]] = conversation
        t = _number(line, "timestamp") / 1000
        requests.append(Request(t, _number(line, "output_length"), conversation))
    return requests


def _field(row: Any, name: str) -> Any:
    """Raises ValueError: there is none."""
    if not isinstance(row, dict) or row.get(name) is None:
        raise ValueError(f"there is no {name!r}")
    return row[name]


def _number(row: Any, name: str) -> float:
    """Raises ValueError: there is none, or it is no finite number."""
    value = _field(row, name)
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{name!r} must be a number, not {value!r}")
    return number


def _read_azure(lines: Iterable[str]) -> list[Request]:
    """CSV: TIMESTAMP, ContextTokens, GeneratedTokens."""
    return [
        Request(_timestamp_s(_field(row, "TIMESTAMP")), _number(row, "GeneratedTokens"), "")
        for row in csv.DictReader(lines)
    ]


def _timestamp_s(text: str) -> float:
    """Some have seven digits of a second, which `fromisoformat` refuses. Where no zone is said it is UTC: the
    clocks of this machine's zone may have been put forward or back amid the trace."""
    whole, _, rest = text.strip().partition(".")
    digits = rest[: len(rest) - len(rest.lstrip("0123456789"))]
    zone = rest[len(digits) :]
    at = datetime.fromisoformat(whole + zone)
    at = at if at.tzinfo is not None else at.replace(tzinfo=UTC)
    return at.timestamp() + float(f"0.{digits or 0}")


def _read_burstgpt(lines: Iterable[str]) -> list[Request]:
    """CSV: Timestamp in seconds, Response tokens, perhaps a Session ID. No tokens: the request failed."""
    requests = (
        Request(_number(row, "Timestamp"), _number(row, "Response tokens"), _session_id(row))
        for row in csv.DictReader(lines)
    )
    return [request for request in requests if request.tokens > 0]


def _session_id(row: Mapping[str, str | None]) -> str:
    name = row.get("Session ID") or ""
    if len(name) > MAX_SESSION_CHARS:
        raise ValueError(f"a 'Session ID' may have {MAX_SESSION_CHARS} characters, this one has {len(name)}")
    return name


FORMATS: Final[Mapping[str, Callable[[Iterable[str]], list[Request]]]] = {
    "mooncake": _read_mooncake,
    "azure": _read_azure,
    "burstgpt": _read_burstgpt,
}
