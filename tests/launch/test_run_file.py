"""`run.json` and the lock of a cluster's folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launch.run_file import DirectoryLock, DirectoryTaken, RunFile


def test_file_follows_processes(tmp_path: Path) -> None:
    """Each change is in the file at once; url and redis are there from the start."""
    path = tmp_path / "run.json"
    run_file = RunFile(path, url="http://127.0.0.1:1", redis="unix:///r")
    assert json.loads(path.read_text()) == {
        "url": "http://127.0.0.1:1",
        "redis": "unix:///r",
        "processes": [],
    }
    run_file.add("redis", 5)
    run_file.add("gateway-0", 6)
    run_file.remove("redis", 5)
    assert json.loads(path.read_text())["processes"] == [{"name": "gateway-0", "pid": 6}]


def test_late_news_of_an_older_process_changes_nothing(tmp_path: Path) -> None:
    """The end of a process must not remove its successor of the same name."""
    path = tmp_path / "run.json"
    run_file = RunFile(path, url="u", redis="r")
    run_file.add("gateway-0", 6)
    run_file.add("gateway-0", 7)
    run_file.remove("gateway-0", 6)
    assert json.loads(path.read_text())["processes"] == [{"name": "gateway-0", "pid": 7}]


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    """The file is replaced, not rewritten: one opened before a change still holds the old content."""
    path = tmp_path / "run.json"
    run_file = RunFile(path, url="u", redis="r")
    with path.open() as reader:
        run_file.add("redis", 5)
        assert json.load(reader)["processes"] == []


def test_only_the_owner_can_read_it(tmp_path: Path) -> None:
    """The Redis URL tells where the cluster's data is."""
    path = tmp_path / "run.json"
    RunFile(path, url="u", redis="redis://h")
    assert path.stat().st_mode & 0o777 == 0o600


def test_delete_is_idempotent(tmp_path: Path) -> None:
    """Nothing is left, however often it is said."""
    run_file = RunFile(tmp_path / "run.json", url="u", redis="r")
    run_file.delete()
    run_file.delete()
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk was full, at the start or later."""

    def fail(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(json, "dump", fail)
        with pytest.raises(OSError, match="No space left"):
            RunFile(tmp_path / "run.json", url="u", redis="r")
    assert list(tmp_path.iterdir()) == []
    run_file = RunFile(tmp_path / "run.json", url="u", redis="r")
    monkeypatch.setattr(json, "dump", fail)
    run_file.add("redis", 5)
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
    run_file.delete()
    assert list(tmp_path.iterdir()) == []


def test_one_lock_per_folder(tmp_path: Path) -> None:
    """A second holder is refused until the first lets go."""
    lock = DirectoryLock(tmp_path)
    with pytest.raises(DirectoryTaken):
        DirectoryLock(tmp_path)
    lock.release()
    DirectoryLock(tmp_path).release()


def test_a_file_that_cannot_be_written_is_true_later(tmp_path: Path) -> None:
    """The disk was full, or the folder away: who reports a process is not hurt, and the next one heals it."""
    folder = tmp_path / "run"
    folder.mkdir()
    run_file = RunFile(folder / "run.json", url="u", redis="r")
    folder.rename(tmp_path / "away")
    run_file.add("redis", 5)
    run_file.add("gateway-0", 6)
    run_file.remove("gateway-0", 6)
    folder.mkdir()
    run_file.add("scheduler-0", 7)
    names = [process["name"] for process in json.loads((folder / "run.json").read_text())["processes"]]
    assert names == ["redis", "scheduler-0"]
