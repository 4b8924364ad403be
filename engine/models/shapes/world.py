"""The procedural world that `shapes` learns: one object moving over a plain background, as tensors.

A clip is simulated frame by frame from a small state (position, vertical speed, angle), so that a change of
prompt at a chunk boundary carries on from where the object is. Weak pulls back to the middle keep the state
bounded for ever.

Shape letters: B clips, T pixel frames, K chunks, S = 6 prompt slots (concepts.SLOTS), Z picture side in
pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from engine.models.shapes.concepts import BACKGROUNDS, MOTIONS, SHAPES, SLOTS

__all__ = [
    "BACKGROUND_RGB",
    "CHUNK_FRAMES",
    "COLOUR_RGB",
    "SIDE",
    "Track",
    "render",
    "sample_scenes",
    "simulate",
]

SIDE: Final = 96
CHUNK_FRAMES: Final = 12

COLOUR_RGB: Final = torch.tensor(
    [
        [235, 45, 45],
        [60, 215, 75],
        [60, 130, 255],
        [250, 225, 55],
        [175, 70, 230],
        [255, 145, 35],
        [60, 230, 235],
        [250, 250, 250],
    ],
    dtype=torch.float32,
)
"""[colours, 3] object colours, 0…255, in the order of concepts.COLOURS."""

BACKGROUND_RGB: Final = torch.tensor(
    [
        [8, 8, 8],
        [222, 222, 222],
        [118, 118, 118],
        [25, 50, 170],
        [20, 110, 45],
        [130, 22, 28],
        [85, 28, 120],
        [190, 165, 40],
        [10, 12, 38],
        [0, 0, 0],
    ],
    dtype=torch.float32,
)
"""[backgrounds, 3] plain colours, 0…255; darker than the objects so that red on red can be seen."""

_RADII: Final = torch.tensor([10.0, 16.0])
_DRIFT: Final = torch.tensor([1.0, 2.0, 4.0])  # pixels per frame
_HOP_FRAMES: Final = torch.tensor([36.0, 24.0, 16.0])  # one hop, floor to floor
_ORBIT_FRAMES: Final = torch.tensor([72.0, 40.0, 22.0])  # one turn
_SPIN_FRAMES: Final = torch.tensor([80.0, 44.0, 24.0])  # one turn
_HOP_HEIGHT: Final = 42.0
_ORBIT_RADIUS: Final = 26.0
_MIDDLE: Final = SIDE / 2
_BAND: Final = 12.0  # pixels either side of the middle that positions are free in
_PULL: Final = 0.06  # share of the way back to the band per frame
_REACH: Final = 21  # the largest object reaches less far from its centre
_EDGE: Final = 0.75  # half width of the antialiased edge, pixels

_BOUNCE, _LEFT, _RIGHT, _UP, _DOWN, _ORBIT, _SPIN, _REST = range(len(MOTIONS))


@dataclass(frozen=True, slots=True, kw_only=True)
class Track:
    """Simulated clips: what is drawn in every frame."""

    ids: Tensor
    """[B, K, S] int64 slot indices of every chunk."""
    x: Tensor
    """[B, T] object centre, pixels; wraps at the picture's sides."""
    y: Tensor
    """[B, T]"""
    angle: Tensor
    """[B, T] radians."""


def sample_scenes(batch: int, chunks: int, generator: torch.Generator, switch_chance: float = 0.2) -> Tensor:
    """Random prompts [batch, chunks, S], changing at chunk boundaries with the given chance.

    Half of the changes replace everything, the others about 40 % of the slots, so that the model learns to
    read every word again at every chunk instead of copying the past.
    """

    def draw() -> Tensor:
        return torch.stack(
            [torch.randint(len(slot), (batch,), generator=generator) for slot in SLOTS], dim=-1
        )

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


