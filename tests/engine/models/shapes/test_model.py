"""The model behind the interface: shapes, types, determinism."""

from __future__ import annotations

import pytest
import torch

from engine.models.base import CausalVideoModel, PassBatch, PassRow
from engine.models.shapes.model import SHAPES, TINY, ShapesModel, WeightsError, shifted_sigmas


def test_random_model_is_reproducible(tiny: ShapesModel) -> None:
    """Equal seed and config give an equal model, another seed another; torch's generator is untouched."""
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    same, other = ShapesModel.random(0, config=TINY), ShapesModel.random(1, config=TINY)
    assert torch.equal(torch.rand(1), expected)
    assert same.spec == tiny.spec != other.spec
    text = ["a red ball"]
    assert torch.equal(same.encode_prompts(text), tiny.encode_prompts(text))
    assert not torch.equal(other.encode_prompts(text), tiny.encode_prompts(text))


def test_prompts_encode_to_the_spec(tiny: ShapesModel) -> None:
    """Shapes as the spec says, none for none, unknown words accepted, other scenes differ."""
    model: CausalVideoModel = tiny
    embeds = model.encode_prompts(["a red ball", "a blue ball", "¿qué?"])
    assert embeds.shape == (3, *model.spec.text_shape)
    assert model.prompt_kv(embeds).shape == (3, *model.spec.prompt_kv_shape)
    assert not torch.equal(embeds[0], embeds[1])
    assert model.encode_prompts([]).shape == (0, *model.spec.text_shape)


def test_velocity_leads_to_what_the_network_predicts(tiny: ShapesModel) -> None:
    """x − sigma·velocity is the network's x0, and a clean pass returns a finite velocity."""
    x = torch.randn(1, 3, *tiny.spec.latent_shape)
    row = PassRow(slot=0, frame_start=0, write=(0, 1, 2), num_valid=3)

    def batch(sigma: float) -> PassBatch:
        return PassBatch(
            rows=(row,),
            x=x,
            sigma=torch.full((1, 3), sigma),
            kv=torch.zeros(1, *tiny.spec.kv_slab_shape),
            prompt_kv=torch.zeros(1, *tiny.spec.prompt_kv_shape),
        )

    with torch.no_grad():
        x0 = tiny._net.dit.run_pass(batch(0.8))
    torch.testing.assert_close(x - 0.8 * tiny.run_pass(batch(0.8)), x0, rtol=1e-4, atol=1e-5)
    assert torch.equal(tiny.run_pass(batch(0.0)), torch.zeros_like(x))


def test_decode_gives_pixels(tiny: ShapesModel) -> None:
    """Twelve frames of the stated size for a chunk."""
    spec = tiny.spec
    rgb, state = tiny.decode(torch.randn(3, *spec.latent_shape), tiny.initial_decoder_state())
    assert rgb.dtype == torch.uint8 and rgb.shape == (spec.chunk_frames, spec.height, spec.width, 3)
    assert state.shape == (spec.decoder_state_numel,)


def test_bfloat16_pools_work() -> None:
    """With bfloat16 weights the pools are bfloat16 and the velocity float32."""
    model = ShapesModel.random(0, config=TINY, dtype=torch.bfloat16)
    spec = model.spec
    kv = torch.zeros(1, *spec.kv_slab_shape, dtype=model.dtype)
    prompt_kv = model.prompt_kv(model.encode_prompts(["a red ball"]))
    assert prompt_kv.dtype == torch.bfloat16
    row = PassRow(slot=0, frame_start=0, write=(0, 1, 2), num_valid=3)
    x = torch.randn(1, 3, *spec.latent_shape)
    batch = PassBatch(rows=(row,), x=x, sigma=torch.ones(1, 3), kv=kv, prompt_kv=prompt_kv)
    velocity = model.run_pass(batch)
    assert velocity.dtype == torch.float32 and velocity.isfinite().all()


def test_schedules_fall_from_one() -> None:
    """Four steps at shift 5 are the published levels."""
    assert shifted_sigmas(4) == pytest.approx((1.0, 0.9375, 0.8333333, 0.625))
    assert SHAPES.first_sigmas[0] == SHAPES.sigmas[0] == 1.0


def test_weights_of_another_size_are_refused(tiny: ShapesModel) -> None:
    """Tensors of the tiny config do not load into the shipped one."""
    with pytest.raises(WeightsError, match="other shape"):
        ShapesModel.from_tensors(tiny._net.state_dict(), "hash")
