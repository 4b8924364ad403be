"""The model behind the interface: shapes, types, determinism."""

from __future__ import annotations

import pytest
import torch

from engine.models.base import CausalVideoModel, PassBatch, PassRow
from engine.models.shapes.captions import read
from engine.models.shapes.model import SHAPES, TINY, ShapesModel, shifted_sigmas
from engine.models.weights import WeightsError


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
            actions=torch.zeros(1, 3, 2),
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
    batch = PassBatch(
        rows=(row,), x=x, sigma=torch.ones(1, 3), kv=kv, prompt_kv=prompt_kv, actions=torch.zeros(1, 3, 2)
    )
    velocity = model.run_pass(batch)
    assert velocity.dtype == torch.float32 and velocity.isfinite().all()


def test_schedules_fall_from_one() -> None:
    """Four steps at shift 5 are the published levels; ours end nearer to the picture."""
    assert shifted_sigmas(4, shift=5.0) == pytest.approx((1.0, 0.9375, 0.8333333, 0.625))
    assert SHAPES.sigmas == pytest.approx((1.0, 0.9, 0.642857, 0.3)) and set(SHAPES.sigmas) <= set(
        SHAPES.first_sigmas
    )
    assert SHAPES.first_sigmas[0] == SHAPES.sigmas[0] == 1.0


def test_prompts_edit_what_is_shown(tiny: ShapesModel) -> None:
    """What a prompt leaves out stays; the result is a prompt of its own."""
    shown = tiny.combine_prompts("two small red stars spinning on a grid", "make it night")
    assert read(shown) == read("two small red stars spinning in the night")
    assert read(tiny.combine_prompts(shown, "faster")).speed == "fast"


@pytest.mark.parametrize(
    ("keys", "axes", "push"),
    [
        ((), {}, (0.0, 0.0)),
        (("ArrowLeft",), {}, (-1.0, 0.0)),
        (("ArrowUp", "d"), {}, (1.0, -1.0)),
        (("ArrowLeft", "ArrowRight"), {}, (0.0, 0.0)),
        (("q",), {"x": 0.5, "y": -0.25, "throttle": 1.0}, (0.5, -0.25)),
        (("down",), {"y": 0.5}, (0.0, 1.0)),
    ],
)
def test_keys_and_axes_push(
    tiny: ShapesModel, keys: tuple[str, ...], axes: dict[str, float], push: tuple[float, float]
) -> None:
    """Arrows, WASD and axes add up within [−1, 1]; unknown names mean nothing."""
    assert tiny.encode_control(keys, axes) == push


def test_a_push_changes_the_pass(tiny: ShapesModel) -> None:
    """The action reaches the network, row by row."""
    net = ShapesModel.random(3, config=TINY)._net
    assert net.dit.action_embedding is not None
    torch.nn.init.normal_(net.dit.action_embedding[2].get_parameter("weight"))
    x = torch.randn(1, 3, *tiny.spec.latent_shape, generator=torch.Generator().manual_seed(0)).expand(
        2, -1, -1, -1, -1
    )
    rows = tuple(PassRow(slot=slot, frame_start=0, write=(0, 1, 2), num_valid=3) for slot in (0, 1))
    batch = PassBatch(
        rows=rows,
        x=x,
        sigma=torch.ones(2, 3),
        kv=torch.zeros(2, *tiny.spec.kv_slab_shape),
        prompt_kv=torch.zeros(2, *tiny.spec.prompt_kv_shape),
        actions=torch.tensor([[[0.0, 0.0]] * 3, [[1.0, 0.0]] * 3]),
    )
    with torch.no_grad():
        still, pushed = net.dit.run_pass(batch)
    assert not torch.allclose(still, pushed, atol=1e-3)


def test_weights_of_another_size_are_refused(tiny: ShapesModel) -> None:
    """Tensors of the tiny config do not load into the shipped one."""
    with pytest.raises(WeightsError, match="other shape"):
        ShapesModel.from_tensors(tiny._net.state_dict(), "hash")
