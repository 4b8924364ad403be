"""Processors that a process may use."""

from __future__ import annotations

import os
from pathlib import Path

from launch.cores import usable_cores

BOUND = len(os.sched_getaffinity(0))


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_without_limits_those_that_we_are_bound_to(tmp_path: Path) -> None:
    """Also where nothing can be read, or only nonsense."""
    assert usable_cores(tmp_path) == BOUND
    files = {"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/cpu.max": "max 100000\n"}
    assert usable_cores(write(tmp_path, files)) == BOUND
    assert usable_cores(write(tmp_path, {"sys/fs/cgroup/a/cpu.max": "\n"})) == BOUND


def test_a_group_or_one_above_it_has_a_limit(tmp_path: Path) -> None:
    """The least of them."""
    files = {"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.max": "50000 100000\n"}
    files["sys/fs/cgroup/a/b/cpu.max"] = "75000 100000\n"
    assert usable_cores(write(tmp_path, files)) == 0.5


def test_a_container_sees_its_own_group_only(tmp_path: Path) -> None:
    """At the root, whatever the host calls it."""
    files = {"proc/self/cgroup": "0::/docker/1f\n", "sys/fs/cgroup/cpu.max": "25000 100000\n"}
    assert usable_cores(write(tmp_path, files)) == 0.25


def test_old_groups_too(tmp_path: Path) -> None:
    """Of which −1 is no limit."""
    files = {"proc/self/cgroup": "3:cpu,cpuacct:/a\n2:memory:/a\n0::/a\n"}
    files["sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us"] = "-1\n"
    files["sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_quota_us"] = "40000\n"
    files["sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_period_us"] = "100000\n"
    assert usable_cores(write(tmp_path, files)) == 0.4
