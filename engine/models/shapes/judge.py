"""Does a streamed video show what its prompt says? Plain measurements on pixels, calibrated on drawn scenes.

    python -m engine.models.shapes.judge [--weights FILE] [--scenes N] [--chunks K]

Every scene runs for K chunks, then another prompt for K chunks; the first chunk of each prompt is not
judged, because a change may take that long. Drawn scenes go through the same judge: its own ceiling.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from engine.models.registry import load_model
from engine.models.shapes.captions import describe
from engine.models.shapes.codec import to_uint8
from engine.models.shapes.concepts import BACKGROUNDS, COLOURS, SHAPES, SLOTS, Scene, scene_ids
from engine.models.shapes.rollout import stream
from engine.models.shapes.world import CHUNK_FRAMES, COLOUR_RGB, SIDE, Track, render, sample_scenes, simulate

__all__ = ["judge", "object_mask", "scene_of"]

_DIFFERENT = 70.0  # RGB distance from the background that makes a pixel the object's
_DRIFT = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
_PACE = {"slow": 1.0, "normal": 2.0, "fast": 4.0}  # pixels per frame
_MIN_PIXELS = 25


def scene_of(ids: Sequence[int]) -> Scene:
    """Slot indices [6] → scene."""
    values = (slot[index] for slot, index in zip(SLOTS, ids, strict=True))
    return Scene(**dict(zip(Scene.__slots__, values, strict=True)))


def judge(rgb: Tensor, scene: Scene) -> dict[str, bool]:
    """Check frames uint8 [T, Z, Z, 3] of one prompt; speed is judged for drifts only."""
    mask = object_mask(rgb, scene)
    still = _still(scene)
    area, wanted = mask.sum(dim=(1, 2)).median().item(), object_mask(still, scene).sum().item()
    result = {"background": _is_background(rgb, scene), "area": 0.6 <= area / wanted <= 1.6}
    if area < _MIN_PIXELS:
        return result | {"colour": False, "shape": False, "motion": False}
    colour = rgb[mask].float().median(dim=0).values
    result["colour"] = COLOURS[int((COLOUR_RGB - colour).norm(dim=1).argmin())] == scene.colour
    result["shape"] = _shape(mask, scene) == scene.shape
    path = _path(mask)
    result["motion"] = _is_motion(path, rgb, scene)
    if scene.motion in _DRIFT:
        pace = (path[-1] - path[0]).norm().item() / (len(path) - 1)
        result["speed"] = 0.65 < pace / _PACE[scene.speed] < 1.5
    return result


def object_mask(rgb: Tensor, scene: Scene) -> Tensor:
    """Pixels [T, Z, Z] that differ from the prompt's background."""
    ground = _still(scene, with_object=False)
    different: Tensor = (rgb.float() - ground.float()).norm(dim=-1) > _DIFFERENT
    return different


def _still(scene: Scene, *, with_object: bool = True, angle: float = 0.0, shape: str | None = None) -> Tensor:
    """The scene drawn once, object in the middle: uint8 [1, Z, Z, 3]."""
    ids = torch.tensor(scene_ids(scene))
    if shape is not None:
        ids[1] = SHAPES.index(shape)
    middle = torch.full((1, 1), SIDE / 2)
    track = Track(ids=ids[None, None], x=middle, y=middle, angle=torch.full((1, 1), angle))
    picture, mask = render(track)
    if not with_object:
        hidden = Track(ids=ids[None, None], x=middle + SIDE / 2, y=middle + SIDE / 2, angle=middle * 0)
        other, _ = render(
            hidden
        )  # the object sits over the corners: take those pixels from the first picture
        picture = torch.where(mask > 0, other, picture)
    return to_uint8(picture[0])


def _is_background(rgb: Tensor, scene: Scene) -> bool:
    """The prompt's background is nearer than any other, and near."""
    pictures = [_still(replace(scene, background=name), with_object=False) for name in BACKGROUNDS]
    grounds, frames = torch.cat(pictures).float(), rgb[::6].float()
    distance = (frames[:, None] - grounds).norm(dim=-1).mean(dim=(0, 2, 3))
    found = int(distance.argmin())
    return BACKGROUNDS[found] == scene.background and distance[found].item() < 45.0


def _path(mask: Tensor) -> Tensor:
    """Unwrapped object centres [T, 2] (x, y) in pixels; circular means, because objects wrap at the sides."""
    turn = 2 * math.pi * (torch.arange(SIDE) + 0.5) / SIDE
    weights = mask.float()
    centres = []
    for dim in (1, 2):  # sums over rows leave x, over columns y
        profile = weights.sum(dim=dim)
        bearing = torch.atan2((profile * turn.sin()).sum(-1), (profile * turn.cos()).sum(-1))
        steps = torch.diff(bearing)
        steps = (steps + math.pi) % (2 * math.pi) - math.pi
        centres.append(torch.cat([bearing[:1], bearing[:1] + steps.cumsum(0)]) * SIDE / (2 * math.pi))
    return torch.stack(centres, dim=-1)


