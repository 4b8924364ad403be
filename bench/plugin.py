"""Make a model package of this repository findable without pip: for benchmarks and tests."""

from __future__ import annotations

import os
import shutil
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

__all__ = ["PACED", "RANDOM_WAN", "install", "plugged_in", "python_path"]

PACED = Path(__file__).parent / "paced"
RANDOM_WAN = Path(__file__).parent / "random_wan"


def install(package: Path, into: Path) -> None:
    """What `pip install --no-deps --target INTO PACKAGE` leaves of a package of plain modules."""
    project = tomllib.loads((package / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    info = into / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir(parents=True)
    head = {"Metadata-Version": "2.1", "Name": project["name"], "Version": project["version"]}
    (info / "METADATA").write_text("".join(f"{name}: {value}\n" for name, value in head.items()))
    (info / "entry_points.txt").write_text(
        "\n".join(f"[{group}]\n{_lines(table)}" for group, table in project["entry-points"].items())
    )
    for module in package.glob("*.py"):
        shutil.copy(module, into)


def python_path(folder: Path) -> dict[str, str]:
    """The variable with which Python also finds what is installed in `folder`."""
    return {"PYTHONPATH": os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(folder)]))}


@contextmanager
def plugged_in(package: Path) -> Iterator[None]:
    """Processes started meanwhile find the package."""
    with tempfile.TemporaryDirectory(prefix="ts-site-") as site:
        install(package, Path(site))
        before = os.environ.get("PYTHONPATH")
        os.environ |= python_path(Path(site))
        try:
            yield
        finally:
            del os.environ["PYTHONPATH"]
            if before is not None:
                os.environ["PYTHONPATH"] = before


def _lines(table: Mapping[str, str]) -> str:
    return "".join(f"{name} = {value}\n" for name, value in table.items())