def simulate(ids: Tensor, generator: torch.Generator) -> Track:
    """Run the motion of prompts [B, K, S] for K chunks from a random start near the middle."""
    batch, chunks, _ = ids.shape

    def jitter(scale: float) -> Tensor:
        return (torch.rand(batch, generator=generator) * 2 - 1) * scale

    x, y = _MIDDLE + jitter(_BAND), _MIDDLE + jitter(_BAND)
    fall, angle, turn = torch.zeros(batch), torch.zeros(batch), jitter(math.pi)
    frames: list[tuple[Tensor, Tensor, Tensor]] = []
    for chunk in range(chunks):
        motion, speed, radius = ids[:, chunk, 3], ids[:, chunk, 4], _RADII[ids[:, chunk, 2]]
        for _ in range(CHUNK_FRAMES):
            x, y, fall, angle, turn = _step(motion, speed, radius, x, y, fall, angle, turn)
            frames.append((x, y, angle))
    xs, ys, angles = (torch.stack(part, dim=1) for part in zip(*frames, strict=True))
    return Track(ids=ids, x=xs, y=ys, angle=angles)


def _pull(value: Tensor) -> Tensor:
    offset = value - _MIDDLE
    return value - _PULL * (offset - offset.clamp(-_BAND, _BAND))


