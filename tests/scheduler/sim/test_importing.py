"""Public formats become sessions."""

from __future__ import annotations

import json
import time

import pytest

from scheduler.sim.importing import import_trace
from scheduler.trace import EventKind, Trace, TraceError


def short(trace: Trace) -> list[tuple[float, str, str]]:
    return [(event.t, event.session, event.event.value) for event in trace.events]


def test_turns_of_a_conversation_are_one_session() -> None:
    """Who shares a prefix beyond the first block continues; the gap between turns is idle."""
    lines = [
        json.dumps({"timestamp": ms, "input_length": 1, "output_length": out, "hash_ids": blocks})
        for ms, out, blocks in ((0, 100, [0, 1]), (1_000, 40, [0, 2]), (30_000, 200, [0, 1, 5]))
    ]
    assert short(import_trace("mooncake", lines)) == [
        (0.0, "c000000", "arrive"),
        (1.0, "c000001", "arrive"),
        (3.0, "c000001", "idle"),
        (5.0, "c000000", "idle"),
        (5.0, "c000001", "depart"),
        (30.0, "c000000", "active"),
        (40.0, "c000000", "idle"),
        (42.0, "c000000", "depart"),
    ]


def test_azure_csv() -> None:
    """Seven digits of a second; a short answer is a second of video."""
    lines = [
        "TIMESTAMP,ContextTokens,GeneratedTokens",
        "2023-11-16 18:15:46.6805900,374,44",
        "2023-11-16 18:15:50.9951690,396,2",
    ]
    trace = import_trace("azure", lines)
    assert [round(event.t, 3) for event in trace.events] == [0.0, 2.2, 4.2, 4.315, 5.315, 7.315]


def test_burstgpt_csv() -> None:
    """Requests of one session belong together where the file knows them."""
    lines = [
        "Timestamp,Session ID,Model,Request tokens,Response tokens,Total tokens,Log Type",
        "5,7,ChatGPT,472,20,490,Conversation log",
        "45,7,ChatGPT,1087,20,1317,Conversation log",
    ]
    assert short(import_trace("burstgpt", lines)) == [
        (0.0, "7", "arrive"),
        (1.0, "7", "idle"),
        (40.0, "7", "active"),
        (41.0, "7", "idle"),
        (43.0, "7", "depart"),
    ]


def test_failed_requests_are_no_sessions() -> None:
    """BurstGPT gives them no response tokens. A trace of nothing else has no requests."""
    head = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type"
    failed = "5,GPT-4,100,0,100,API log"
    trace = import_trace("burstgpt", [head, failed, "45,GPT-4,100,20,120,API log"])
    assert [(event.t, event.session) for event in trace.events if event.event is EventKind.ARRIVE] == [
        (0.0, "r000000")
    ]
    with pytest.raises(TraceError, match="no requests"):
        import_trace("burstgpt", [head, failed])


def test_another_file_is_refused() -> None:
    """With a sentence."""
    for lines in (["a,b", "1,2"], ["GeneratedTokens,TIMESTAMP", "3"]):
        with pytest.raises(TraceError, match="no azure trace"):
            import_trace("azure", lines)
    with pytest.raises(ValueError, match="available: mooncake, azure, burstgpt"):
        import_trace("csv", [])


@pytest.mark.parametrize(
    ("format", "text", "words"),
    [
        (
            "azure",
            "TIMESTAMP,GeneratedTokens\n2023-11-16 18:15:46,4\n2023-11-16 18:15:50",
            "line 3: .*Generated",
        ),
        (
            "azure",
            "TIMESTAMP,GeneratedTokens\n2023-11-16 18:15:46,4\n2023-11-,4",
            "line 3: Invalid isoformat",
        ),
        ("burstgpt", "Timestamp,Response tokens\n5,20\nnan,20", "line 3: 'Timestamp' must be a number"),
        ("burstgpt", "Timestamp,Response tokens\n5,inf", "line 2: 'Response tokens' must be a number"),
        ("burstgpt", f"Timestamp,Response tokens,Session ID\n5,20,{'x' * 65}", "line 2: .* 64 characters"),
        (
            "mooncake",
            '{"timestamp": 0, "output_length": 1, "hash_ids": [0]}\n{"timest',
            "line 2: Unterminated",
        ),
        ("mooncake", '{"timestamp": 0, "output_length": 1, "hash_ids": [0, Infinity]}', "line 1: "),
        ("mooncake", '{"timestamp": NaN, "output_length": 1, "hash_ids": [0]}', "line 1: 'timestamp' must"),
        ("mooncake", "[" * 100_000, "line 1: "),
    ],
)
def test_what_can_not_be_read_is_named_by_its_line(format: str, text: str, words: str) -> None:
    """Cut off, no numbers, or what would be a trace that nobody can read again."""
    with pytest.raises(TraceError, match=f"no {format} trace: {words}"):
        import_trace(format, text.splitlines())


def test_times_without_a_zone_do_not_depend_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Berlin's clocks went from 2 to 3 in that night: it is an hour and a half all the same."""
    lines = ["TIMESTAMP,GeneratedTokens", "2024-03-31 01:45:00,20", "2024-03-31 03:15:00,20"]
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "Europe/Berlin")
        time.tzset()
        trace = import_trace("azure", lines)
    time.tzset()
    assert [event.t for event in trace.events if event.event is EventKind.ARRIVE] == [0.0, 5_400.0]
