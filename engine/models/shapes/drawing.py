"""Draw the world: tracks → antialiased pictures, as tensors on any device.

Shape letters: B clips, T pixel frames, S prompt slots, M objects at most, Z picture side in pixels, n = B·T.
"""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor

from engine.models.shapes.concepts import BACKGROUNDS, COUNTS, SHAPES
from engine.models.shapes.world import CHUNK_FRAMES, RADII, SIDE, Track

__all__ = ["BACKGROUND_RGB", "COLOUR_RGB", "backgrounds", "draw"]

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
        [22, 44, 48],
    ],
    dtype=torch.float32,
)
"""[backgrounds, 3] plain colours, 0…255; darker than the objects so that red on red can be seen. Sunset is a
gradient of its own."""

_EDGE: Final = 0.9  # half width of the antialiased edge, pixels
_MARGIN: Final = 1.2  # objects reach that many radii from their centres, stars most


def draw(track: Track, *, side: int = SIDE, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Draw a track: (RGB [B, T, 3, Z, Z] float32 in [0, 1], object coverage [B, T, 1, Z, Z] in [0, 1]).

    The picture is `side` pixels wide, whatever the units of the world.
    """
    batch, frames = track.angle.shape
    ids = track.ids.repeat_interleave(CHUNK_FRAMES, dim=1)[:, :frames].flatten(0, 1).to(device)
    x, y = (part.flatten(0, 1).to(device) * side / SIDE for part in (track.x, track.y))
    angle, scale = track.angle.flatten().to(device), track.scale.flatten().to(device)
    radius = RADII.to(device)[ids[:, 2], ids[:, 6]] * scale * side / SIDE
    mask = torch.zeros(len(ids), 1, side, side, device=device)
    for number in range(len(COUNTS)):
        _cover(mask, ids, number, x[:, number], y[:, number], angle, radius)
    colour = (COLOUR_RGB.to(device) / 255)[ids[:, 0]][:, :, None, None]
    ground = backgrounds(side).to(device)[ids[:, 5]]
    picture = ground + mask * (colour - ground)
    return picture.unflatten(0, (batch, frames)), mask.unflatten(0, (batch, frames))


def _cover(
    mask: Tensor, ids: Tensor, number: int, x: Tensor, y: Tensor, angle: Tensor, radius: Tensor
) -> None:
    """Add object `number` of every picture that has it to the masks [n, 1, Z, Z].

    Computed in a patch around the object; patches wrap at the sides.
    """
    side = mask.shape[-1]
    reach = math.ceil(_MARGIN * float(radius.max()) + _EDGE)
    patch = torch.arange(-reach, reach + 1, device=mask.device)
    for shape, name in enumerate(SHAPES):
        of = ((ids[:, 1] == shape) & (ids[:, 6] >= number)).nonzero()[:, 0]
        columns, rows = x[of].floor().long()[:, None] + patch, y[of].floor().long()[:, None] + patch
        dx, dy = columns + 0.5 - x[of, None], rows + 0.5 - y[of, None]
        distance = _distance(name, dx[:, None, :], dy[:, :, None], radius[of], angle[of])
        covered = (0.5 - distance / (2 * _EDGE)).clamp(0, 1)
        where = (of[:, None, None], rows[:, :, None] % side, columns[:, None, :] % side)
        mask[:, 0][where] = torch.maximum(mask[:, 0][where], covered)


def _distance(shape: str, dx: Tensor, dy: Tensor, radius: Tensor, angle: Tensor) -> Tensor:
    """Signed distance in pixels to the outline, negative inside, [n, patch, patch]."""
    r = radius[:, None, None]
    length = torch.sqrt(dx**2 + dy**2)
    match shape:
        case "circle":
            return length - r
        case "ring":
            return (length - 0.74 * r).abs() - 0.26 * r
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


def backgrounds(side: int = SIDE) -> Tensor:
    """Every background as a picture, [backgrounds, 3, Z, Z] in [0, 1]."""
    plain = (BACKGROUND_RGB / 255)[:, :, None, None].repeat(1, 1, side, side)
    unit = side / SIDE
    sky = plain[BACKGROUNDS.index("night")]
    for i in range(24):  # fixed stars on a scattered lattice
        row, column = (round(unit * ((i * step + at) % (SIDE - 4) + 2)) for step, at in ((37, 11), (61, 5)))
        sky[:, row : row + 2, column : column + 2] = 0.85
    down = torch.linspace(0, 1, side)[None, :, None]
    top, bottom = torch.tensor([70.0, 25.0, 110.0]) / 255, torch.tensor([235.0, 120.0, 60.0]) / 255
    plain[BACKGROUNDS.index("sunset")] = top[:, None, None] * (1 - down) + bottom[:, None, None] * down
    lines = (torch.arange(side) / unit).long() % 16 == 8
    line_rgb = torch.tensor([70.0, 150.0, 150.0]) / 255
    net = plain[BACKGROUNDS.index("grid")]
    net[:, lines] = line_rgb[:, None, None]
    net[:, :, lines] = line_rgb[:, None, None]
    return plain
