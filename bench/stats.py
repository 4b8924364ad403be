"""What the benchmarks share: percentiles, and how results are printed."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence

from scheduler.results import percentile

__all__ = ["machine", "percentile", "print_json", "print_table"]


def machine() -> str:
    """Processor and cores, for the results' header."""
    with open("/proc/cpuinfo", encoding="utf-8") as info:
        names = [line.split(":", 1)[1].strip() for line in info if line.startswith("model name")]
    processor = names[0] if names else platform.processor()
    return f"{processor}, {os.cpu_count()} cores, Python {platform.python_version()}"


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A Markdown table."""
    print("| " + " | ".join(columns) + " |")
    print("|" + "---|" * len(columns))
    for row in rows:
        print("| " + " | ".join(f"{c:.3g}" if isinstance(c, float) else str(c) for c in row) + " |")


def print_json(result: Mapping[str, object]) -> None:
    """The result as the last line of standard output."""
    print(json.dumps(result))
