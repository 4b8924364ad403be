"""`turboserve evaluate`, `simulate` and `trace` from their command lines."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from launch import cli
from launch.evaluation import run
from launch.evaluation.inputs import load_trace
from launch.evaluation.run import _folder_of_runs
from scheduler.results import flat
from scheduler.sim.profile import read_profile
from tests.cluster import SCALE, wait_for

COMMON = """
    sessions chunks chunk_latency_ms.p50 chunk_latency_ms.p95 chunk_latency_ms.p99 chunk_latency_ms.max
    ttfc_ms.p50 ttfc_ms.p99 waited_ms.p50 waited_ms.p95 waited_ms.p99 waited_ms.max unserved left_waiting
    cpr.mean cpr.p5 cpr.min cost_engine_s migrations gaps
    planning_ms.p50 planning_ms.p99 planning_ms.max
""".split()

SHORT = """{"t": 0, "session": "a", "event": "arrive"}
{"t": 1, "session": "a", "event": "depart"}
"""
PROFILE: dict[str, dict[str, Any]] = {
    "model": {
        "name": "small",
        "weights_hash": "",
        "state_version": 1,
        "width": 96,
        "height": 96,
        "fps": 16,
        "chunk_frames": 12,
        "controls": False,
    },
    "costs": {
        "buckets": [12],
        "pass_ms": [[60.0, 80.0]],
        "decode_ms": 20.0,
        "chunk_passes": 5,
        "first_chunk_passes": 5,
    },
    "migration": {"alpha_ms": 8.0, "bytes_per_ms": 1e6, "slab_bytes": 4_000_000, "rebuild_ms": 240.0},
    "memory": {"sessions_that_fit": 9},
}
"""As `turboserve profile` writes it."""


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
        (["simulate", "--trace", "{trace}", "--speeds", "1", "1e300"], "--speeds must be at most 1000"),
        (["simulate", "--trace", "{trace}", "--start-s", "-1"], "--start-s must not be negative"),
        (["simulate", "--trace", "{trace}", "--seed", "-1"], "--seed must not be negative"),
        (["trace", "describe", "{binary}"], "can't be used: 'utf-8' codec"),
        (["trace", "generate", "--intensity", "0"], "must be above 0"),
        (["trace", "import", "{trace}", "--format", "azure"], "this is no azure trace"),
        (["evaluate", "--dir", "d", "--traces", "x"], "trace 'x' does not exist; available:"),
        (["evaluate", "--dir", "d", "--traces"], "name a family with --traces, or a file with --trace"),
        (["evaluate", "--dir", "d", "--trace", "none.jsonl"], "the trace none.jsonl can't be used"),
        (["evaluate", "--dir", "d", "--trace", "{short}"], "it lasts 1 s, not 10 to 86400"),
        (["evaluate", "--dir", "d", "--profiles", "x"], "profile 'x' does not exist; available:"),
        (["evaluate", "--dir", "d", "--profiles", "x.json"], "the profile x.json can't be read"),
        (
            ["evaluate", "--dir", "d", "--profiles", "{odd}"],
            "is not a profile that `turboserve profile` wrote",
        ),
        (["evaluate", "--dir", "d", "--duration-s", "inf"], "duration-s 10 to 86400"),
        (["evaluate", "--dir", "d", "--sizes", "8", "2049"], "sizes must be at most 2048"),
        (["evaluate", "--dir", "d", "--first-seed", "-1"], "first-seed must not be negative"),
        (["evaluate", "--dir", "d", "--profiles", "{short}.json"], "can't be read: Extra data"),
        (["simulate", "--trace", "{trace}", "--profile", "{short}.json"], "can't be read: Extra data"),
        (["simulate", "--trace", "{trace}", "--mtbf-s", "1e-300"], "is more than 1,000,000 deaths"),
        (["trace", "scale", "{trace}", "--factor", "inf"], "at most a million sessions"),
        (["trace", "scale", "{trace}", "--time-scale", "1e-9"], "a trace may last 10000000 s"),
        (["evaluate", "--dir", "d", "--cuts", "1"], "cuts must not be negative, and 0 must be among them"),
    ],
)
def test_bad_arguments_end_with_a_sentence(
    arguments: list[str], sentence: str, trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And status 2."""
    files = {name: tmp_path / name for name in ("binary", "short.jsonl", "odd.json", "short.jsonl.json")}
    contents = (b"\xff\xfe", SHORT.encode(), b"{}", SHORT.encode())
    for path, content in zip(files.values(), contents, strict=True):
        path.write_bytes(content)
    paths = {path.stem: str(path) for path in files.values()} | {"trace": str(trace)}
    assert cli.main([text.format(**paths) for text in arguments]) == 2
    assert sentence in capsys.readouterr().err


