"""The procedural world that `shapes` learns: one to three equal objects moving as a group, as numbers.

A clip is simulated frame by frame from a small state, so that a change of prompt at a chunk boundary, or a
push by the viewer's keys, carries on from where the objects are. The objects stand evenly on a circle about
the group's centre; which of them is which never matters, so a picture tells the whole state. Weak pulls back
to the middle keep it bounded for ever. Lengths are in units of a picture 96 wide, whatever its pixels.

Shape letters: B clips, T pixel frames, K chunks, S prompt slots (concepts.SLOTS), M = 3 objects at most.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

import torch
import torch.nn.functional as fn
from torch import Tensor

from engine.models.shapes.concepts import COUNTS, MOTIONS, SLOTS

__all__ = [
    "CHUNK_FRAMES",
    "FRAMES_PER_LATENT",
    "RADII",
    "SIDE",
    "Track",
    "home_offsets",
    "sample_actions",
    "sample_scenes",
    "simulate",
]

SIDE: Final = 96
"""Width and height of the world."""
FRAMES_PER_LATENT: Final = 4
CHUNK_FRAMES: Final = 12

RADII: Final = torch.tensor([[10.0, 9.0, 9.0], [16.0, 14.0, 13.0]])
"""[sizes, counts] radius of each object."""
PUSH: Final = 2.5
"""Pixels per frame that a held key moves the group."""

_DRIFT: Final = torch.tensor([0.8, 1.6, 3.2])  # pixels per frame
_HOP_FRAMES: Final = torch.tensor([40.0, 28.0, 20.0])  # one hop, floor to floor
_ORBIT_FRAMES: Final = torch.tensor([96.0, 56.0, 32.0])  # one turn
_SPIN_FRAMES: Final = torch.tensor([128.0, 76.0, 46.0])  # one turn
_PULSE_FRAMES: Final = torch.tensor([40.0, 24.0, 14.0])  # one beat
_SWELL: Final = 0.28  # share of the radius that a beat adds and takes
_HOP_HEIGHT: Final = torch.tensor([38.0, 38.0, 24.0])  # [counts]
_ORBIT_RADIUS: Final = 26.0
_SPREAD: Final = torch.tensor([0.0, 19.0, 23.0])  # [counts] radius of the formation when not orbiting
_HOME: Final = torch.tensor([0.0, 0.0, -math.pi / 2])  # [counts] its angle: side by side, one above two
_MIDDLE: Final = SIDE / 2
_BAND: Final = 10.0  # pixels either side of the middle that the centre is free in
_PULL: Final = 0.06  # share of the way back to the band per frame
_ORBIT_PULL: Final = 0.12  # same when orbiting, back to the middle itself
_EASE: Final = 0.2  # share of the way to the formation's own radius and angle per frame
_FASTEST_FALL: Final = 8.0

_BOUNCE, _LEFT, _RIGHT, _UP, _DOWN, _ORBIT, _SPIN, _PULSE, _REST = range(len(MOTIONS))


@dataclass(frozen=True, slots=True, kw_only=True)
class Track:
    """Simulated clips: what is drawn in every frame."""

    ids: Tensor
    """[B, K, S] int64 slot indices of every chunk."""
    x: Tensor
    """[B, T, M] object centres; they wrap at the picture's sides. Those beyond the count are not drawn."""
    y: Tensor
    """[B, T, M]"""
    angle: Tensor
    """[B, T] radians, of every object of the group."""
    scale: Tensor
    """[B, T] factor on every object's radius."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Group:
    """State of the groups of B clips, each [B]."""

    x: Tensor
    y: Tensor
    fall: Tensor
    """Downward speed while bouncing."""
    spread: Tensor
    """Radius of the formation."""
    turn: Tensor
    """Angle of the formation."""
    angle: Tensor
    """Angle of each object about itself."""
    beat: Tensor
    """Phase of the pulse, radians."""
    scale: Tensor


def sample_scenes(batch: int, chunks: int, generator: torch.Generator, switch_chance: float = 0.2) -> Tensor:
    """Random prompts [batch, chunks, S], changing at chunk boundaries with the given chance.

    Half of the changes replace everything, the others about 40 % of the slots, so that the model learns to
    read every word again at every chunk instead of copying the past. Half of the scenes have one object.
    """

    def draw() -> Tensor:
        ids = torch.stack([torch.randint(len(slot), (batch,), generator=generator) for slot in SLOTS], dim=-1)
        ids[:, -1] *= (torch.rand(batch, generator=generator) < 0.75).long()
        return ids

    def chance(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    current = draw()
    out = [current]
    for _ in range(chunks - 1):
        everything = chance(batch, 1) < 0.5
        changed = (chance(batch, 1) < switch_chance) & (everything | (chance(batch, len(SLOTS)) < 0.4))
        current = torch.where(changed, draw(), current)
        out.append(current)
    return torch.stack(out, dim=1)


def sample_actions(batch: int, latents: int, generator: torch.Generator, share: float = 0.4) -> Tensor:
    """What viewers hold down: pushes [batch, latents, 2] in [−1, 1] (x right, y down), mostly zero.

    In `share` of the clips somebody presses arrows: each hold lasts 1 to 8 latent frames, rests between.
    """
    plays = torch.rand(batch, generator=generator) < share
    current, left = torch.zeros(batch, 2), torch.zeros(batch)
    out = []
    for _ in range(latents):
        fresh = left <= 0
        held = torch.rand(batch, generator=generator) < 0.6
        direction = torch.randint(-1, 2, (batch, 2), generator=generator).float()
        single = torch.rand(batch, generator=generator) < 0.7
        axis = torch.randint(0, 2, (batch,), generator=generator)
        one_way = fn.one_hot(axis, 2) * direction.sum(1, keepdim=True).clamp(-1, 1)
        stick = 2 * torch.rand(batch, 2, generator=generator) - 1
        analogue = torch.rand(batch, 1, generator=generator) < 0.2
        wanted = torch.where(analogue, stick, torch.where(single[:, None], one_way, direction))
        current = torch.where(fresh[:, None], wanted * held[:, None], current)
        left = torch.where(fresh, torch.randint(1, 9, (batch,), generator=generator).float(), left) - 1
        out.append(current * plays[:, None])
    return torch.stack(out, dim=1)


def home_offsets(spread: Tensor, turn: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Where the objects of a formation stand about its centre: x and y, each [..., M]."""
    share = torch.arange(len(COUNTS)) * 2 * math.pi
    bearing = turn[..., None] + share / count[..., None]
    return spread[..., None] * torch.cos(bearing), spread[..., None] * torch.sin(bearing)


