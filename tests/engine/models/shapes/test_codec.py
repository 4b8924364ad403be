"""The decoder streams: state in, state out."""

from __future__ import annotations

import torch

from engine.models.shapes.codec import CodecConfig, Decoder, Encoder, to_uint8
from engine.models.shapes.model import TINY, ShapesModel


def test_chunks_decode_like_the_whole_clip(tiny: ShapesModel) -> None:
    """Nine latents decoded as 3 + 3 + 3 or as 1 + 8 give the frames and the state of one call."""
    torch.manual_seed(0)
    latents = torch.randn(9, *tiny.spec.latent_shape)
    whole, whole_state = tiny.decode(latents, tiny.initial_decoder_state())
    for sizes in ((3, 3, 3), (1, 8)):
        state, parts = tiny.initial_decoder_state(), []
        for part in latents.split(list(sizes)):
            rgb, state = tiny.decode(part, state)
            parts.append(rgb)
        assert (torch.cat(parts).int() - whole.int()).abs().max() <= 1
        torch.testing.assert_close(state, whole_state, rtol=1e-4, atol=1e-5)


def test_state_matters() -> None:
    """A lost state shows: the decoder really reads its memory."""
    torch.manual_seed(0)
    decoder = Decoder(TINY.codec)
    latents = torch.randn(1, 4, TINY.codec.channels, 4, 4)
    with torch.no_grad():
        _, state = decoder(latents[:, :2], decoder.initial_state()[None])
        kept, _ = decoder(latents[:, 2:], state)
        lost, _ = decoder(latents[:, 2:], decoder.initial_state()[None])
    assert not torch.allclose(kept, lost, atol=1e-4)


def test_state_depends_on_the_last_two_latents() -> None:
    """A state can be rebuilt from the tail of a clip."""
    torch.manual_seed(0)
    decoder = Decoder(TINY.codec)
    latents = torch.randn(1, 6, TINY.codec.channels, 4, 4)
    with torch.no_grad():
        _, full = decoder(latents, decoder.initial_state()[None])
        _, tail = decoder(latents[:, -2:], decoder.initial_state()[None])
    torch.testing.assert_close(full, tail, rtol=1e-4, atol=1e-5)


def test_encoder_is_causal() -> None:
    """A latent sees its own four frames only."""
    torch.manual_seed(0)
    config = CodecConfig(channels=4, side=4, encoder_widths=(16, 8, 8))
    encoder = Encoder(config)
    rgb = torch.rand(1, 12, 3, 32, 32)
    with torch.no_grad():
        before = encoder(rgb)
        rgb[:, 8:] = 0
        after = encoder(rgb)
    assert torch.allclose(before[:, :2], after[:, :2], atol=1e-6)
    assert not torch.allclose(before[:, 2], after[:, 2], atol=1e-3)


def test_pixels_are_rounded_and_clamped() -> None:
    """Out-of-range values end at 0 and 255."""
    rgb = torch.tensor([-0.5, 0.5, 1.5])[None, :, None, None]
    assert to_uint8(rgb).tolist() == [[[[0, 128, 255]]]]
