"""The transformer: rows are independent, streaming equals teacher forcing, positions are relative."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from engine.models.base import PassBatch, PassRow
from engine.models.causal_dit import CausalDiT, CausalDiTConfig
from engine.models.shapes.model import TINY, ShapesModel

# Rows at other chunks, KV lengths, ring positions and noise levels, in other slots.
ROWS = (
    PassRow(slot=2, frame_start=0, write=(0, 1, 2), num_valid=3),
    PassRow(slot=0, frame_start=15, write=(3, 4, 5), num_valid=12),
    PassRow(slot=3, frame_start=3, write=(3, 4, 5), num_valid=6),
    PassRow(slot=1, frame_start=9_000_000, write=(11, 0, 1), num_valid=12),
)
SIGMA = torch.tensor([1.0, 0.0, 0.625, 0.9375])[:, None].expand(4, 3)


def _inputs(count: int = 4, seed: int = 7) -> torch.Tensor:
    return torch.randn(count, 3, *TINY.dit.latent_shape, generator=torch.Generator().manual_seed(seed))


def test_row_does_not_depend_on_its_batch(make_pools: Callable[[], Any]) -> None:
    """Alone or with three others at other steps and chunks, a row gives the same velocity and K/V."""
    x, together = _inputs(), make_pools()
    batched = together.run(ROWS, x, SIGMA)
    for i, row in enumerate(ROWS):
        alone = make_pools()
        single = alone.run([row], x[i : i + 1], SIGMA[i : i + 1])
        torch.testing.assert_close(batched[i], single[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(together.kv[row.slot], alone.kv[row.slot], rtol=1e-4, atol=1e-5)


def test_rows_differ_from_each_other(make_pools: Callable[[], Any]) -> None:
    """The check above can fail: one input in four situations gives four results."""
    out = make_pools().run(ROWS, _inputs(1).expand(4, -1, -1, -1, -1), torch.full((4, 3), 0.625))
    for i in range(4):
        for j in range(i):
            assert not torch.allclose(out[i], out[j], atol=1e-3)


def test_pass_writes_only_its_own_ring_frames(make_pools: Callable[[], Any]) -> None:
    """Every byte of the pools outside the rows' write positions stays as it was."""
    pools, before = make_pools(), make_pools()
    pools.run(ROWS, _inputs(), SIGMA)
    changed = (pools.kv != before.kv).flatten(4).any(dim=-1)  # [slots, L, 2, W]
    wanted = torch.zeros_like(changed)
    for row in ROWS:
        wanted[row.slot, :, :, list(row.write)] = True
    assert torch.equal(changed, wanted)
    assert torch.equal(pools.prompt_kv, before.prompt_kv)


def test_pass_run_again_gives_the_same(make_pools: Callable[[], Any]) -> None:
    """A repeated pass, as after running out of memory, is bit-equal and leaves the same pool."""
    pools = make_pools()
    first, kv = pools.run(ROWS, _inputs(), SIGMA), pools.kv.clone()
    again = pools.run(ROWS, _inputs(), SIGMA)
    assert torch.equal(first, again) and torch.equal(kv, pools.kv)


def test_invalid_frames_are_never_read(make_pools: Callable[[], Any]) -> None:
    """NaN beyond num_valid and in other slots does not leak into a row."""
    row, x = ROWS[2], _inputs(1)
    clean, dirty = make_pools(), make_pools()
    dirty.kv[[0, 1, 2]] = float("nan")
    dirty.kv[3, :, :, 6:] = float("nan")
    sigma = torch.full((1, 3), 0.5)
    assert torch.equal(clean.run([row], x, sigma), dirty.run([row], x, sigma))


