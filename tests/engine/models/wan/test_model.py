"""Wan as the engine sees it: decoders stream, causal passes equal a masked whole, positions never end."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import pytest
import torch
from torch import Tensor

from engine.models.base import CausalVideoModel, PassBatch, PassRow
from engine.models.shapes.rollout import stream
from engine.models.wan.config import TINY, DecoderKind
from engine.models.wan.model import WanModel, lay_out
from engine.ring import num_valid, write_slots

CAUSAL = replace(TINY, sink_frames=0)
CHUNKS, SPAN = 6, 3


@pytest.fixture(scope="module")
def tiny() -> WanModel:
    """Holds no state, so the tests share it."""
    torch.set_num_threads(1)
    return WanModel.random(0, config=TINY)


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def decoder_model(kind: DecoderKind) -> WanModel:
    """At 32×48 pixels."""
    dit = replace(TINY.dit, latent_shape=(16, 4, 6))
    return WanModel.random(1, config=replace(TINY, dit=dit, decoder=kind, decoder_width=4))


@pytest.mark.parametrize("kind", ["taehv", "wan_vae"])
def test_decoder_streams(kind: DecoderKind) -> None:
    """Chunk by chunk with the state handed on, the frames are those of the whole at once."""
    model = decoder_model(kind)
    latents = noise(9, *model.spec.latent_shape)
    whole, end = model.decode(latents, model.initial_decoder_state())
    state, parts = model.initial_decoder_state(), []
    for size in latents.split((3, 1, 5)):
        rgb, state = model.decode(size, state)
        parts.append(rgb)
    assert whole.shape == (36, model.spec.height, model.spec.width, 3)
    assert (torch.cat(parts).int() - whole.int()).abs().max() <= 1
    torch.testing.assert_close(state, end, rtol=1e-4, atol=1e-4)
    alone, _ = model.decode(latents[4:], model.initial_decoder_state())
    assert not torch.equal(alone[:4], parts[2][:4])


@pytest.mark.parametrize("kind", ["taehv", "wan_vae"])
def test_the_layout_for_gpus_changes_nothing(kind: DecoderKind) -> None:
    """A decoder laid out for GPUs gives the frames and the state of a plain one."""
    plain, laid_out = decoder_model(kind), decoder_model(kind)
    lay_out(laid_out._decoder)
    weights = [p for p in laid_out._decoder.parameters() if p.ndim == 4 and p.shape[1] > 1 and p.shape[2] > 1]
    is_last = {p.is_contiguous(memory_format=torch.channels_last) for p in weights}
    assert is_last == {kind == "taehv"}
    latents, start = noise(3, *plain.spec.latent_shape), noise(plain.spec.decoder_state_numel)
    rgb, state = plain.decode(latents, start)
    other_rgb, other_state = laid_out.decode(latents, start)
    assert (rgb.int() - other_rgb.int()).abs().max() <= 1
    torch.testing.assert_close(state, other_state, rtol=1e-4, atol=1e-4)


def test_taehv_state_follows_from_its_tail() -> None:
    """The newest latents that the spec names give the state exactly; one less does not."""
    model = decoder_model("taehv")
    tail = model.spec.decoder_tail_frames
    assert tail is not None
    latents = noise(tail + 6, *model.spec.latent_shape)

    def state_after(newest: int) -> Tensor:
        return model.decode(latents[-newest:], model.initial_decoder_state())[1]

    whole = state_after(len(latents))
    torch.testing.assert_close(state_after(tail), whole, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(state_after(tail - 1), whole)


def test_streaming_equals_a_masked_whole() -> None:
    """Six chunks through a ring of four equal one forward over all of them, each seeing its window only."""
    model = WanModel.random(2, config=CAUSAL)
    spec, dit = model.spec, model._dit
    clean, noisy = (noise(1, CHUNKS * SPAN, *spec.latent_shape, seed=s) for s in (3, 4))
    sigma, embeds = torch.rand(1, CHUNKS), noise(1, CHUNKS, *spec.text_shape, seed=5)
    with torch.no_grad():
        whole = dit.predict_clip(clean[:, :-SPAN], noisy, sigma, embeds)
    kv = torch.zeros(1, *spec.kv_slab_shape)
    for index in range(CHUNKS):
        now = slice(index * SPAN, (index + 1) * SPAN)
        row = PassRow(
            slot=0,
            frame_start=index * SPAN,
            write=write_slots(index, chunk=SPAN, window=spec.window_frames, sink=0),
            num_valid=num_valid(index, chunk=SPAN, window=spec.window_frames),
        )
        prompt = model.prompt_kv(embeds[:, index])
        for x, level in ((noisy, sigma[:, index, None]), (clean, torch.zeros(1, 1))):
            out = model.run_pass(
                PassBatch(rows=(row,), x=x[:, now], sigma=level.expand(1, SPAN), kv=kv, prompt_kv=prompt)
            )
            if x is noisy:
                torch.testing.assert_close(out, whole[:, now], rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("origin", [1_020, 500_000])
def test_positions_go_on_past_the_table(tiny: WanModel, origin: int) -> None:
    """A chunk and the one after it give the same wherever in time they are: 1,024 frames are no border."""
    spec = tiny.spec

    def second_chunk(start: int) -> Tensor:
        kv, prompt = torch.zeros(1, *spec.kv_slab_shape), torch.zeros(1, *spec.prompt_kv_shape)
        out = torch.zeros(0)
        for index in range(2):
            write = tuple(range(index * SPAN, (index + 1) * SPAN))
            row = PassRow(slot=0, frame_start=start + index * SPAN, write=write, num_valid=(index + 1) * SPAN)
            x = noise(1, SPAN, *spec.latent_shape, seed=index)
            out = tiny.run_pass(
                PassBatch(rows=(row,), x=x, sigma=torch.full((1, SPAN), 0.6), kv=kv, prompt_kv=prompt)
            )
        return out

    torch.testing.assert_close(second_chunk(origin), second_chunk(0), rtol=1e-3, atol=1e-4)


def test_context_noise_reaches_the_clean_pass_alone() -> None:
    """The clean pass is told its level; a denoising pass is not touched."""
    plain, told = (WanModel.random(0, config=replace(TINY, context_noise=level)) for level in (0, 300))
    spec = plain.spec

    def out(model: WanModel, sigma: float) -> Tensor:
        row = PassRow(slot=0, frame_start=0, write=(0, 1, 2), num_valid=3)
        x = noise(1, SPAN, *spec.latent_shape)
        pools = torch.zeros(1, *spec.kv_slab_shape), torch.zeros(1, *spec.prompt_kv_shape)
        levels = torch.full((1, SPAN), sigma)
        return model.run_pass(PassBatch(rows=(row,), x=x, sigma=levels, kv=pools[0], prompt_kv=pools[1]))

    assert torch.equal(out(plain, 0.6), out(told, 0.6))
    assert torch.equal(out(told, 0.0), out(plain, 0.3))
    assert not torch.equal(out(told, 0.0), out(plain, 0.0))


def test_prompts_are_padded_with_zeros_and_steer(tiny: WanModel) -> None:
    """White space means nothing, words do, and other words give another video."""
    first, same, other = tiny.encode_prompts(["a red  fox", " a red fox\n", "two blue fish"])
    assert torch.equal(first, same) and not torch.equal(first, other)
    assert first[:3].abs().sum() > 0 and first[3:].abs().sum() == 0
    model = cast(CausalVideoModel, tiny)
    videos = [stream(model, [prompt] * 2, seed=1)[1] for prompt in ("a red fox", "two blue fish")]
    assert videos[0].isfinite().all() and not torch.allclose(videos[0], videos[1], atol=1e-3)
