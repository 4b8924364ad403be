"""The training command makes weights that load, and goes on from where it stopped."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from engine.models.registry import load_model
from engine.models.shapes import train, train_codec, train_sheet
from engine.models.shapes.model import SHAPES
from engine.models.shapes.train_util import Job, ease

SHORT = ("--minutes", "0.0001", "--batch", "2")


@pytest.fixture(autouse=True)
def _little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of everything that a stage does more than once."""
    monkeypatch.setattr(train_sheet, "_PROMPTS", (("a red ball", "a blue ball"),))
    monkeypatch.setattr(train_sheet, "_CHUNKS", 1)
    monkeypatch.setattr(train_codec, "_BATCH", 1)


def test_stages_lead_to_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Codec, clips, transformer and decoder for a step or two each; a second run of `dit` counts on."""
    for stage in ("codec", "encode", "dit", "dit", "decoder"):
        monkeypatch.setattr("sys.argv", ["train", stage, "--out", str(tmp_path), *SHORT])
        train.main()
    saved = torch.load(tmp_path / "dit.pt", weights_only=True)
    assert saved["steps"] == 2
    assert load_model("shapes", device=torch.device("cpu"), weights=tmp_path / "shapes.safetensors")
    encoder = load_file(tmp_path / "shapes-encoder.safetensors")
    assert encoder and all(name.startswith("encoder.") for name in encoder)
    sheets = sorted(path.name for path in tmp_path.glob("*.png"))
    assert sheets == ["sheet-000001.png", "sheet-000002.png"]
    assert (tmp_path / sheets[0]).read_bytes().startswith(b"\x89PNG")
    assert "dit: " in capsys.readouterr().out


def test_training_goes_on_from_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shipped weights become checkpoints, without a change and without optimizer state."""
    shipped = Path(train.__file__).parent / "weights" / "shapes.safetensors"
    arguments = ["--out", str(tmp_path), *SHORT]
    monkeypatch.setattr("sys.argv", ["train", "encode", "--weights", str(shipped), *arguments])
    train.main()
    train_sheet.export_weights(Job(config=SHAPES, out=tmp_path, minutes=0, device=torch.device("cpu")))
    before, after = load_file(shipped), load_file(tmp_path / "shapes.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    monkeypatch.setattr("sys.argv", ["train", "dit", *arguments])
    train.main()
    assert torch.load(tmp_path / "dit.pt", weights_only=True)["steps"] == 1


def test_stage_without_its_input_says_what_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No codec, no clips: the message names the missing stage."""
    monkeypatch.setattr("sys.argv", ["train", "encode", "--out", str(tmp_path), "--minutes", "0.001"])
    with pytest.raises(SystemExit, match="run the codec stage first"):
        train.main()


def test_learning_rate_warms_up_and_falls() -> None:
    """Linear at the start, the floor at the end of the time budget."""
    assert ease(0.0, 0, warmup=10) == pytest.approx(0.1)
    assert ease(0.5, 100, warmup=10) == pytest.approx(0.51)
    assert ease(1.0, 100, warmup=10) == pytest.approx(0.02)
