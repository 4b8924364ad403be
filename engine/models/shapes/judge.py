"""What does a video of the `shapes` world show? Plain measurements on pixels, without knowing the prompt.

`observe` names background, colour, shape, size, count, motion and speed of a clip of one prompt; `score`
compares that with a scene. Drawn scenes go through the same judge: that is its own ceiling.

Shape letters: T frames, Z picture side in pixels, M objects in a frame.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations
from typing import Final

import torch
import torch.nn.functional as fn
from torch import Tensor

from engine.models.shapes.concepts import BACKGROUNDS, COLOURS, COUNTS, SHAPES, SIZES, SPEEDS, Scene
from engine.models.shapes.drawing import COLOUR_RGB, backgrounds, draw
from engine.models.shapes.world import RADII, SIDE, Track

__all__ = ["Observation", "ground_and_mask", "observe", "score"]

_DIFFERENT: Final = 60.0  # RGB distance from the background that makes a pixel an object's
_MIN_AREA: Final = 50  # pixels; smaller patches are dirt
_GROUND_LIMIT: Final = 40.0  # mean RGB distance at which a picture is no known background
_FIT: Final = 48  # side of the patch in which shapes are compared
_STILL: Final = 0.45  # pixels per frame
_SMOOTH: Final = 4  # frames over which speeds are taken

_PACES: Final = {
    "drift": (0.8, 1.6, 3.2),  # pixels per frame
    "orbit": tuple(2 * math.pi / n for n in (96, 56, 32)),  # radians per frame
    "spin": tuple(2 * math.pi / n for n in (128, 76, 46)),
    "pulse": tuple(4 * 0.28 / n for n in (40, 24, 14)),  # mean change of the radius per frame, of itself
    "bounce": (1.9, 2.27, 2.95),  # mean vertical pixels per frame, measured on drawn scenes
    "bounce of three": (1.23, 1.49, 1.93),
}
"""What the three speeds are for each kind of motion."""
_SYMMETRY: Final = {"square": math.pi / 2, "triangle": 2 * math.pi / 3, "star": 2 * math.pi / 5}


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What a clip shows; None: cannot be told."""

    background: str | None
    count: str | None
    colour: str | None = None
    shape: str | None = None
    size: str | None = None
    motion: str | None = None
    speed: str | None = None


def score(seen: Observation, scene: Scene) -> dict[str, bool]:
    """Which attributes of the scene the clip shows. What no picture could show is left out: the speed of
    rest, and the spin of circles and rings, which look at rest."""
    motion, is_round = scene.motion, scene.shape in ("circle", "ring")
    result = {
        name: getattr(seen, name) == getattr(scene, name)
        for name in ("background", "count", "colour", "shape", "size")
    }
    if motion == "spin" and is_round:
        motion = "rest"
    result["motion"] = seen.motion == motion
    if motion != "rest":
        result["speed"] = seen.motion == motion and seen.speed == scene.speed
    return result


def observe(rgb: Tensor) -> Observation:
    """Look at frames uint8 [T, Z, Z, 3] of one prompt, T ≥ 12."""
    assert rgb.ndim == 4 and rgb.shape[1] == rgb.shape[2] == SIDE, rgb.shape
    background, mask = ground_and_mask(rgb)
    frames = [_objects(frame) for frame in _components(mask)]
    numbers = [len(objects) for objects in frames]
    number = max(set(numbers), key=numbers.count)
    if not 1 <= number <= len(COUNTS):
        return Observation(background=background, count=None)
    kept = [objects for objects in frames if len(objects) == number]
    pixels = rgb[mask & (fn.max_pool2d(1 - mask.float(), 3, 1, 1) < 0.5)]  # not their edges
    colour = (pixels if len(pixels) else rgb[mask]).float().median(dim=0).values
    shape, angles = _shape(kept)
    areas = torch.tensor([[float(part.sum()) for part in objects] for objects in kept]).mean(dim=1)
    paths = _paths(kept)
    motion, pace = _motion(paths, areas.sqrt(), angles, shape)
    return Observation(
        background=background,
        count=COUNTS[number - 1],
        colour=COLOURS[int((COLOUR_RGB - colour).norm(dim=1).argmin())],
        shape=shape,
        size=_size(shape, number, float(areas.median())),
        motion=motion,
        speed=_speed(motion, pace, number),
    )


# --- background and objects ----------------------------------------------------------------------------


