"""docs/settings.md is what the code says."""

from __future__ import annotations

import tomllib
from pathlib import Path

from launch.cli import COMMANDS
from launch.settings import catalogue, file_values
from launch.settings_page import render

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"


def test_the_page_is_up_to_date() -> None:
    """Write it again: python -m launch.settings_page > docs/settings.md"""
    assert PAGE.read_text() == render()


def test_the_example_file_is_taken(tmp_path: Path) -> None:
    """Every name in it is a setting, every value of its type."""
    lines = [line[4:] for line in PAGE.read_text().splitlines() if line.startswith("    ")]
    path = tmp_path / "turboserve.toml"
    path.write_text("\n".join(lines))
    known = catalogue(*COMMANDS["up"].configs)
    assert set(file_values(known, path)) == set(tomllib.loads(path.read_text()))
