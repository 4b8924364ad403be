"""Loading models: what is refused says why."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from engine.models.registry import MODELS, WeightsError, load_model
from engine.models.shapes.model import SHAPES, ShapesNet

CPU = torch.device("cpu")


def _tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {name: tensor.half().contiguous() for name, tensor in ShapesNet(SHAPES).state_dict().items()}


def test_unknown_model_names_the_known_ones() -> None:
    """The error lists every model of the table."""
    with pytest.raises(ValueError, match="unknown model 'shapez'; known: .*shapes"):
        load_model("shapez", device=CPU)
    assert "shapes" in MODELS


def test_loads_half_precision_weights(tmp_path: Path) -> None:
    """Weights on disk may be float16; the model is float32 on CPUs and its hash is the file's."""
    path = tmp_path / "w.safetensors"
    save_file(_tensors(), path)
    model = load_model("shapes", device=CPU, weights=path)
    assert model.dtype == torch.float32
    assert model.spec.weights_hash == hashlib.sha256(path.read_bytes()).hexdigest()
    assert model.prompt_kv(model.encode_prompts(["a red ball"])).shape == (1, *model.spec.prompt_kv_shape)


def test_misfits_are_named(tmp_path: Path) -> None:
    """A missing, an unknown and a misshapen tensor are each named, shapes included."""
    tensors = _tensors()
    del tensors["dit.blocks.0.self_attn.q.weight"]
    tensors["dit.surprise"] = torch.zeros(1)
    tensors["dit.head.head.bias"] = torch.zeros(7)
    path = tmp_path / "w.safetensors"
    save_file(tensors, path)
    with pytest.raises(WeightsError) as caught:
        load_model("shapes", device=CPU, weights=path)
    message = str(caught.value)
    assert "missing (1): dit.blocks.0.self_attn.q.weight" in message
    assert "unknown (1): dit.surprise" in message
    assert "dit.head.head.bias is [7], needs [64]" in message


def test_missing_file_says_where_it_looked(tmp_path: Path) -> None:
    """The path is in the message."""
    with pytest.raises(WeightsError, match=r"no weights at .*nowhere\.safetensors"):
        load_model("shapes", device=CPU, weights=tmp_path / "nowhere.safetensors")


def test_garbage_is_refused(tmp_path: Path) -> None:
    """A file that is not safetensors is an error of ours, not of the parser."""
    path = tmp_path / "w.safetensors"
    path.write_bytes(b"\xff" * 100)
    with pytest.raises(WeightsError, match="cannot read"):
        load_model("shapes", device=CPU, weights=path)
