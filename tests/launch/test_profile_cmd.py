"""`turboserve profile`, as a user calls it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from launch import cli


def test_the_cost_table_is_written_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """For the shipped model: t(B) per KV bucket, rising with B and with the KV length."""
    out = tmp_path / "profile.json"
    assert cli.main(["profile", "--device", "cpu", "--json", str(out), "--sessions", "2"]) == 0
    result = json.loads(out.read_text())
    costs, memory = result["costs"], result["memory"]
    assert (result["model"]["name"], result["threads"], result["dtype"]) == ("shapes", 1, "float32")
    assert len(costs["pass_ms"]) == len(costs["buckets"]) and len(costs["attention"]) == 2
    for cells in costs["pass_ms"]:
        assert len(cells) == 2 and 0 < cells[0] <= cells[1]
    for shorter, longer in zip(costs["pass_ms"], costs["pass_ms"][1:], strict=False):
        assert shorter[0] <= longer[0]
    assert costs["decode_ms"] > 0 and costs["chunk_passes"] >= 2
    assert memory["sessions_that_fit"] > 0 and memory["session_bytes"] > 100_000
    migration = result["migration"]
    assert migration["alpha_ms"] > 0 and migration["bytes_per_ms"] > 0 and migration["rebuild_ms"] > 0
    assert migration["slab_bytes"] < memory["session_bytes"]
    offload = result["offload"]
    assert offload["slab_bytes"] == migration["slab_bytes"] and offload["alpha_ms"] > 0
    assert offload["out_bytes_per_ms"] > 0 and offload["in_bytes_per_ms"] > 0
    assert str(out) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "json is not set"),
        (["--json", "x", "--model", "none"], "model 'none' does not exist"),
        (["--json", "x", "--device", "tpu"], "device must be"),
        (["--json", "x", "--sessions", "0"], "sessions must be at least 1"),
        (["--json", "/nowhere/x", "--sessions", "1"], "there is no folder /nowhere"),
    ],
)
def test_what_is_wrong_is_said(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """In a sentence, with a status."""
    assert cli.main(["profile", *arguments]) in (1, 2)
    assert words in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_device_that_is_not_here_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything is loaded."""
    assert cli.main(["profile", "--json", "x", "--device", "cuda"]) == 2
    assert "no CUDA device" in capsys.readouterr().err


@pytest.mark.parametrize("device", ["cuda:x", "cuda:2"])
def test_a_device_that_is_none_is_named(
    device: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With those that there are."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert cli.main(["profile", "--json", "x", "--device", device]) == 2
    assert f"device is {device}, but torch finds cuda:0 to cuda:1" in capsys.readouterr().err