def test_slot_order_carries_no_meaning(make_pools: Callable[[], Any]) -> None:
    """The ring may hold its frames in any order."""
    order = torch.tensor([6, 7, 8, 3, 4, 5, 0, 1, 2, 9, 10, 11])
    straight, shuffled = make_pools(), make_pools()
    shuffled.kv = shuffled.kv[:, :, :, order].contiguous()
    row = PassRow(slot=0, frame_start=9, write=(9, 10, 11), num_valid=12)
    sigma = torch.full((1, 3), 0.625)
    torch.testing.assert_close(
        straight.run([row], _inputs(1), sigma), shuffled.run([row], _inputs(1), sigma), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("origin", [0, 3_000, 60_000_000])
def test_streaming_equals_teacher_forcing(tiny: ShapesModel, origin: int) -> None:
    """Six chunks through a ring of four give what one training forward over the clip gives, at any origin.

    The origin of 60 million latent frames is half a year of video: positions stay exact.
    """
    torch.manual_seed(3)
    net = tiny._net
    chunks, span = 6, 3
    clean = torch.randn(1, chunks * span, *TINY.dit.latent_shape)
    noisy = torch.randn(1, chunks * span, *TINY.dit.latent_shape)
    sigma = torch.rand(1, chunks)
    embeds = torch.randn(1, chunks, *TINY.dit.text_shape)
    actions = torch.rand(1, chunks * span, 2)
    with torch.no_grad():
        forced = net.dit.predict_clip(clean[:, :-span], noisy, sigma, embeds, actions=actions)
        kv = torch.zeros(1, *tiny.spec.kv_slab_shape)
        for chunk in range(chunks):
            now = slice(chunk * span, (chunk + 1) * span)
            row = PassRow(
                slot=0,
                frame_start=origin + chunk * span,
                write=tuple(f % 12 for f in range(chunk * span, (chunk + 1) * span)),
                num_valid=min(12, (chunk + 1) * span),
            )
            prompt_kv = net.dit.prompt_kv(embeds[:, chunk])
            outs = [
                net.dit.run_pass(
                    PassBatch(
                        rows=(row,), x=x, sigma=level, kv=kv, prompt_kv=prompt_kv, actions=actions[:, now]
                    )
                )
                for x, level in (
                    (noisy[:, now], sigma[:, chunk, None].expand(1, span)),
                    (clean[:, now], torch.zeros(1, span)),
                )
            ]
            torch.testing.assert_close(outs[0], forced[:, now], rtol=1e-3, atol=2e-4)


def test_middle_of_a_clip_is_predicted_alone(tiny: ShapesModel) -> None:
    """Leaving the first noisy chunk out of a training forward does not change the others."""
    torch.manual_seed(4)
    clean, noisy = torch.randn(2, 9, *TINY.dit.latent_shape), torch.randn(2, 12, *TINY.dit.latent_shape)
    sigma, embeds = torch.rand(2, 4), torch.randn(2, 4, *TINY.dit.text_shape)
    actions = torch.rand(2, 12, 2)
    with torch.no_grad():
        whole = tiny._net.dit.predict_clip(clean, noisy, sigma, embeds, actions=actions)
        later = tiny._net.dit.predict_clip(
            clean, noisy[:, 3:], sigma[:, 1:], embeds, first_noisy=1, actions=actions
        )
    torch.testing.assert_close(whole[:, 3:], later, rtol=1e-4, atol=1e-5)


def test_output_keeps_the_picture_in_place() -> None:
    """Patches go back to where they came from: an identity network returns its input."""
    config = CausalDiTConfig(
        dim=16,
        ffn_dim=16,
        heads=2,
        layers=0,
        latent_shape=(4, 4, 6),
        patch=2,
        chunk_frames=3,
        window_frames=3,
        text_shape=(2, 4),
    )
    dit = CausalDiT(config)
    x = torch.randn(2, 3, 4, 4, 6)
    patches = torch.nn.functional.pixel_unshuffle(x, 2).flatten(3).transpose(2, 3)  # channel-major
    as_head = (
        patches.unflatten(-1, (4, 2, 2)).permute(0, 1, 2, 4, 5, 3).flatten(3)
    )  # Wan's head is patch-major
    assert torch.equal(dit._unpatchify(as_head), x)


@pytest.mark.parametrize(
    "change", [{"heads": 5}, {"patch": 5}, {"window_frames": 10}], ids=lambda change: next(iter(change))
)
def test_config_refuses_sizes_that_do_not_fit(change: dict[str, int]) -> None:
    """Heads must divide the width, the patch the latent, the chunk the window."""
    sizes: dict[str, Any] = {
        "dim": 32,
        "ffn_dim": 64,
        "heads": 2,
        "layers": 1,
        "patch": 2,
        "window_frames": 12,
    }
    with pytest.raises(ValueError, match="must|multiple"):
        CausalDiTConfig(latent_shape=(4, 4, 4), chunk_frames=3, text_shape=(4, 8), **(sizes | change))
