"""Errors that are survived: counted each, told once each."""

from __future__ import annotations

import logging

import pytest

from gateway.faults import MAX_KINDS, TOLD_EVERY_S, Faults, survived


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def raised(line: str) -> Exception:
    """From one of two lines."""
    try:
        if line == "a":
            raise ZeroDivisionError
        raise KeyError
    except (ZeroDivisionError, KeyError) as exc:
        return exc


def test_a_kind_is_told_with_its_traceback_once(caplog: pytest.LogCaptureFixture) -> None:
    """Then without, and not more than once a minute; each is counted. Another line is another kind."""
    counted: list[str] = []
    clock = Clock()
    faults = Faults(counted.append, clock)
    for now_s, line in ((0, "a"), (1, "a"), (2, "b"), (TOLD_EVERY_S, "a"), (TOLD_EVERY_S + 1, "a")):
        clock.now_s = now_s
        faults.note("link", "it is cut", raised(line))
    assert counted == ["link"] * 5
    told = [(bool(record.exc_info), record.getMessage().split(":")[0]) for record in caplog.records]
    assert told == [(True, "it is cut"), (True, "it is cut"), (False, "it is cut")]
    assert "ZeroDivisionError" in caplog.records[2].getMessage()
    assert all(record.levelno == logging.ERROR for record in caplog.records)


def test_what_is_remembered_is_bounded() -> None:
    """However many kinds there are."""
    faults = Faults(lambda _where: None)
    for number in range(3 * MAX_KINDS):
        faults.note(f"where {number}", "it is cut", raised("a"))
    assert len(faults._told_s) <= MAX_KINDS


class Follower:
    def __init__(self) -> None:
        self.faults: list[Exception] = []

    @survived
    def receive(self, value: int, *, by: int) -> None:
        assert value / by

    def receive_fault(self, exc: Exception) -> None:
        self.faults.append(exc)


def test_who_survives_hears_of_it() -> None:
    """And whoever called goes on."""
    follower = Follower()
    follower.receive(1, by=2)
    assert not follower.faults
    follower.receive(1, by=0)
    assert [type(exc) for exc in follower.faults] == [ZeroDivisionError]