def ground_and_mask(rgb: Tensor) -> tuple[str | None, Tensor]:
    """(Nearest background, pixels [T, Z, Z] that differ from it)."""
    pictures = (backgrounds(SIDE) * 255).permute(0, 2, 3, 1)  # [backgrounds, Z, Z, 3]
    sample = rgb[:: max(1, len(rgb) // 6)].float()
    # Capped: objects must not decide which background it is.
    distance = (sample[:, None] - pictures).norm(dim=-1).clamp(max=90.0).mean(dim=(0, 2, 3))
    found = int(distance.argmin())
    mask = (rgb.float() - pictures[found]).norm(dim=-1) > _DIFFERENT
    return (BACKGROUNDS[found] if float(distance[found]) < _GROUND_LIMIT else None), mask


def _components(mask: Tensor) -> Tensor:
    """Label connected pixels of masks [T, Z, Z] with a common positive number, across the picture's sides."""
    labels = torch.arange(1, SIDE * SIDE + 1).view(SIDE, SIDE) * mask
    while True:
        spread = labels
        for dim in (1, 2):
            spread = torch.maximum(spread, torch.maximum(spread.roll(1, dim), spread.roll(-1, dim)))
        spread = spread * mask
        if torch.equal(spread, labels):
            return labels
        labels = spread


def _objects(labels: Tensor) -> list[Tensor]:
    """Masks [Z, Z] of the patches of one frame that are large enough."""
    numbers, sizes = labels[labels > 0].unique(return_counts=True)
    return [labels == number for number in numbers[sizes >= _MIN_AREA]]


def _centre(mask: Tensor) -> tuple[float, float]:
    """(x, y) of a patch in pixels; circular means, because patches wrap at the sides."""
    turn = 2 * math.pi * (torch.arange(SIDE) + 0.5) / SIDE
    found = []
    for dim in (0, 1):  # a sum over rows leaves x, over columns y
        profile = mask.sum(dim=dim).float()
        bearing = math.atan2(float(profile @ turn.sin()), float(profile @ turn.cos()))
        found.append(bearing % (2 * math.pi) * SIDE / (2 * math.pi))
    return found[0], found[1]


def _apart(a: tuple[float, float], b: tuple[float, float]) -> tuple[float, float]:
    """Shortest way from a to b in a picture whose sides meet."""
    dx, dy = ((q - p + SIDE / 2) % SIDE - SIDE / 2 for p, q in zip(a, b, strict=True))
    return dx, dy


def _paths(frames: Sequence[Sequence[Tensor]]) -> Tensor:
    """Follow every object: unwrapped centres [T, M, 2], each step to the nearest ones."""
    centres = [_centre(part) for part in frames[0]]
    path = [list(centres)]
    for objects in frames[1:]:
        found = [_centre(part) for part in objects]
        order = min(
            permutations(found),
            key=lambda order: sum(math.hypot(*_apart(a, b)) for a, b in zip(centres, order, strict=True)),
        )
        steps = [_apart(a, b) for a, b in zip(centres, order, strict=True)]
        path.append([(x + dx, y + dy) for (x, y), (dx, dy) in zip(path[-1], steps, strict=True)])
        centres = list(order)
    return torch.tensor(path)


# --- shape and size --------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _templates() -> dict[str, tuple[Tensor, Tensor]]:
    """Shape → (angles [n], masks [n, patch, patch] of one area, centred on their mass)."""
    result = {}
    for shape in SHAPES:
        period = _SYMMETRY.get(shape)
        angles = torch.zeros(1) if period is None else torch.arange(24) * period / 24
        masks = [_normalised(_drawn(shape, float(angle))) for angle in angles]
        result[shape] = (angles, torch.stack(masks))
    return result


def _drawn(shape: str, angle: float) -> Tensor:
    """One large object in the middle, as a mask [Z, Z]."""
    middle = torch.full((1, 1, len(COUNTS)), SIDE / 2)
    ids = torch.tensor([[[0, SHAPES.index(shape), 1, 0, 0, 0, 0]]])
    track = Track(ids=ids, x=middle, y=middle, angle=torch.full((1, 1), angle), scale=torch.full((1, 1), 1.0))
    return draw(track)[1][0, 0, 0] > 0.5


def _normalised(mask: Tensor) -> Tensor:
    """A patch [Z, Z] → its picture [patch, patch] as float, centred and scaled to one area."""
    x, y = _centre(mask)
    zoom = math.sqrt(float(mask.sum())) / (_FIT * 0.55)
    line = (torch.arange(_FIT) + 0.5 - _FIT / 2) * zoom
    rows, columns = (line + y) % SIDE, (line + x) % SIDE
    grid_y, grid_x = torch.meshgrid(rows, columns, indexing="ij")
    wrapped = fn.pad(mask.float()[None, None], (1, 1, 1, 1), mode="circular")
    size = SIDE + 2
    grid = torch.stack([(grid_x + 1) / size * 2 - 1, (grid_y + 1) / size * 2 - 1], dim=-1)
    return fn.grid_sample(wrapped, grid[None], align_corners=False)[0, 0]


def _shape(frames: Sequence[Sequence[Tensor]]) -> tuple[str, Tensor]:
    """(Best shape over all frames, its angle in each frame [T])."""
    parts = torch.stack([torch.stack([_normalised(part) for part in objects]) for objects in frames])
    best: tuple[float, str, Tensor] = (-1.0, "", torch.zeros(0))
    for shape, (angles, masks) in _templates().items():
        flat, drawn = parts.flatten(2), masks.flatten(1)  # [T, M, p], [n, p]
        both = torch.minimum(flat[:, :, None], drawn).sum(-1)
        either = torch.maximum(flat[:, :, None], drawn).sum(-1)
        overlap = (both / either).mean(dim=1)  # [T, n]: the objects of a frame turn together
        fit = float(overlap.amax(dim=1).mean())
        if fit > best[0]:
            best = (fit, shape, angles[overlap.argmax(dim=1)])
    return best[1], best[2]


def _size(shape: str, number: int, area: float) -> str:
    """The size whose drawn area is nearest, by ratio."""
    ratios = RADII[:, number - 1] / RADII[1, 0]
    areas = float(_drawn(shape, 0.0).sum()) * ratios**2
    return SIZES[int((areas.log() - math.log(area)).abs().argmin())]


# --- motion --------------------------------------------------------------------------------


def _motion(paths: Tensor, radii: Tensor, angles: Tensor, shape: str) -> tuple[str | None, float]:
    """(Kind of motion, its pace in the unit of _PACES)."""
    velocity = _velocity(paths, _SMOOTH)
    mean, spread = velocity.mean(dim=(0, 1)), velocity.norm(dim=-1).mean()
    if float(spread) > _STILL:
        turning = _turning(_velocity(paths, 2 * _SMOOTH))
        if abs(turning) > 0.035 and float(velocity.norm(dim=-1).amin()) > 0.3 * float(spread):
            return "orbit", turning
        x, y = mean.tolist()
        if mean.norm() > 0.7 * spread:
            if min(abs(x), abs(y)) > 0.4 * max(abs(x), abs(y)):
                return None, 0.0
            horizontal = abs(x) > abs(y)
            name = ("right" if x > 0 else "left") if horizontal else ("down" if y > 0 else "up")
            return name, max(abs(x), abs(y))
        across, along = velocity.abs().mean(dim=(0, 1)).tolist()
        return ("bounce" if along > 2 * across else None), _mean_step(paths[:, :, 1])
    swell = (radii / radii.mean() - 1).abs().mean()
    if float(swell) > 0.06:
        return "pulse", _mean_step((radii / radii.mean())[:, None])
    period = _SYMMETRY.get(shape)
    if period is not None:
        steps = (torch.diff(angles) + period / 2) % period - period / 2
        if float(steps.median()) > 0.02 or float(steps.mean()) > 0.03:
            return "spin", float(steps.mean())
    return "rest", 0.0


def _velocity(paths: Tensor, span: int) -> Tensor:
    """Pixels per frame [T − span, M, 2], over `span` frames each."""
    span = min(span, len(paths) // 2)
    return (paths[span:] - paths[:-span]) / span


def _mean_step(values: Tensor) -> float:
    """Mean absolute change per frame of values [T, M], a little smoothed."""
    smooth = values.unfold(0, 2, 1).mean(dim=-1)
    return float(torch.diff(smooth, dim=0).abs().mean())


def _turning(velocity: Tensor) -> float:
    """Mean turn of the direction of motion [radians per frame]; 0 when it turns to both sides or at once."""
    bearing = torch.atan2(velocity[..., 1], velocity[..., 0])
    steps = (torch.diff(bearing, dim=0) + math.pi) % (2 * math.pi) - math.pi
    steady = (steps > 0).float().mean()
    return float(steps.mean()) if float(steady) > 0.8 and float(steps.amax()) < 1.0 else 0.0


def _speed(motion: str | None, pace: float, number: int) -> str | None:
    """The speed whose pace is nearest, by ratio."""
    kind = "drift" if motion in ("left", "right", "up", "down") else motion
    if kind == "bounce" and number == len(COUNTS):
        kind = "bounce of three"
    if kind not in _PACES or pace <= 0:
        return None
    return min(zip(SPEEDS, _PACES[kind], strict=True), key=lambda item: abs(math.log(pace / item[1])))[0]