def _is_motion(path: Tensor, rgb: Tensor, scene: Scene) -> bool:
    """Right kind of motion. Change within the object tells spin from rest, where its shape can show it."""
    spread = path.max(dim=0).values - path.min(dim=0).values
    x, y = spread.tolist()
    if scene.motion in _DRIFT:
        sign = torch.tensor(_DRIFT[scene.motion], dtype=torch.float32)
        along = ((path[-1] - path[0]) * sign).sum().item()
        across = (spread * (1 - sign.abs())).sum().item()
        return along > 10 and across < 0.6 * along
    if scene.motion == "bounce":
        falling = (torch.diff(path[:, 1]) > 0).float().mean().item()
        return y > 18 and x < 0.6 * y and 0.15 < falling < 0.85
    if scene.motion == "orbit":
        around = path - path.mean(dim=0)
        bearing = torch.atan2(around[:, 1], around[:, 0])
        steps = (torch.diff(bearing) + math.pi) % (2 * math.pi) - math.pi
        return min(x, y) > 8 and (steps > 0).float().mean().item() > 0.75
    if max(x, y) > 14:
        return False
    if scene.shape in ("ball", "ring"):
        return True
    change = (rgb[4:].float() - rgb[:-4].float()).norm(dim=-1) > _DIFFERENT
    turns = bool(change.sum(dim=(1, 2)).float().mean().item() > 20)
    return turns == (scene.motion == "spin")


def _shape(mask: Tensor, scene: Scene) -> str:
    """The shape whose drawing overlaps most with the object, over a few frames, at its best angle."""
    angles = [i * math.pi / 15 for i in range(30)] if scene.motion == "spin" else [0.0]
    drawn = {
        shape: torch.cat([object_mask(_still(scene, angle=a, shape=shape), scene) for a in angles])
        for shape in SHAPES
    }
    scores = dict.fromkeys(SHAPES, 0.0)
    for frame in mask[:: max(1, len(mask) // 6)]:
        if frame.sum() < _MIN_PIXELS:
            continue
        x, y = _path(frame[None])[0].tolist()
        centred = frame.roll((round(SIDE / 2 - y), round(SIDE / 2 - x)), dims=(0, 1))
        for shape, pictures in drawn.items():
            scores[shape] += max(_overlap(centred, _centred(picture)) for picture in pictures)
    return max(scores, key=lambda shape: scores[shape])


def _centred(picture: Tensor) -> Tensor:
    x, y = _path(picture[None])[0].tolist()
    return picture.roll((round(SIDE / 2 - y), round(SIDE / 2 - x)), dims=(0, 1))


def _overlap(a: Tensor, b: Tensor) -> float:
    return ((a & b).sum() / (a | b).sum()).item()


def _scenes(count: int) -> list[tuple[Scene, Scene]]:
    """Random pairs of prompts whose objects stand out from their backgrounds."""
    generator = torch.Generator().manual_seed(4711)
    pairs: list[tuple[Scene, Scene]] = []
    while len(pairs) < count:
        ids = sample_scenes(1, 2, generator, switch_chance=1.0)[0].tolist()
        before, after = scene_of(ids[0]), scene_of(ids[1])
        if all(_stands_out(scene) for scene in (before, after)) and before.colour != after.colour:
            pairs.append((before, after))
    return pairs


def _stands_out(scene: Scene) -> bool:
    return object_mask(_still(scene), scene).sum().item() > 0.8 * _still_area(scene)


def _still_area(scene: Scene) -> float:
    ids = torch.tensor(scene_ids(scene))[None, None]
    middle = torch.full((1, 1), SIDE / 2)
    return render(Track(ids=ids, x=middle, y=middle, angle=middle * 0))[1].sum().item()


def _drawn(pair: tuple[Scene, Scene], chunks: int, seed: int) -> Tensor:
    ids = torch.tensor([[scene_ids(scene)] * chunks for scene in pair]).reshape(1, -1, len(SLOTS))
    return to_uint8(render(simulate(ids, torch.Generator().manual_seed(seed)))[0][0])


def main() -> None:
    """Judge weights and drawn scenes; the last line is one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--weights", type=Path, default=None)
    parser.add_argument("--scenes", type=int, default=24)
    parser.add_argument("--chunks", type=int, default=4)
    args = parser.parse_args()
    model = load_model("shapes", device=torch.device("cpu"), weights=args.weights)
    totals: dict[str, dict[str, list[bool]]] = {"model": {}, "drawn": {}}
    for seed, pair in enumerate(_scenes(args.scenes)):
        captions = [describe(scene, lambda words: words[0]) for scene in pair for _ in range(args.chunks)]
        videos = {"model": stream(model, captions, seed)[0], "drawn": _drawn(pair, args.chunks, seed)}
        for who, rgb in videos.items():
            for part, scene in enumerate(pair):
                begin = (part * args.chunks + 1) * CHUNK_FRAMES
                for key, good in judge(rgb[begin : (part + 1) * args.chunks * CHUNK_FRAMES], scene).items():
                    totals[who].setdefault(("start " if part == 0 else "after change ") + key, []).append(
                        good
                    )
    shares = {
        who: {key: round(sum(good) / len(good), 2) for key, good in sorted(checks.items())}
        for who, checks in totals.items()
    }
    sys.stdout.write(json.dumps({"scenes": args.scenes, **shares}) + "\n")


if __name__ == "__main__":
    main()
