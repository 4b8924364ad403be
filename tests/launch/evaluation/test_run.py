"""`turboserve evaluate`, `simulate` and `trace` from their command lines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launch import cli
from scheduler.results import flat

COMMON = """
    sessions chunks chunk_latency_ms.p50 chunk_latency_ms.p95 chunk_latency_ms.p99 chunk_latency_ms.max
    ttfc_ms.p50 ttfc_ms.p99 cpr.mean cpr.p5 cpr.min cost_engine_s migrations gaps
    planning_ms.p50 planning_ms.p99 planning_ms.max
""".split()


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """A minute of sessions."""
    path = tmp_path / "trace.jsonl"
    flags = ("--family", "steady", "--duration-s", "60", "--seed", "1")
    assert cli.main(["trace", "generate", *flags, "-o", str(path)]) == 0
    return path


def test_simulate_writes_the_contract(
    trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The keys that load tests have, too; and a table."""
    out = tmp_path / "out.json"
    flags = ("--policy", "slack", "--engines", "1:4", "--profile", "paper", "--seed", "1", "--json", str(out))
    assert cli.main(["simulate", "--trace", str(trace), *flags]) == 0
    results = json.loads(out.read_text())
    numbers = flat(results)
    assert all(numbers[name] is not None for name in COMMON)
    assert f"cost_engine_s            {results['cost_engine_s']:,}" in capsys.readouterr().out


def test_traces_are_described_and_scaled(
    trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Twice as fast is half as long."""
    out = tmp_path / "fast.jsonl"
    assert cli.main(["trace", "scale", str(trace), "--time-scale", "2", "-o", str(out)]) == 0
    capsys.readouterr()
    said = []
    for path in (trace, out):
        assert cli.main(["trace", "describe", str(path)]) == 0
        said.append(dict(line.split() for line in capsys.readouterr().out.splitlines()))
    assert float(said[1]["duration_s"]) == pytest.approx(float(said[0]["duration_s"]) / 2, abs=0.1)
    assert said[0]["sessions"] == said[1]["sessions"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["simulate", "--trace", "none.jsonl"], "the trace none.jsonl can't be used"),
        (["simulate", "--trace", "{trace}", "--policy", "best"], "policy 'best' does not exist; available:"),
        (["simulate", "--trace", "{trace}", "--profile", "x"], "profile 'x' does not exist; available:"),
        (["simulate", "--trace", "{trace}", "--engines", "4:2"], "MIN not above MAX"),
        (["simulate", "--trace", "{trace}", "--mtbf-s", "0"], "--mtbf-s must be above 0"),
        (["simulate", "--trace", "{trace}", "--speeds", "1", "nan"], "--speeds must be above 0"),
        (["simulate", "--trace", "{trace}", "--start-s", "-1"], "--start-s must not be negative"),
        (["simulate", "--trace", "{trace}", "--seed", "-1"], "--seed must not be negative"),
        (["trace", "describe", "{binary}"], "can't be used: 'utf-8' codec"),
        (["trace", "generate", "--intensity", "0"], "must be above 0"),
        (["trace", "import", "{trace}", "--format", "azure"], "this is no azure trace"),
        (["evaluate", "--dir", "d", "--traces", "x"], "trace 'x' does not exist; available:"),
        (["evaluate", "--dir", "d", "--duration-s", "inf"], "duration-s 10 to 86400"),
        (["evaluate", "--dir", "d", "--cuts", "1"], "cuts must not be negative, and 0 must be among them"),
    ],
)
def test_bad_arguments_end_with_a_sentence(
    arguments: list[str], sentence: str, trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And status 2."""
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe")
    assert cli.main([text.format(trace=trace, binary=binary) for text in arguments]) == 2
    assert sentence in capsys.readouterr().err


def test_an_evaluation_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """What is there is not run again, what is missing is, and the tables come out the same."""
    flags = ("--traces", "steady", "--sizes", "1", "--duration-s", "20", "--workers", "1", "--cuts", "0")
    command = ["evaluate", "--dir", str(tmp_path), *flags, "--worlds", "failures"]
    assert cli.main(command) == 0
    page, runs = (tmp_path / "evaluation.html").read_text(), sorted((tmp_path / "runs").iterdir())
    assert "Against the paper" in page and page.count("<svg") == 3 and len(runs) > 8
    kept, gone = runs[0], runs[-1]
    before_ns = kept.stat().st_mtime_ns
    gone.unlink()
    assert cli.main(command) == 0
    assert kept.stat().st_mtime_ns == before_ns and gone.exists()
    assert (tmp_path / "evaluation.html").read_text() == page
