"""Against others' own code on random weights: diffusers (tests/golden/wan/generate.py), TAEHV's author's."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from engine.models.base import PassBatch, PassRow
from engine.models.causal_dit import CausalDiT, CausalDiTConfig
from engine.models.wan.keys import canonical_names
from engine.models.wan.taehv import Taehv, memory_shapes
from engine.models.wan.vae import WanVaeDecoder
from engine.models.weights import check_tensors
from tests.golden.wan.generate import DIT, VAE, weights_of

GOLDEN = Path(__file__).parents[3] / "golden" / "wan"


def read(name: str) -> tuple[dict[str, Tensor], dict[str, tuple[int, ...]]]:
    """Tensors of a file, and the shapes of diffusers' weights by diffusers' names."""
    with safe_open(GOLDEN / name, framework="pt") as file:
        shapes = json.loads(file.metadata()["names"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}
    return tensors, {key: tuple(shape) for key, shape in shapes.items()}


def fill(net: nn.Module, shapes: dict[str, tuple[int, ...]]) -> None:
    """The golden weights, taken from diffusers' names through the loader's map."""
    ours = canonical_names(shapes)
    weights = weights_of({ours[name]: shape for name, shape in shapes.items()})
    check_tensors(net, weights)
    net.load_state_dict(weights)


@torch.no_grad()
def test_transformer_equals_diffusers() -> None:
    """A chunk that sees itself alone is Wan's bidirectional forward over as many frames."""
    golden, shapes = read("dit.safetensors")
    frames, _, h, w = golden["x"].shape
    heads = int(str(DIT["num_attention_heads"]))
    config = CausalDiTConfig(
        dim=24,
        ffn_dim=32,
        heads=heads,
        layers=2,
        latent_shape=(4, h, w),
        patch=2,
        chunk_frames=frames,
        window_frames=frames,
        text_shape=(golden["text"].shape[1], 8),
        freq_dim=16,
    )
    dit = CausalDiT(config)
    fill(dit, shapes)
    batch = PassBatch(
        rows=(PassRow(slot=0, frame_start=0, write=tuple(range(frames)), num_valid=frames),),
        x=golden["x"][None],
        sigma=torch.full((1, frames), 0.625),
        kv=torch.zeros(1, 2, 2, frames, config.tokens_per_frame, heads, config.head_dim),
        prompt_kv=dit.prompt_kv(golden["text"]),
    )
    assert golden["out"].std() > 0.1
    torch.testing.assert_close(dit.run_pass(batch)[0], golden["out"], rtol=1e-4, atol=2e-5)


@torch.no_grad()
def test_vae_decoder_equals_diffusers() -> None:
    """With the first latent treated as Wan does, and its state carried on, latents give diffusers' video."""
    golden, shapes = read("vae.safetensors")
    decoder = WanVaeDecoder(channels=4, width=int(str(VAE["base_dim"])))
    fill(decoder, shapes)
    latents = golden["latents"]
    state = torch.zeros(sum(torch.Size(s).numel() for s in decoder.state_shapes(*latents.shape[2:])))
    first, state = decoder(latents[:1], state, is_first=True)
    second, state = decoder(latents[1:2], state)
    third, _ = decoder(latents[2:], state)
    video = (torch.cat([first, second, third]) * 2 - 1).clamp(-1, 1)
    assert len(first) == 1 and len(second) == 4 and golden["video"].std() > 0.1
    torch.testing.assert_close(video, golden["video"], rtol=1e-4, atol=2e-5)


@torch.no_grad()
def test_taehv_equals_its_authors_decoder() -> None:
    """In two parts with the state carried on, at the published width."""
    with safe_open(GOLDEN / "taehv.safetensors", framework="pt") as file:
        latents, video = file.get_tensor("latents"), file.get_tensor("video")
    decoder = Taehv()
    weights = weights_of({name: tuple(tensor.shape) for name, tensor in decoder.state_dict().items()})
    weights["decoder.22.bias"] += 0.5
    decoder.load_state_dict(weights)
    state = torch.zeros(sum(map(prod, memory_shapes(decoder.width, *latents.shape[2:]))))
    first, state = decoder(latents[:1], state)
    rest, _ = decoder(latents[1:], state)
    found = torch.cat([first, rest])[3:].clamp(0, 1)
    assert 0.4 < ((video > 0) & (video < 1)).float().mean()
    torch.testing.assert_close(found, video, rtol=1e-4, atol=2e-5)
