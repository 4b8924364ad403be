"""GPUs of a machine and how engines share them."""

from __future__ import annotations

from pathlib import Path

from launch.gpus import GpuShares, least_used, visible_gpus
from scheduler.messages import EngineId


def test_devices_are_counted(tmp_path: Path) -> None:
    """One per numbered device file; control devices do not count."""
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    assert visible_gpus({}, tmp_path) == ("0", "1")


def test_the_environment_limits_them(tmp_path: Path) -> None:
    """CUDA_VISIBLE_DEVICES is the user's word, also when it is empty."""
    (tmp_path / "nvidia0").touch()
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "2, GPU-7"}, tmp_path) == ("2", "GPU-7")
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": ""}, tmp_path) == ()
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "-1"}, tmp_path) == ()
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "1,-1,0"}, tmp_path) == ("1",)


def test_engines_spread() -> None:
    """A new engine goes where the fewest are, the first of equals."""
    assert least_used(("0", "1"), []) == ("0",)
    assert least_used(("0", "1"), ["0"]) == ("1",)
    assert least_used(("0", "1"), ["0", "1", "1"]) == ("0",)


def test_an_engine_of_several_ranks_has_a_gpu_for_each() -> None:
    """The emptiest ones."""
    assert least_used(("0", "1", "2", "3"), ["0", "2"], 2) == ("1", "3")


def test_bad_gpus_come_last() -> None:
    """Avoided while there are others, used when there are not."""
    assert least_used(("0", "1"), ["1"], avoid=["0"]) == ("1",)
    assert least_used(("0",), [], avoid=["0"]) == ("0",)


def test_gpus_of_engines_that_went_are_free() -> None:
    """Also of those that were stopped, of which nobody is told."""
    shares, (a, b, c) = GpuShares(("0", "1")), (EngineId(f"e_0000000{n}") for n in "abc")
    assert shares.give(a, 1, 0.0, here=[a]) == ("0",)
    assert shares.give(b, 1, 0.0, here=[a, b]) == ("1",)
    assert shares.give(c, 1, 0.0, here=[a, c]) == ("1",)


def test_a_gpu_on_which_engines_keep_dying_young_is_avoided() -> None:
    """One that nobody knows says nothing about any."""
    shares, ids = GpuShares(("0", "1")), [EngineId(f"e_{n:08x}") for n in range(5)]
    said = []
    for id in ids[:3]:
        assert shares.give(id, 1, 0.0, here=[id]) == ("0",)
        said.append(shares.note_death(id, 1.0))
    assert said == [(), (), ("0",)]
    assert shares.give(ids[3], 1, 2.0, here=[ids[3]]) == ("1",)
    assert shares.note_death(ids[4], 2.0) == ()
