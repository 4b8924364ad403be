"""Pages and tables of results."""

from __future__ import annotations

import re
import xml.etree.ElementTree as xml
from typing import Any

import pytest

from launch.loadtest.compare import comparison, text_table
from launch.loadtest.report import report
from launch.loadtest.svg import Curve, plot
from scheduler.results import common_results

RESULT: dict[str, Any] = {
    "held": False,
    "models": ["paced"],
    "policy": "slack",
    "url": "http://127.0.0.1:1",
    "date": "2026-01-01T00:00:00+00:00",
    "machine": "m, 2 cores",
    "load": {"source": "trace <x>", "seconds": 3, "time_scale": 1, "clients": 2, "processes": 1, "seed": 1},
    **common_results(
        sessions=2,
        chunks=5,
        chunk_latency_ms=[10.0, 20.0],
        ttfc_ms=[],
        waited_ms=[],
        unserved=3,
        left_waiting=2,
        cpr=[0.5, 1.0],
        cost_engine_s=6.0,
        migrations=1,
        gaps=0,
    ),
    "fair_wait_ms": 2000.0,
    "objectives": [{"name": "mean CPR", "limit": 0.9, "value": 0.75, "at_least": True, "held": False}],
    "problems": ["client 1: <b>bad</b>"],
    "worst_sessions": [
        {
            "client": 1,
            "session": "s_1",
            "cpr": 0.5,
            "stalls": 2,
            "longest_stall_ms": 1.5,
            "moves": 1,
            "chunks": 3,
        }
    ],
    "series": {
        "t": [0.0, 1.0, 2.0],
        "latency_p50_ms": [10.0, None, 20.0],
        "latency_p99_ms": [10.0, None, 20.0],
        "latency_max_ms": [10.0, None, 20.0],
        "stalled_s": [0.0, 0.5, 0.0],
    },
    "cluster_series": {
        "t": [0.0, 1.5],
        "ready": [1.0, 2.0],
        "starting": [1.0, 0.0],
        "draining": [0.0, 0.0],
        "active": [2.0, 2.0],
        "queue": [0.0, 0.0],
        "engine_s": [0.0, 3.0],
    },
    "points": {
        "chunk_ms": 750.0,
        "ttfc": [[0.1, 50]],
        "prompt": [],
        "unserved": [[2.9, 2500]],
        "cpr": [0.5, 1.0],
    },
}


def figures(page: str) -> list[xml.Element]:
    """Every plot of a page, which must be well-formed."""
    return [xml.fromstring(text) for text in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]


def test_a_report_needs_nothing_else() -> None:
    """No address to load anything from, both colour schemes, every plot well-formed, text escaped."""
    page = report(RESULT)
    assert not re.search(r"src=|href=|@import|url\(|<script", page)
    assert "prefers-color-scheme: dark" in page
    assert len(figures(page)) == 7
    assert "Load test: paced, policy slack" in page and "Not all objectives held" in page
    assert "before their first chunk: 3, of them after a wait of 2000 ms or longer: 2." in page
    assert "&lt;b&gt;bad" in page and "<b>bad" not in page and "trace &lt;x&gt;" in page


def test_a_report_of_a_load_without_chunks_is_a_page() -> None:
    """Empty curves and figures of nothing."""
    empty = RESULT | {
        "held": True,
        "models": [],
        "series": {key: [] for key in RESULT["series"]},
        "cluster_series": {key: [] for key in RESULT["cluster_series"]},
        "points": {"chunk_ms": 0.0, "ttfc": [], "prompt": [], "unserved": [], "cpr": []},
        "unserved": 0,
        "problems": [],
        "worst_sessions": [],
    }
    page = report(empty)
    assert len(figures(page)) == 7 and "All objectives held" in page and "What went wrong" not in page
    assert "An objective for the time" not in page