def simulate(ids: Tensor, generator: torch.Generator, actions: Tensor | None = None) -> Track:
    """Run the motion of prompts [B, K, S] for K chunks from a random start near the middle.

    `actions` [B, K·3, 2] in [−1, 1] push the group; none by default.
    """
    group = _start(ids[:, 0], generator)
    frames: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    for frame in range(ids.shape[1] * CHUNK_FRAMES):
        scene = ids[:, frame // CHUNK_FRAMES]
        push = None if actions is None else actions[:, frame // FRAMES_PER_LATENT]
        group = _step(scene, group, push)
        dx, dy = home_offsets(group.spread, group.turn, scene[:, 6] + 1)
        frames.append(
            ((group.x[:, None] + dx) % SIDE, (group.y[:, None] + dy) % SIDE, group.angle, group.scale)
        )
    x, y, angle, scale = (torch.stack(part, dim=1) for part in zip(*frames, strict=True))
    return Track(ids=ids, x=x, y=y, angle=angle, scale=scale)


def _start(scene: Tensor, generator: torch.Generator) -> _Group:
    batch = len(scene)

    def jitter(scale: float) -> Tensor:
        return (torch.rand(batch, generator=generator) * 2 - 1) * scale

    orbiting, count = scene[:, 3] == _ORBIT, scene[:, 6]
    return _Group(
        x=_MIDDLE + jitter(_BAND),
        y=_MIDDLE + jitter(_BAND),
        fall=torch.zeros(batch),
        spread=torch.where(orbiting, _ORBIT_RADIUS, _SPREAD[count]),
        turn=torch.where(orbiting, jitter(math.pi), _HOME[count]),
        angle=torch.zeros(batch),
        beat=torch.zeros(batch),
        scale=torch.ones(batch),
    )


def _step(scene: Tensor, group: _Group, push: Tensor | None) -> _Group:
    """One frame of every motion at once; each clip keeps its own."""
    group = _turn(scene, _move(scene, group))
    if push is not None:
        group = replace(group, x=group.x + PUSH * push[:, 0], y=group.y + PUSH * push[:, 1])
    bouncing, (top, floor) = scene[:, 3] == _BOUNCE, _reach(scene, group)
    y = torch.where(bouncing, torch.minimum(torch.maximum(group.y, top), floor), group.y)
    return replace(group, x=group.x % SIDE, y=y % SIDE)


def _move(scene: Tensor, group: _Group) -> _Group:
    """The group's centre."""
    motion, speed, count = scene[:, 3], scene[:, 4], scene[:, 6]
    drift, hop, height = _DRIFT[speed], _HOP_FRAMES[speed], _HOP_HEIGHT[count]
    orbiting, bouncing = motion == _ORBIT, motion == _BOUNCE
    # Hop: constant gravity, thrown up again with the same speed at every touch of the floor.
    _, floor = _reach(scene, group)
    fall = (group.fall + 8 * height / hop**2).clamp(max=_FASTEST_FALL)
    hop_y = torch.minimum(group.y, floor) + fall
    fall = torch.where(hop_y >= floor, -4 * height / hop, fall)
    hop_y = torch.minimum(hop_y, floor)

    def pull(value: Tensor) -> Tensor:
        offset = value - _MIDDLE
        band = offset.clamp(-_BAND, _BAND) * ~orbiting
        return value - torch.where(orbiting, _ORBIT_PULL, _PULL) * (offset - band)

    x = torch.where(
        motion == _LEFT, group.x - drift, torch.where(motion == _RIGHT, group.x + drift, pull(group.x))
    )
    y = torch.where(
        motion == _UP, group.y - drift, torch.where(motion == _DOWN, group.y + drift, pull(group.y))
    )
    return replace(group, x=x, y=torch.where(bouncing, hop_y, y), fall=torch.where(bouncing, fall, 0.0))


def _turn(scene: Tensor, group: _Group) -> _Group:
    """Formation, angle and size of the objects."""
    motion, speed, count = scene[:, 3], scene[:, 4], scene[:, 6]
    orbiting, spinning, pulsing = motion == _ORBIT, motion == _SPIN, motion == _PULSE
    spread = group.spread + _EASE * (torch.where(orbiting, _ORBIT_RADIUS, _SPREAD[count]) - group.spread)
    period = 2 * math.pi / (count + 1)  # equal objects: only the angle within one period can be seen
    to_home = (_HOME[count] - group.turn + period / 2) % period - period / 2
    turn = torch.where(
        orbiting, group.turn + 2 * math.pi / _ORBIT_FRAMES[speed], group.turn + _EASE * to_home
    )
    angle = torch.where(spinning, group.angle + 2 * math.pi / _SPIN_FRAMES[speed], 0.0)
    beat = torch.where(pulsing, group.beat + 2 * math.pi / _PULSE_FRAMES[speed], 0.0)
    scale = torch.where(pulsing, 1 + _SWELL * torch.sin(beat), group.scale + 0.4 * (1 - group.scale))
    return replace(group, spread=spread, turn=turn, angle=angle, beat=beat, scale=scale)


def _reach(scene: Tensor, group: _Group) -> tuple[Tensor, Tensor]:
    """Highest and lowest centre [B] that keep the group's objects in the picture."""
    count = scene[:, 6]
    _, dy = home_offsets(group.spread, group.turn, count + 1)
    shown = torch.arange(len(COUNTS)) <= count[:, None]
    radius = RADII[scene[:, 2], count]
    below = torch.where(shown, dy, -SIDE).amax(dim=1)
    above = torch.where(shown, dy, SIDE).amin(dim=1)
    return radius - above, SIDE - 4 - radius - below
