"""Make `dit.safetensors` and `vae.safetensors`: what diffusers computes from small random weights.

Run once, by hand, where diffusers is installed; tests read the files only. Weights aren't stored: both sides
make them from the tensors' names (`weights_of`). Diffusers' names for them are stored, and so
test the key maps.

    pip install diffusers==0.42.1 && python tests/golden/wan/generate.py
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[2]))

from engine.models.wan.keys import canonical_names  # noqa: E402
from engine.models.wan.vae import LATENT_MEAN, LATENT_STD  # noqa: E402
from engine.noise import gaussian  # noqa: E402

DIT = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 8,
    "freq_dim": 16,
    "ffn_dim": 32,
    "num_layers": 2,
    "rope_max_seq_len": 64,
}
VAE = {"base_dim": 4, "z_dim": 4, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2}
FRAMES, TEXT = 3, 5


def weights_of(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Name by Wan → normal numbers, scaled so that nothing dies or explodes; gains around 1."""
    out = {}
    for name, shape in shapes.items():
        seed = int.from_bytes(name.encode()[-7:], "big") + len(name)
        x = torch.from_numpy(gaussian(shape, seed=seed, index=len(name), step=0))
        is_gain = "norm" in name and name.endswith("weight") or name.endswith("gamma")
        fan = max(1, x[0].numel()) if x.ndim > 1 else 25
        out[name] = 1 + 0.1 * x if is_gain else x / fan**0.5
    return out


def load(net: nn.Module, prefixes: tuple[str, ...]) -> str:
    """Give a module of diffusers its weights; its own names and shapes as JSON."""
    theirs = {k: v for k, v in net.state_dict().items() if k.startswith(prefixes)}
    ours = canonical_names(theirs)
    weights = weights_of({ours[k]: tuple(v.shape) for k, v in theirs.items()})
    net.load_state_dict({k: weights[ours[k]] for k in theirs}, strict=False)
    return json.dumps({k: list(v.shape) for k, v in theirs.items()})


def noise(*shape: int, seed: int) -> Tensor:
    """Inputs."""
    return torch.from_numpy(gaussian(shape, seed=seed, index=0, step=0))


@torch.no_grad()
def main() -> None:
    """Write both files."""
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
    from diffusers.models.transformers.transformer_wan import WanTransformer3DModel

    dit = WanTransformer3DModel(**DIT).eval()
    names = load(dit, ("",))
    x, text = noise(1, 4, FRAMES, 8, 6, seed=1), noise(1, TEXT, 8, seed=2)
    out = dit(x, timestep=torch.tensor([625.0]), encoder_hidden_states=text, return_dict=False)[0]
    save_file(
        {"x": x[0].transpose(0, 1).contiguous(), "text": text, "out": out[0].transpose(0, 1).contiguous()},
        HERE / "dit.safetensors",
        metadata={"names": names},
    )
    published = AutoencoderKLWan.from_config({}).config
    assert tuple(published.latents_mean) == LATENT_MEAN and tuple(published.latents_std) == LATENT_STD
    vae = AutoencoderKLWan(**VAE, latents_mean=[0.0] * 4, latents_std=[1.0] * 4).eval()
    names = load(vae, ("decoder.", "post_quant_conv."))
    z = noise(1, 4, FRAMES, 3, 2, seed=3)
    mean, std = (torch.tensor(v[:4]).view(1, 4, 1, 1, 1) for v in (LATENT_MEAN, LATENT_STD))
    video = vae.decode(z * std + mean).sample
    save_file(
        {"latents": z[0].transpose(0, 1).contiguous(), "video": video[0].transpose(0, 1).contiguous()},
        HERE / "vae.safetensors",
        metadata={"names": names},
    )


if __name__ == "__main__":
    main()