def test_a_report_shows_phases() -> None:
    """Where the load has some."""
    phase = {
        **{"name": "many", "begin_s": 60.0, "end_s": 120.0, "sessions": 20, "engines": 6, "engines_gone": 0},
        **{"cost_engine_s": None, "chunk_latency_ms": {"p50": 160.0, "p99": 480.0, "max": 512.0}},
        **{"stalls": 3, "stalled_s": 1.25, "gaps": 0, "repeats": 0},
    }
    page = report(RESULT | {"phases": [phase]})
    (row,) = re.findall(r"<tr><td>many, 60 to 120 s</td>(.*?)</tr>", page)
    cells = re.findall(r'<td class="n">(.*?)</td>', row)
    assert cells == ["20", "6", "0", "–", "160", "480", "512", "3", "1.25", "0", "0"]
    assert "<h2>Phases</h2>" not in report(RESULT)


def test_a_cost_that_was_never_told_is_a_dash() -> None:
    """Not 0, which would be the cheapest of all."""
    untold = RESULT | {"cost_engine_s": None}
    assert "<b>–</b><span>engine-seconds</span>" in report(untold)
    lines = text_table(RESULT, untold, ("a", "b")).splitlines()
    (cost,) = (line.split() for line in lines if line.startswith("engine-seconds"))
    assert cost == ["engine-seconds", "6", "–"]
    assert '<td>engine-seconds</td><td class="n">6</td><td class="n">–</td>' in comparison(
        RESULT, untold, ("a", "b")
    )


def test_a_comparison_shows_both_and_the_change() -> None:
    """As text and as a page; a result without curves, as the simulator's, has its figures."""
    after = {key: value for key, value in RESULT.items() if "series" not in key}
    after |= {"cost_engine_s": 3.0, "policy": "fixed", "planning_ms": {"p50": 0.1}}
    lines = text_table(RESULT, after, ("a", "b")).splitlines()
    assert lines[0].split() == ["a", "b", "change"] and lines[1].split() == [
        "paced,",
        "slack",
        "paced,",
        "fixed",
    ]
    (cost,) = (line.split() for line in lines if line.startswith("engine-seconds"))
    assert cost == ["engine-seconds", "6", "3", "-50.0", "%"]
    (planning,) = (line.split() for line in lines if line.startswith("planning"))
    assert planning == ["planning,", "ms", "p50", "–", "0.1"]
    simulated = after | {"plans": 100, "refused": 7}
    lines = text_table(RESULT | {"refused": 2}, simulated, ("a", "b")).splitlines()
    (refused,) = (line.split() for line in lines if line.startswith("refused sessions"))
    assert refused == ["refused", "sessions", "2", "–"]  # a simulation calls actions so that came too late
    page = comparison(RESULT, after, ("a", "b"))
    assert "-50.0 %" in page and len(figures(page)) == 6


@pytest.mark.parametrize("high", [0.0, 0.003, 1.0, 7.0, 749.0, 1e6])
def test_everything_is_inside_the_plot(high: float) -> None:
    """Curves, dots and limits of any size."""
    curves = [
        Curve(name="a", points=[(0.0, 0.0), (1.0, None), (9.0, high)], colour=0),
        Curve(name="b", points=[(0.0, high), (9.0, high)], colour=1, is_step=True),
        Curve(name="c", points=[(4.0, high)], colour=2, is_dots=True),
    ]
    (svg,) = figures(plot("t", curves, x_label="x", limit=high * 1.5))
    numbers = [float(n) for path in svg.iter("path") for n in re.findall(r"[-\d.]+", path.get("d", ""))]
    numbers += [float(e.get(key, "0")) for e in svg.iter() for key in ("cx", "cy", "x1", "x2", "y1", "y2")]
    assert min(numbers) >= 0 and max(numbers) <= 640
    heights = [float(e.get(key, "0")) for e in svg.iter() for key in ("cy", "y1", "y2")]
    assert max(heights) <= 220