def test_an_evaluation_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """What is there is not run again, what is missing is, and the tables come out the same."""
    flags = ("--traces", "steady", "--sizes", "1", "--duration-s", "20", "--workers", "1", "--cuts", "0")
    command = ["evaluate", "--dir", str(tmp_path), *flags, "--worlds", "failures"]
    assert cli.main(command) == 0
    page, runs = (tmp_path / "evaluation.html").read_text(), sorted((tmp_path / "runs").glob("*/*.json"))
    assert "Against the paper" in page and page.count("<svg") == 3 and len(runs) > 8
    kept, cut, gone = runs[0], runs[1], runs[-1]
    whole = cut.read_text()
    cut.write_text(whole[:20])  # as a power cut may leave it
    before_ns = kept.stat().st_mtime_ns
    gone.unlink()
    assert cli.main(command) == 0
    assert kept.stat().st_mtime_ns == before_ns and gone.exists() and cut.read_text() == whole
    assert (tmp_path / "evaluation.html").read_text() == page


DIES_AT_WORK = """
import os, signal, sys
from launch import cli
from launch.evaluation import run

replace, left = run._replace, 2

def replace_and_die(*what):
    global left
    replace(*what)
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)

run._replace = replace_and_die
raise SystemExit(cli.main(["evaluate", *sys.argv[1:]]))
"""
"""An evaluation that is killed when it has written two results: whoever watched it might come too late."""


def test_a_killed_evaluation_goes_on(tmp_path: Path) -> None:
    """Killed while two processes simulate: what they had finished is not run again, and is whole."""
    cut, whole = tmp_path / "cut", tmp_path / "whole"
    flags = (
        "--traces",
        "steady",
        "--sizes",
        "1",
        "--duration-s",
        "60",
        "--cuts",
        "0",
        "--worlds",
        "failures",
    )
    command = [sys.executable, "-c", DIES_AT_WORK, "--dir", str(cut), *flags, "--workers", "2"]
    with subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL) as evaluation:
        assert evaluation.wait(60 * SCALE) == -signal.SIGKILL
        wait_for("no process is left", lambda: not _group(evaluation.pid))
    kept = {path: path.stat().st_mtime_ns for path in cut.glob("runs/*/*.json")}
    assert len(kept) == 2 and not (cut / "evaluation.md").exists()
    for folder in (cut, whole):
        assert cli.main(["evaluate", "--dir", str(folder), *flags, "--workers", "2"]) == 0
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert (cut / "evaluation.md").read_text() == (whole / "evaluation.md").read_text()


def test_an_interrupted_evaluation_ends_at_once(tmp_path: Path) -> None:
    """By a terminal's Ctrl-C, which all its processes get: what has not been begun is not run first."""
    long = ("--traces", "steady", "--sizes", "16", "--duration-s", "20000", "--workers", "2")
    command = [sys.executable, "-m", "launch", "evaluate", "--dir", str(tmp_path), *long]
    with subprocess.Popen(
        command,
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # who runs the tests may ignore it
    ) as evaluation:
        try:
            wait_for("both processes", lambda: len(_group(evaluation.pid)) == 3)
            os.killpg(evaluation.pid, signal.SIGINT)
            _, said = evaluation.communicate(timeout=60 * SCALE)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(evaluation.pid, signal.SIGKILL)
    assert evaluation.returncode == 130 and said.endswith(
        "stopped; the same command goes on with what is missing\n"
    )
    assert "Traceback" not in said and not _group(evaluation.pid)


def _group(leader: int) -> list[int]:
    """Processes of a group that have not ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, group = path.read_text().rpartition(")")[2].split()[:3]
            if int(group) == leader and state != "Z":
                found.append(int(path.parent.name))
    return found


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("model", {"fps": 0}),
        ("model", {"fps": "16"}),
        ("costs", {"pass_ms": [[float("nan"), 80.0]]}),
        ("costs", {"pass_ms": [[0.0, 80.0]]}),
        ("costs", {"pass_ms": [[-60.0, 80.0]]}),
        ("costs", {"pass_ms": []}),
        ("costs", {"pass_ms": [[60.0, 1e-300]]}),
        ("costs", {"buckets": [0]}),
        ("costs", {"buckets": [6, 12]}),
        ("costs", {"decode_ms": None}),
        ("migration", {"bytes_per_ms": 0}),
        ("migration", {"slab_bytes": "4"}),
        ("migration", {"rebuild_ms": float("inf")}),
        ("memory", {"sessions_that_fit": 0}),
    ],
)
def test_a_profile_that_no_engine_could_have_is_refused(part: str, change: dict[str, object]) -> None:
    """With its name, before anything is simulated."""
    data: dict[str, Any] = {**PROFILE, part: {**PROFILE[part], **change}}
    with pytest.raises(ValueError, match="mine is not a profile that `turboserve profile` wrote"):
        read_profile("mine", data)


def test_results_that_can_not_be_written_are_found_first(
    trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And status 1."""
    assert cli.main(["simulate", "--trace", str(trace), "--json", "/nowhere/out.json"]) == 1
    captured = capsys.readouterr()
    assert "there is no folder /nowhere" in captured.err and not captured.out


