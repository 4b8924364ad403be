"""What differs between the causal checkpoints of Wan 2.1: sizes, noise levels, window, sink, licence.

Sizes are Wan's own; schedules are those each checkpoint was trained with. A checkpoint run with another
family's schedule makes video, but a worse one: shift and steps belong to the weights.

Shape letters: as in base.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import inf
from typing import Any, Final, Literal

from engine.models.causal_dit import CausalDiTConfig

__all__ = [
    "CAUSAL_FORCING_FRAMEWISE",
    "CAUSAL_FORCING_FRAMEWISE_1",
    "CAUSAL_FORCING_FRAMEWISE_4",
    "CAUSVID",
    "KREA_14B",
    "LONGLIVE",
    "PRESETS",
    "SELF_FORCING",
    "TINY",
    "DecoderKind",
    "WanConfig",
    "changed",
    "warp",
]

DecoderKind = Literal["taehv", "wan_vae"]

_TRAINED_STEPS: Final = 1000
"""Steps of the schedule that step lists count in."""
_TABLE_FRAMES: Final = 1024
"""Latent frames of the position table in the reference code: nothing further apart was ever trained."""


def warp(step: float, shift: float) -> float:
    """Noise level of a step of the unshifted schedule (1000: pure noise), moved to the noisy side."""
    u = step / _TRAINED_STEPS
    return shift * u / (1 + (shift - 1) * u)


@dataclass(frozen=True, slots=True, kw_only=True)
class WanConfig:
    """One checkpoint family at one size. Checked on construction."""

    name: str
    """The model's name for clients."""
    dit: CausalDiTConfig
    shift: float = 5.0
    """How far the schedule leans to the noisy side."""
    steps: tuple[int, ...] = (1000, 750, 500, 250)
    """Denoising steps, falling, in 1000ths."""
    first_steps: tuple[int, ...] | None = None
    """Those of the first chunk after start or reset; None: the same."""
    is_warped: bool = True
    """Are `steps` positions in the unshifted schedule, for `shift` to move? False: noise levels as such."""
    sink_frames: int = 0
    """Latent frames since start that stay in the window."""
    sink_reach: int | None = None
    """Latent frames from the sink to the newest frame, at most; see `ModelSpec`. None: any distance."""
    recaches_prompts: bool = False
    """Was it trained to have its window written again when the prompt changes?"""
    context_noise: int = 0
    """Noise level that the clean pass is told, in 1000ths."""
    decoder: DecoderKind = "taehv"
    decoder_width: int = 64
    """Feature channels of the decoder at full size; the published TAEHV has 64, the Wan VAE 96."""
    fps: int = 16
    fp8: bool = False
    """Multiply 8-bit floats in the blocks: faster on cards that can, and a little off (docs/wan.md)."""
    parts: tuple[str, ...] = ("generator_ema", "generator")
    """Which part of its training checkpoint to take, best first: averaged weights, or those as trained."""
    source: str = ""
    """Where the weights are published."""
    lora: str = ""
    """What has to be merged into them, if they are published apart from it."""
    licence: str = ""
    """Of the weights, as their card said when this was written: the card in force counts."""

    def __post_init__(self) -> None:
        if not 0 <= self.context_noise < _TRAINED_STEPS:
            raise ValueError(f"{self.name}: context_noise must be in [0, {_TRAINED_STEPS})")
        if not 1 <= self.shift < inf:
            raise ValueError(f"{self.name}: shift must be at least 1")
        for steps in (self.steps, self.steps if self.first_steps is None else self.first_steps):
            falling = all(a > b for a, b in zip(steps, steps[1:], strict=False))
            if not steps or not falling or not all(0 < step <= _TRAINED_STEPS for step in steps):
                raise ValueError(f"{self.name}: steps must fall within (0, {_TRAINED_STEPS}], not {steps}")
        self._check_window()

    def _check_window(self) -> None:
        """As `ModelSpec` does, but before weights are read for it."""
        chunk, window = self.dit.chunk_frames, self.dit.window_frames
        sink, reach = self.sink_frames, self.sink_reach
        if (window - sink) % chunk:
            raise ValueError(
                f"{self.name}: the window without its sink must be whole chunks, not {window - sink}"
            )
        if not 0 <= sink <= window - chunk:
            raise ValueError(f"{self.name}: no room for a sink of {sink} and a chunk in a window of {window}")
        if sink and reach is not None and (sink % chunk or reach < window):
            raise ValueError(f"{self.name}: sink_reach needs a sink of whole chunks and at least the window")

    def meaning(self) -> str:
        """All of it that decides what a session's state means: where weights come from does not, so that
        another sentence about it in a newer version does not part its engines from older ones."""
        return repr(replace(self, source="", lora="", licence="", parts=()))

    def sigmas(self, *, is_first: bool) -> tuple[float, ...]:
        """Noise levels of a chunk's denoising passes."""
        steps = self.first_steps if is_first and self.first_steps is not None else self.steps
        if self.is_warped:
            return tuple(warp(step, self.shift) for step in steps)
        return tuple(step / _TRAINED_STEPS for step in steps)


_DIT_1_3B: Final = CausalDiTConfig(
    dim=1536,
    ffn_dim=8960,
    heads=12,
    layers=30,
    latent_shape=(16, 60, 104),
    patch=2,
    chunk_frames=3,
    window_frames=21,
    text_shape=(512, 4096),
)
"""Wan2.1-T2V-1.3B at 480×832."""

_DIT_14B: Final = replace(_DIT_1_3B, dim=5120, ffn_dim=13824, heads=40, layers=40)

