"""Hostile messages through codec and session machine; `bench/fuzz.py` does the same for a million."""

from __future__ import annotations

import math

import pytest

from bench.fuzz import Fuzzed, Run
from gateway.steps import Output


def test_hostile_messages_neither_crash_nor_flood() -> None:
    """5,000 messages on some 300 connections, of a seed that the long run does not use."""
    run = Run(seed=20261126, limit_ms=math.inf)
    run.go(0, 5_000)
    assert not run.findings
    assert run.connections > 100


def test_a_planted_crash_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the connection that it happened on."""

    def crash(self: Fuzzed, now_ms: float) -> list[Output]:
        raise KeyError("planted")

    monkeypatch.setattr(Fuzzed, "receive_part", crash)
    run = Run(seed=1, limit_ms=math.inf)
    run.go(0, 500)
    assert run.findings and all("planted" in finding for finding in run.findings)
    assert run.findings[0].startswith("crash: connection ")
