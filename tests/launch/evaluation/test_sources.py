"""Which sources decide the results of an evaluation."""

from __future__ import annotations

from pathlib import Path

import pytest

import launch
from launch.evaluation.sources import digest_of, sources_of

ROOT = Path(launch.__file__).parent.parent


def test_policies_simulator_and_profiles_decide() -> None:
    """Directly or not; what shows results does not, nor what runs on real clusters."""
    found = {str(path.relative_to(ROOT)) for path in sources_of(ROOT, "launch.evaluation.grid")}
    for name in (
        "policy/slack",
        "policy/scaling",
        "sim/engine",
        "sim/profile",
        "sim/failures",
        "latency",
        "table",
    ):
        assert f"scheduler/{name}.py" in found
    assert "launch/evaluation/grid.py" in found
    assert not found & {"launch/evaluation/report.py", "launch/evaluation/run.py", "scheduler/loop.py"}


@pytest.mark.parametrize(
    ("file", "is_other"),
    [
        ("a/one.py", True),
        ("a/two.py", True),
        ("a/b/three.py", True),
        ("a/b/__init__.py", True),
        ("c.py", False),
    ],
)
def test_any_of_them_changes_the_digest(file: str, is_other: bool, tmp_path: Path) -> None:
    """And nothing else."""
    sources = {
        "a/__init__.py": "",
        "a/one.py": "import json\nfrom a import two\n",
        "a/two.py": "def f() -> None:\n    import a.b.three\n    from a import one\n",
        "a/b/__init__.py": "",
        "a/b/three.py": "from a.two import f\n",
        "c.py": "",
    }
    for name, text in sources.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    before = digest_of(tmp_path, "a.one")
    assert digest_of(tmp_path, "a.one") == before
    (tmp_path / file).write_text(sources[file] + "x = 1\n")
    assert (digest_of(tmp_path, "a.one") != before) is is_other