SELF_FORCING: Final = WanConfig(
    name="wan-1.3b-causal",
    dit=_DIT_1_3B,
    source="gdhe17/Self-Forcing",
    licence="CC-BY-NC-SA-4.0",
)
"""Self-Forcing, and Causal-Forcing trained by chunks. Shift 5 as in its inference script (its demo has 8)."""

CAUSAL_FORCING_FRAMEWISE_4: Final = replace(
    SELF_FORCING,
    name="wan-1.3b-framewise-4",
    dit=replace(_DIT_1_3B, chunk_frames=1),
    source="zhuhz22/Causal-Forcing",
    licence="see its card",
)
"""Causal-Forcing, one latent frame at a time, four steps each."""

CAUSAL_FORCING_FRAMEWISE: Final = replace(
    CAUSAL_FORCING_FRAMEWISE_4,
    name="wan-1.3b-framewise",
    steps=(1000, 500),
    first_steps=(1000, 750, 500, 250),
)
"""Causal-Forcing++: four steps for the first frame, two for the others."""

CAUSAL_FORCING_FRAMEWISE_1: Final = replace(
    CAUSAL_FORCING_FRAMEWISE, name="wan-1.3b-framewise-1", steps=(1000,)
)
"""Causal-Forcing++: four steps for the first frame, one for the others."""

CAUSVID: Final = replace(
    SELF_FORCING,
    name="wan-1.3b-causvid",
    shift=8.0,
    steps=(1000, 757, 522),
    is_warped=False,
    source="tianweiy/CausVid",
    licence="CC-BY-NC-SA-4.0 (code); treat the weights as non-commercial",
)

LONGLIVE: Final = replace(
    SELF_FORCING,
    name="wan-1.3b-longlive",
    dit=replace(_DIT_1_3B, window_frames=12),
    sink_frames=3,
    sink_reach=_TABLE_FRAMES,
    recaches_prompts=True,
    parts=("generator", "generator_ema"),
    source="Efficient-Large-Model/LongLive-1.3B",
    lora="models/lora.pt of Efficient-Large-Model/LongLive-1.3B",
    licence="CC-BY-NC-SA-4.0 by their card; the code that comes with them is Apache-2.0 since 2025-11-01",
)
"""Three frames of sink and nine of the recent past, for videos without end."""

KREA_14B: Final = WanConfig(
    name="wan-14b-krea",
    dit=replace(_DIT_14B, window_frames=6),
    steps=(1000, 937, 833, 625),
    is_warped=False,
    source="krea/krea-realtime-video",
    licence="see its card",
)
"""Krea recomputes its context before each block; here the clean pass writes it, at the same cost."""

TINY: Final = WanConfig(
    name="wan-tiny",
    dit=CausalDiTConfig(
        dim=64,
        ffn_dim=128,
        heads=2,
        layers=2,
        latent_shape=(16, 8, 8),
        patch=2,
        chunk_frames=3,
        window_frames=12,
        text_shape=(32, 48),
    ),
    sink_frames=3,
    sink_reach=_TABLE_FRAMES,
    recaches_prompts=True,
    decoder_width=8,
    licence="none: random weights, made at start",
)
"""LongLive's structure at 64×64 with random weights: for tests, and to see the whole system without a GPU."""

PRESETS: Final[Mapping[str, WanConfig]] = {
    config.name: config
    for config in (
        SELF_FORCING,
        CAUSAL_FORCING_FRAMEWISE,
        CAUSAL_FORCING_FRAMEWISE_1,
        CAUSAL_FORCING_FRAMEWISE_4,
        CAUSVID,
        LONGLIVE,
        KREA_14B,
        TINY,
    )
}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _are_steps(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_count, value))


_CHANGES: Final[Mapping[str, tuple[Callable[[object], bool], str]]] = {
    "shift": (_is_number, "a number"),
    "steps": (_are_steps, "a list of whole numbers"),
    "first_steps": (_are_steps, "a list of whole numbers"),
    "is_warped": (lambda value: isinstance(value, bool), "true or false"),
    "window_frames": (_is_count, "a whole number"),
    "sink_frames": (_is_count, "a whole number"),
    "sink_reach": (lambda value: value is None or _is_count(value), "a whole number or null"),
    "recaches_prompts": (lambda value: isinstance(value, bool), "true or false"),
    "context_noise": (_is_count, "a whole number"),
    "decoder": (lambda value: value in _DECODER_WIDTHS, "taehv or wan_vae"),
    "fp8": (lambda value: isinstance(value, bool), "true or false"),
}
"""What a model's folder may say otherwise than its preset: is it such a value, and what would be one?"""
_DECODER_WIDTHS: Final[Mapping[object, int]] = {"taehv": 64, "wan_vae": 96}


def changed(config: WanConfig, changes: Mapping[str, Any]) -> WanConfig:
    """A preset with some settings of a checkpoint of one's own.

    Raises:
        ValueError: there is no such setting, or it can't have this value.
    """
    for name, value in changes.items():
        if name not in _CHANGES:
            raise ValueError(f"{name} is no setting of a model; known: {', '.join(_CHANGES)}")
        is_valid, wanted = _CHANGES[name]
        if not is_valid(value):
            raise ValueError(f"{name} must be {wanted}, not {value!r}")
    values: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in changes.items()}
    window = values.pop("window_frames", config.dit.window_frames)
    decoder = values.get("decoder", config.decoder)
    values["decoder_width"] = (
        config.decoder_width * _DECODER_WIDTHS[decoder] // _DECODER_WIDTHS[config.decoder]
    )
    return replace(config, dit=replace(config.dit, window_frames=window), **values)