def test_results_of_other_code_are_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are kept apart, which is said once."""
    folder = _folder_of_runs(tmp_path)
    (folder / "a.json").write_text("{}")
    assert _folder_of_runs(tmp_path) == folder and capsys.readouterr().err == ""
    monkeypatch.setattr(run, "digest_of", lambda root, module: "0123456789abcdef")
    other = _folder_of_runs(tmp_path)
    assert other != folder and list(other.iterdir()) == []
    assert "the code has changed since 1 results" in capsys.readouterr().err
    assert _folder_of_runs(tmp_path) == other and capsys.readouterr().err == ""


def test_traces_and_profiles_from_files(tmp_path: Path) -> None:
    """An imported trace on a profile of the reader's own, and ablations where engines start slowly, too."""
    lines = ["Timestamp,Response tokens", *(f"{n},{100 + 40 * (n % 3)}" for n in range(0, 40, 4))]
    (tmp_path / "burst.csv").write_text("\n".join(lines))
    trace, profile = tmp_path / "../own_trace/of me.jsonl", tmp_path / "my_profile.json"
    trace.parent.mkdir()
    trace, command = trace.resolve(), ["trace", "import", str(tmp_path / "burst.csv")]
    assert cli.main([*command, "--format", "burstgpt", "-o", str(trace)]) == 0
    profile.write_text(json.dumps(PROFILE))
    flags = ("--traces", "--trace", str(trace), str(trace), "--profiles", str(profile), "--sizes", "2")
    world = ("--workers", "1", "--cuts", "0", "--worlds", "start-up")
    assert cli.main(["evaluate", "--dir", str(tmp_path / "out"), *flags, *world]) == 0
    names = {path.name for path in (tmp_path / "out" / "runs").glob("*/*.json")}
    assert all(re.match(r"of-me-[0-9a-f]{8}_2_my-profile-[0-9a-f]{8}_0_", name) for name in names)
    page = (tmp_path / "out" / "evaluation.md").read_text()
    ablations = page[page.index("## Ablations") : page.index("## What the paper leaves out")]
    for world_, part in product(("as in the paper", "start-up"), ("slack-blind", "slack without scaling")):
        (row,) = [row for row in ablations.splitlines() if row.startswith(f"| {world_} | {part} | ")]
        assert "%" in row


def test_files_of_windows_are_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They begin with a mark of the byte order."""
    table, trace = tmp_path / "t.csv", tmp_path / "t.jsonl"
    table.write_text("Timestamp,Response tokens\n5,200\n", encoding="utf-8-sig")
    assert cli.main(["trace", "import", str(table), "--format", "burstgpt"]) == 0
    trace.write_text(capsys.readouterr().out, encoding="utf-8-sig")
    assert cli.main(["trace", "describe", str(trace)]) == 0
    assert load_trace(str(trace))[1].duration_s == 12.0


def test_a_trace_with_nobody_in_it_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ten seconds of few sessions may have none."""
    flags = ("--traces", "demo", "--sizes", "1", "--duration-s", "10", "--first-seed", "12", "--workers", "1")
    assert cli.main(["evaluate", "--dir", str(tmp_path), *flags]) == 2
    assert "there is nobody in demo_1_paper_12_10" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("active_s", "size", "words"),
    [(0.0, 2, "nobody in it is active"), (1.0, 2048, "it would take 737,280 sessions")],
)
def test_traces_that_can_not_fill_a_cluster_are_refused(
    active_s: float,
    size: int,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Before their sessions are repeated for ever: here a hundred, one after another."""
    monkeypatch.setattr(run, "MAX_SESSIONS", 700_000)
    path, kinds = tmp_path / "t.jsonl", {"arrive": 0.0, "idle": active_s, "depart": active_s}
    lines = [
        json.dumps({"t": 10.0 * n + later_s, "session": f"s{n}", "event": kind})
        for n in range(100)
        for kind, later_s in kinds.items()
    ]
    path.write_text("\n".join(lines))
    command = ["evaluate", "--dir", str(tmp_path), "--traces", "--trace", str(path), "--sizes", str(size)]
    assert cli.main(command) == 2
    assert words in capsys.readouterr().err
