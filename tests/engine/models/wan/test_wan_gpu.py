"""The GPU benchmark leaves what it has, and fits into a card. On a CPU, where its figures say nothing."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from bench import wan_gpu
from engine.models.wan.config import TINY
from engine.models.wan.model import WanModel


def run(path: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> None:
    monkeypatch.setattr(wan_gpu, "SECTIONS", {"ceilings": 1, "passes": 1, "wide": 10_000})
    flags = ("--device", "cpu", "--tiny", "--batches", "1", "--rounds", "1", "--json", str(path))
    monkeypatch.setattr(sys, "argv", ["wan_gpu", *flags, *more])
    wan_gpu.main()


def test_what_would_take_too_long_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes before it is in the file."""
    run(tmp_path / "a.json", monkeypatch, "--budget-s", "5000")
    found = json.loads((tmp_path / "a.json").read_text())
    assert [*found] == ["setup", "ceilings", "passes", "wide"]
    assert found["ceilings"]["matmul_tflops"] > 0 and {"plain | 1", "fp8 | 1"} <= found["passes"].keys()
    assert found["wide"] == "left out: no time"


def test_a_run_that_is_cut_off_in_a_section_leaves_what_it_has_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ways that were measured."""
    saved: list[list[str]] = []
    keep = wan_gpu.Wan._keep

    def kept(wan: wan_gpu.Wan, section: str, found: dict[str, object]) -> None:
        keep(wan, section, found)
        saved.append([*found])
        if len(saved) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(wan_gpu.Wan, "_keep", kept)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "a.json", monkeypatch)
    found = json.loads((tmp_path / "a.json").read_text())
    assert [*found["passes"]] == ["plain | 1", "fused | 1"] and "setup" in found


@pytest.mark.parametrize(
    ("free_gb", "counts"), [(120, [1, 2, 4]), (75, [1, 2, 3]), (55, [1, 2]), (30, [1]), (10, [])]
)
def test_only_as_many_sessions_are_compared_as_fit(
    free_gb: int, counts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of Wan 1.3B with the window of 12, 3.6 GB each."""
    wan = object.__new__(wan_gpu.Wan)
    wan.is_cuda, wan.device = True, torch.device("cpu")
    wan.fused = WanModel.random(0, config=TINY)
    monkeypatch.setattr(wan_gpu, "slot_bytes", lambda model: 3_611_000_000)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free_gb * 10**9, 140 * 10**9))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    assert wan._counts() == counts
