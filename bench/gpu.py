"""What the GPU benchmarks share: device time, sections that may fail one by one, results as they come."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from bench.stats import machine, percentile, print_table

__all__ = ["Report", "device_name", "median_ms", "settle"]


def settle(device: torch.device) -> None:
    """Wait until the device has nothing left to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def device_name(device: torch.device) -> str:
    """The card, or the processor."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else machine()


def median_ms(run: Callable[[], object], device: torch.device, rounds: int, *, calls: int = 1) -> float:
    """Median time of one call over some rounds of `calls` calls, after two calls to warm up.

    On CUDA between two events, so launches count only where the device waits for them.
    """
    run()
    run()
    times = []
    for _ in range(rounds):
        settle(device)
        if device.type == "cuda":
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
            for _ in range(calls):
                run()
            last.record()
            last.synchronize()
            times.append(first.elapsed_time(last) / calls)
        else:
            began = time.perf_counter()
            for _ in range(calls):
                run()
            times.append((time.perf_counter() - began) * 1000 / calls)
    return percentile(times, 0.5)


class Report:
    """Prints each section as it is done, its result as a line of JSON, and keeps a JSON file true; one that
    fails says why, others go on."""

    def __init__(self, path: Path | None, *, budget_s: float) -> None:
        self.results: dict[str, Any] = {}
        self._path, self._budget_s, self._began = path, budget_s, time.perf_counter()

    @property
    def elapsed_s(self) -> float:
        """Since the report was begun."""
        return time.perf_counter() - self._began

    def section(self, name: str, run: Callable[[], Any]) -> None:
        """Run it, unless time is up, and keep what it returns."""
        elapsed_s = self.elapsed_s
        if elapsed_s > self._budget_s:
            self.say(f"\n## {name}: left out, {elapsed_s:.0f} s are gone")
            self.results[name] = "left out: no time"
            return
        self.say(f"\n## {name} (at {elapsed_s:.0f} s)")
        try:
            self.results[name] = run()
        except Exception as exc:
            self.fail(name, exc)
            self.results[name] = f"failed: {_line(exc)}"
        self.say(json.dumps({name: self.results[name], "after_s": round(self.elapsed_s, 1)}))
        self.save()
        with suppress(RuntimeError):
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def cell(self, name: str, run: Callable[[], Any]) -> Any:
        """What a part of a section gives; None and a line if it fails."""
        try:
            return run()
        except Exception as exc:
            self.fail(name, exc)
            return None

    def fail(self, name: str, exc: Exception) -> None:
        """Say what failed and where."""
        self.say(f"FAILED {name}: {_line(exc)}")
        frames = traceback.extract_tb(exc.__traceback__)[-4:]
        self.say("    " + " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(frames)))

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        print_table(columns, rows)
        self.say("")

    def say(self, text: str) -> None:
        print(text, flush=True)

    def save(self) -> None:
        """Write the JSON file with what there is."""
        if self._path is not None:
            self._path.write_text(json.dumps(self.results, indent=1) + "\n", encoding="utf-8")


def _line(exc: Exception) -> str:
    return f"{type(exc).__name__}: {' '.join(str(exc).split())[:300]}"
