"""What every process logs to stderr: a line of text, or a JSON object in a line (`log_format`).

A JSON line has `ts` (UTC, ISO 8601), `level`, `logger`, `message`, the ids that are known (`session`,
`gateway`, `engine`), and `exception` with a traceback. An id is the process's own, or else the first one that
the message names: so whatever concerns a session says its id.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Final

__all__ = ["LOG_FORMATS", "JsonFormatter", "check_log_format", "configure_logging"]

LOG_FORMATS: Final = ("text", "json")
_TEXT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_IDS: Final[Mapping[str, re.Pattern[str]]] = {
    "session": re.compile(r"\bs_[0-9a-f]{16}\b"),
    "gateway": re.compile(r"\bg_[0-9a-f]{8}\b"),
    "engine": re.compile(r"\be_[0-9a-f]{8}\b"),
}
"""As `scheduler.store.draw_id` makes them."""


def check_log_format(name: str) -> None:
    """Raises ValueError: there is no such format."""
    if name not in LOG_FORMATS:
        raise ValueError(f"log_format must be one of {', '.join(LOG_FORMATS)}, got {name!r}")


def configure_logging(log_format: str = "text", **own: str) -> None:
    """Log from INFO on to stderr; `own` are ids of this process. May be called again when more is known."""
    is_json = log_format == "json"
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(own) if is_json else logging.Formatter(_TEXT))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    sys.excepthook = _log_uncaught if is_json else sys.__excepthook__


class JsonFormatter(logging.Formatter):
    """One object a line, in ASCII, whatever the message holds."""

    def __init__(self, own: Mapping[str, str]) -> None:
        super().__init__()
        self._own = dict(own)

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        when = datetime.fromtimestamp(record.created, UTC)
        line = {
            "ts": when.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": message,
        }
        named = {name: found[0] for name, pattern in _IDS.items() if (found := pattern.search(message))}
        line |= named | self._own
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def _log_uncaught(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
    """What ends the process."""
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, where)
        return
    logging.getLogger("process").critical("ended by an error", exc_info=(kind, error, where))
