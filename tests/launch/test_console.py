"""What `turboserve up` prints, where nobody can take it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from launch.console import Console


def test_a_line_that_cannot_be_written_hurts_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk, then room on it again: that line is lost, later ones are not, and nothing is left over, to
    fail at the end."""
    console, path = Console(), tmp_path / "out"
    with open("/dev/full", "w") as output, path.open("w") as roomy:
        monkeypatch.setattr(sys, "stdout", output)
        console.step("lost")
        os.dup2(roomy.fileno(), output.fileno())
        console.step("kept")
    assert path.read_text().split()[2:] == ["kept"]


def test_a_pipe_that_nobody_reads_hurts_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        console = Console()
        console.headline("ready")
        console.step("stopping")
