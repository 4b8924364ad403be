"""The Python client of the README: the very program that is kept in docs/."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster import SCALE, Cluster

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "docs" / "example_client.py"


def test_the_readme_shows_it() -> None:
    assert f"```python\n{PROGRAM.read_text()}```\n" in (ROOT / "README.md").read_text()
    assert len([line for line in PROGRAM.read_text().splitlines() if line]) <= 15


@pytest.mark.cluster
def test_it_runs(cluster: Cluster) -> None:
    """To the first chunk of its second prompt, and prints a line for each."""
    command = [sys.executable, str(PROGRAM), cluster.url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60 * SCALE)
    assert (done.returncode, done.stderr) == (0, "")
    line = re.compile(r"chunk (\d+) of prompt ([01]): \d+ frames \(96, 96, 3\)")
    told = [line.fullmatch(text) for text in done.stdout.splitlines()]
    assert [match and int(match[1]) for match in told] == list(range(len(told))) and len(told) >= 3
    assert [match and match[2] for match in told] == ["0"] * (len(told) - 1) + ["1"]