def _step(
    motion: Tensor,
    speed: Tensor,
    radius: Tensor,
    x: Tensor,
    y: Tensor,
    fall: Tensor,
    angle: Tensor,
    turn: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """One frame of every motion at once; each clip keeps its own."""
    drift, hop = _DRIFT[speed], _HOP_FRAMES[speed]
    is_x, is_y = (motion == _LEFT) | (motion == _RIGHT), (motion == _UP) | (motion == _DOWN)
    orbiting, bouncing, spinning = motion == _ORBIT, motion == _BOUNCE, motion == _SPIN

    # Hop: constant gravity, thrown up again with the same speed at every touch of the floor.
    gravity, floor = 8 * _HOP_HEIGHT / hop**2, SIDE - 4 - radius
    fallen = fall + gravity
    hop_y = torch.minimum(y, floor) + fallen
    touched = hop_y >= floor
    hop_y = torch.where(touched, floor, hop_y)
    fallen = torch.where(touched, -4 * _HOP_HEIGHT / hop, fallen)

    # Orbit: go on from the present angle about the middle, radius easing to its own. Near the middle the
    # angle of the state decides, because the position has none.
    dx, dy = x - _MIDDLE, y - _MIDDLE
    distance = torch.hypot(dx, dy)
    bearing = torch.where(distance > 4, torch.atan2(dy, dx), turn) + 2 * math.pi / _ORBIT_FRAMES[speed]
    reach = distance + 0.2 * (_ORBIT_RADIUS - distance)

    moved_x = torch.where(is_x, x + torch.where(motion == _LEFT, -drift, drift), _pull(x))
    moved_y = torch.where(is_y, y + torch.where(motion == _UP, -drift, drift), _pull(y))
    new_x = torch.where(orbiting, _MIDDLE + reach * torch.cos(bearing), moved_x)
    new_y = torch.where(orbiting, _MIDDLE + reach * torch.sin(bearing), torch.where(bouncing, hop_y, moved_y))
    new_angle = torch.where(spinning, angle + 2 * math.pi / _SPIN_FRAMES[speed], 0.0)
    new_turn = torch.where(orbiting, bearing, turn)
    return new_x % SIDE, new_y % SIDE, torch.where(bouncing, fallen, 0.0), new_angle, new_turn


def render(track: Track) -> tuple[Tensor, Tensor]:
    """Draw a track: (RGB [B, T, 3, Z, Z] float32 in [0, 1], object coverage [B, T, 1, Z, Z] in [0, 1])."""
    batch, frames = track.x.shape
    ids = track.ids.repeat_interleave(CHUNK_FRAMES, dim=1)[:, :frames].flatten(0, 1)
    mask = _coverage(ids, track.x.flatten(), track.y.flatten(), track.angle.flatten())
    colour = (COLOUR_RGB / 255)[ids[:, 0]][:, :, None, None]
    ground = _backgrounds()[ids[:, 5]]
    picture = ground + mask * (colour - ground)
    return picture.unflatten(0, (batch, frames)), mask.unflatten(0, (batch, frames))


def _coverage(ids: Tensor, x: Tensor, y: Tensor, angle: Tensor) -> Tensor:
    """Antialiased masks [n, 1, Z, Z], computed in a patch around the object; patches wrap at the sides."""
    patch = torch.arange(-_REACH, _REACH)
    columns, rows = x.floor().long()[:, None] + patch, y.floor().long()[:, None] + patch  # [n, patch]
    dx, dy = columns + 0.5 - x[:, None], rows + 0.5 - y[:, None]
    radius = _RADII[ids[:, 2]]
    mask = torch.zeros(len(ids), 1, SIDE, SIDE)
    for shape in range(len(SHAPES)):
        of = (ids[:, 1] == shape).nonzero()[:, 0]
        distance = _distance(SHAPES[shape], dx[of][:, None, :], dy[of][:, :, None], radius[of], angle[of])
        where = (
            of[:, None, None],
            torch.tensor(0),
            rows[of][:, :, None] % SIDE,
            columns[of][:, None, :] % SIDE,
        )
        mask.index_put_(where, (0.5 - distance / (2 * _EDGE)).clamp(0, 1))
    return mask


def _distance(shape: str, dx: Tensor, dy: Tensor, radius: Tensor, angle: Tensor) -> Tensor:
    """Signed distance in pixels to the outline, negative inside, [n, Z, Z]."""
    r = radius[:, None, None]
    length = torch.sqrt(dx**2 + dy**2)
    match shape:
        case "ball":
            return length - r
        case "ring":
            return (length - 0.75 * r).abs() - 0.25 * r
        case "square":
            return _polygon(dx, dy, length, angle, 4) - 0.85 * r
        case "triangle":
            return _polygon(dx, dy, length, angle + math.pi / 2, 3) - 0.6 * r
        case "star":
            return _star(dx, dy, length, angle - math.pi / 2, 1.15 * r)
        case _:
            raise AssertionError(shape)


def _fold(dx: Tensor, dy: Tensor, angle: Tensor, corners: int) -> Tensor:
    """Angle to the nearest of the evenly spaced directions, in [−π/corners, π/corners]."""
    sector = 2 * math.pi / corners
    bearing = torch.atan2(dy, dx) - angle[:, None, None]
    return (bearing + sector / 2) % sector - sector / 2


def _polygon(dx: Tensor, dy: Tensor, length: Tensor, angle: Tensor, sides: int) -> Tensor:
    """Distance from the middle along the normal of the nearest side; a side faces `angle`."""
    return length * torch.cos(_fold(dx, dy, angle, sides))


def _star(dx: Tensor, dy: Tensor, length: Tensor, angle: Tensor, r: Tensor) -> Tensor:
    """Five points, one at `angle`; the notches lie at 0.45 of the radius."""
    bearing = _fold(dx, dy, angle, 5).abs()
    notch_x, notch_y = 0.45 * math.cos(math.pi / 5), 0.45 * math.sin(math.pi / 5)
    # Outward normal of the edge from the point (1, 0) to the notch.
    norm = math.hypot(notch_y, 1 - notch_x)
    normal_x, normal_y = notch_y / norm, (1 - notch_x) / norm
    return normal_x * (length * torch.cos(bearing) - r) + normal_y * length * torch.sin(bearing)


def _backgrounds() -> Tensor:
    """Every background as a picture, [backgrounds, 3, Z, Z] in [0, 1]."""
    plain = (BACKGROUND_RGB / 255)[:, :, None, None].repeat(1, 1, SIDE, SIDE)
    sky = plain[BACKGROUNDS.index("night")]
    for i in range(24):  # fixed stars on a scattered lattice
        row, column = (i * 37 + 11) % (SIDE - 4) + 2, (i * 61 + 5) % (SIDE - 4) + 2
        sky[:, row : row + 2, column : column + 2] = 0.85
    down = torch.linspace(0, 1, SIDE)[None, :, None]
    top, bottom = torch.tensor([70.0, 25.0, 110.0]) / 255, torch.tensor([235.0, 120.0, 60.0]) / 255
    plain[BACKGROUNDS.index("sunset")] = top[:, None, None] * (1 - down) + bottom[:, None, None] * down
    return plain
