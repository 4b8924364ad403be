"""Lines of text, and lines of JSON."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from typing import Any

import pytest

from scheduler.config import SchedulerConfig
from scheduler.logs import JsonFormatter

SESSION, OTHER = "s_0123456789abcdef", "s_fedcba9876543210"


def line_of(message: str, *args: object, exc: BaseException | None = None, **own: str) -> dict[str, Any]:
    error = (type(exc), exc, None) if exc is not None else None
    record = logging.LogRecord("gateway.link", logging.INFO, __file__, 1, message, args, error)
    record.created = 1_800_000_000.25
    text = JsonFormatter(own).format(record)
    assert "\n" not in text and text.isascii()
    found: dict[str, Any] = json.loads(text)
    return found


def test_a_line_says_what_is_known() -> None:
    line = line_of("%s: flow to %s", SESSION, "e_00000001", gateway="g_00000002")
    assert line == {
        "ts": "2027-01-15T08:00:00.250Z",
        "level": "INFO",
        "logger": "gateway.link",
        "message": f"{SESSION}: flow to e_00000001",
        "session": SESSION,
        "gateway": "g_00000002",
        "engine": "e_00000001",
    }


def test_ids() -> None:
    """The first session is meant; a process is itself whomever it names; words that look alike are no ids."""
    assert line_of("%s gives way to %s", SESSION, OTHER)["session"] == SESSION
    assert line_of("e_00000002 does not answer", engine="e_00000001")["engine"] == "e_00000001"
    assert line_of("s_0123 %s0 the_g_00000001", SESSION).keys() == {"ts", "level", "logger", "message"}


def test_nothing_breaks_a_line() -> None:
    assert line_of("a\nb \ud800 é")["message"] == "a\nb \ud800 é"
    assert line_of("oh", exc=ValueError("x\ny"))["exception"] == "ValueError: x\ny"


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_what_ends_a_process_is_logged(log_format: str) -> None:
    """In JSON a traceback is part of a line; a second call knows more and repeats nothing."""
    program = (
        "import logging; from scheduler.logs import configure_logging; configure_logging();"
        f"configure_logging({log_format!r}, engine='e_00000001'); logging.getLogger('a').info('b'); 1 / 0"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    lines = done.stderr.splitlines()
    assert done.returncode == 1
    if log_format == "text":
        assert lines[0].endswith(" INFO a: b") and lines[-1] == "ZeroDivisionError: division by zero"
        return
    told, ended = map(json.loads, lines)
    assert (told["logger"], told["message"], told["engine"]) == ("a", "b", "e_00000001")
    assert ended["level"] == "CRITICAL" and ended["exception"].endswith("division by zero")


def test_another_format_is_refused() -> None:
    with pytest.raises(ValueError, match="log_format must be one of text, json, got 'xml'"):
        SchedulerConfig(redis="redis://h", log_format="xml")
