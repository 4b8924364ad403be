"""How well does `shapes` do what prompts, edits and keys ask for?

Unseen random prompts are streamed and judged by measurements on the decoded pixels (`judge.py` of the model);
the same scenes, drawn and passed through the codec, are judged beside them: what the model could reach.

    start   a prompt, five chunks; chunks 1 to 4 are judged
    change  then one attribute is edited, four more chunks; the second to the fourth are judged: the new
            attribute and all others
    keys    an arrow held for one chunk: has the group moved that way, against the same seed without it?
    blend   the chunk after an edit, "cut" against "blend": mean difference in grey levels
    long    one prompt for --long-minutes: the last minute judged against the first

Bounded by the CPU: about 0.1 s a chunk and 0.4 s a judged window on one core; --jobs processes share it.
The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from engine.models.shapes.captions import describe
from engine.models.shapes.codec import Encoder
from engine.models.shapes.concepts import SLOTS, Scene, scene_ids
from engine.models.shapes.drawing import draw
from engine.models.shapes.judge import ground_and_mask, observe, score
from engine.models.shapes.model import PRESETS, ShapesConfig, ShapesModel
from engine.models.shapes.rollout import Rollout, stream
from engine.models.shapes.world import CHUNK_FRAMES, FRAMES_PER_LATENT, simulate

START_CHUNKS, CHANGE_CHUNKS = 5, 4
WINDOW_CHUNKS = 4
WINDOWS = 6
"""Windows judged in the first and in the last minute of a long session."""
ARROWS = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0)}
MOVED_PX = 4.0
"""A key counts if the group is at least so much further that way."""

Checks = dict[str, list[bool]]
Result = Mapping[str, Mapping[str, Checks]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One unit of work; equal tasks give equal results."""

    kind: str
    number: int
    config: ShapesConfig
    weights: Path
    long_chunks: int


@lru_cache(maxsize=1)
def _model(config: ShapesConfig, weights: Path) -> ShapesModel:
    torch.set_num_threads(1)
    return ShapesModel.from_tensors(load_file(weights), "judged", config=config)


@lru_cache(maxsize=1)
def _encoder(config: ShapesConfig, weights: Path) -> Encoder:
    encoder = Encoder(config.codec)
    tensors = load_file(weights.with_name("shapes-encoder.safetensors"))
    encoder.load_state_dict({key.removeprefix("encoder."): value.float() for key, value in tensors.items()})
    return encoder.eval()


def random_scene(rng: random.Random) -> Scene:
    """A random scene, the counts as often as in training."""
    values = [rng.choice(slot) for slot in SLOTS]
    if rng.random() < 0.25:
        values[-1] = "one"
    return Scene(**dict(zip(Scene.__slots__, values, strict=True)))


def _edited(scene: Scene, rng: random.Random) -> tuple[Scene, str]:
    """The scene with one attribute changed so that a picture can show it, and which one it is."""
    while True:
        name = rng.choice(list(Scene.__slots__))
        after = replace(scene, **{name: rng.choice(SLOTS[Scene.__slots__.index(name)])})
        if after != scene and not (name == "speed" and scene.motion == "rest"):
            return after, name


@torch.inference_mode()
def _truth(task: Task, ids: Tensor, seed: int, actions: Tensor | None = None) -> Tensor:
    """Scenes [1, K, S], drawn and passed through the codec: uint8 frames."""
    model, encoder = _model(task.config, task.weights), _encoder(task.config, task.weights)
    track = simulate(ids, torch.Generator().manual_seed(seed), actions)
    decoder = model._net.decoder
    latents = decoder.normalise(encoder(draw(track)[0]))[0]
    return model.decode(latents, model.initial_decoder_state())[0]


def _judge_prompt(task: Task) -> Result:
    """`start` and `change`."""
    rng = random.Random(f"prompt {task.number}")
    before = random_scene(rng)
    after, changed = _edited(before, rng)
    model = _model(task.config, task.weights)
    prompt = describe(before, rng.choice)
    edit = describe(after, rng.choice, before)
    prompts = [prompt] * START_CHUNKS + [model.combine_prompts(prompt, edit)] * CHANGE_CHUNKS
    ids = [scene_ids(before)] * START_CHUNKS + [scene_ids(after)] * CHANGE_CHUNKS
    videos = {
        "model": stream(model, prompts, seed=1000 + task.number)[0],
        "truth": _truth(task, torch.tensor([ids]), seed=task.number),
    }
    out: dict[str, dict[str, Checks]] = {}
    for who, rgb in videos.items():
        part: dict[str, Checks] = {"start": defaultdict(list), "change": defaultdict(list)}
        start = rgb[CHUNK_FRAMES : START_CHUNKS * CHUNK_FRAMES]
        for name, good in score(observe(start), before).items():
            part["start"][name].append(good)
        checks = score(observe(rgb[(START_CHUNKS + 1) * CHUNK_FRAMES :]), after)
        if changed in checks:
            part["change"]["new attribute"].append(checks[changed])
        part["change"]["others stay"].append(all(v for k, v in checks.items() if k not in (changed, "speed")))
        for name, good in checks.items():
            part["change"][name].append(good)
        out[who] = part
    return out


def _judge_keys(task: Task) -> Result:
    """One arrow, held during the third chunk, and the same session without it."""
    rng = random.Random(f"keys {task.number}")
    scene, arrow = random_scene(rng), rng.choice(sorted(ARROWS))
    model = _model(task.config, task.weights)
    still = (0.0, 0.0)
    out: dict[str, dict[str, Checks]] = {}
    prompts = [describe(scene, rng.choice)] * 3
    ids = torch.tensor([[scene_ids(scene)] * 3])
    actions = torch.zeros(1, 3 * CHUNK_FRAMES // FRAMES_PER_LATENT, 2)
    actions[:, -(CHUNK_FRAMES // FRAMES_PER_LATENT) :] = torch.tensor(ARROWS[arrow])
    seed = 5000 + task.number
    pairs = {
        "model": (
            stream(model, prompts, seed, [still, still, ARROWS[arrow]])[0],
            stream(model, prompts, seed, [still] * 3)[0],
        ),
        "truth": (_truth(task, ids, seed, actions), _truth(task, ids, seed)),
    }
    for who, (pushed, free) in pairs.items():
        moved = _group_shift(free[-1], pushed[-1])
        along = sum(a * b for a, b in zip(moved, ARROWS[arrow], strict=True))
        out[who] = {"keys": {"moves that way": [along >= MOVED_PX and along >= 0.5 * max(map(abs, moved))]}}
    return out


def _group_shift(before: Tensor, after: Tensor) -> tuple[float, float]:
    """The shift (x, y) that lays the objects of one frame best on another's; the picture's sides meet."""
    a, b = (_object_pixels(frame) for frame in (before, after))
    match = torch.fft.irfft2(torch.fft.rfft2(a).conj() * torch.fft.rfft2(b), s=a.shape)
    row, column = divmod(int(match.argmax()), a.shape[1])
    side = a.shape[0]
    return float((column + side / 2) % side - side / 2), float((row + side / 2) % side - side / 2)


def _object_pixels(frame: Tensor) -> Tensor:
    return ground_and_mask(frame[None])[1][0].float()


def _judge_blend(task: Task) -> Result:
    """The first chunk after an edit, cut against blend."""
    rng = random.Random(f"blend {task.number}")
    before = random_scene(rng)
    after = replace(before, background=rng.choice([b for b in SLOTS[5] if b != before.background]))
    model = _model(task.config, task.weights)
    pictures = []
    for blended in (False, True):
        generator = torch.Generator().manual_seed(task.number)
        size = (model.spec.chunk_latent_frames, *model.spec.latent_shape)
        rollout = Rollout(model, lambda g=generator, s=size: torch.randn(s, generator=g))  # type: ignore[misc]
        old, new = model.encode_prompts([describe(scene, rng.choice) for scene in (before, after)])[:, None]
        state = model.initial_decoder_state()
        for embeds in (old, old, old.lerp(new, 0.5) if blended else new):
            rollout.set_embeds(embeds)
            rgb, state = model.decode(rollout.next_chunk(), state)
        pictures.append(rgb.float())
    difference = (pictures[0] - pictures[1]).abs().mean().item()
    return {"model": {"blend": {"differs by over 8 grey levels": [difference > 8.0]}}}


def _judge_long(task: Task) -> Result:
    """Windows of the first and of the last minute."""
    rng = random.Random(f"long {task.number}")
    scene = random_scene(rng)
    model = _model(task.config, task.weights)
    per_minute = round(60 * model.spec.fps / CHUNK_FRAMES)
    space = (per_minute - 1) // WINDOWS
    starts = {"first": 1, "last": task.long_chunks - per_minute}
    wanted = {
        (part, begin + i * space + k): i
        for part, begin in starts.items()
        for i in range(WINDOWS)
        for k in range(WINDOW_CHUNKS)
    }
    frames: dict[tuple[str, int], list[Tensor]] = defaultdict(list)
    generator = torch.Generator().manual_seed(9000 + task.number)
    size = (model.spec.chunk_latent_frames, *model.spec.latent_shape)
    rollout = Rollout(model, lambda: torch.randn(size, generator=generator))
    rollout.set_prompt(describe(scene, rng.choice))
    state = model.initial_decoder_state()
    for chunk in range(task.long_chunks):
        rgb, state = model.decode(rollout.next_chunk(), state)
        for part in starts:
            if (part, chunk) in wanted:
                frames[part, wanted[part, chunk]].append(rgb)
    out: dict[str, Checks] = {f"long, {part} minute": defaultdict(list) for part in starts}
    for (part, _), window in sorted(frames.items(), key=lambda item: item[0]):
        for name, good in score(observe(torch.cat(window)), scene).items():
            out[f"long, {part} minute"][name].append(good)
    return {"model": out}


JUDGES: Mapping[str, Callable[[Task], Result]] = {
    "prompt": _judge_prompt,
    "keys": _judge_keys,
    "blend": _judge_blend,
    "long": _judge_long,
}


def run(task: Task) -> Result:
    """Do one task, in any process."""
    return JUDGES[task.kind](task)


def merge(results: Sequence[Result]) -> dict[str, dict[str, dict[str, Any]]]:
    """Shares of all checks: part → check → {"model", "truth", "n"}."""
    lists: dict[tuple[str, str, str], list[bool]] = defaultdict(list)
    for result in results:
        for who, parts in result.items():
            for part, checks in parts.items():
                for name, good in checks.items():
                    lists[part, name, who].extend(good)
    table: dict[str, dict[str, dict[str, Any]]] = {}
    for (part, name, who), good in lists.items():
        row = table.setdefault(part, {}).setdefault(name, {"n": len(good)})
        row[who] = round(sum(good) / len(good), 3)
    return table


def main() -> None:
    """Judge, print the table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    shipped = Path(__file__).parent.parent / "engine/models/shapes/weights/shapes.safetensors"
    parser.add_argument(
        "--weights", type=Path, default=shipped, help="shapes-encoder.safetensors lies beside it"
    )
    parser.add_argument("--model", choices=("shapes", "shapes-fast"), default="shapes")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--keys", type=int, default=200)
    parser.add_argument("--blends", type=int, default=20)
    parser.add_argument("--long", type=int, default=6, help="long sessions")
    parser.add_argument("--long-minutes", type=float, default=10.0)
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    config = PRESETS[args.model]
    chunks = round(args.long_minutes * 60 * config.fps / CHUNK_FRAMES)
    counts = {"long": args.long, "prompt": args.prompts, "keys": args.keys, "blend": args.blends}
    tasks = [
        Task(kind=kind, number=n, config=config, weights=args.weights, long_chunks=chunks)
        for kind, count in counts.items()
        for n in range(count)
    ]
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool:
        table = merge(list(pool.map(run, tasks)))
    for part, rows in table.items():
        print(f"\n{part:24}{'model':>8}{'truth':>8}{'ratio':>8}{'n':>6}")
        for name, row in rows.items():
            truth = row.get("truth")
            ratio = f"{row['model'] / truth:8.2f}" if truth else f"{'-':>8}"
            print(f"{name:24}{row['model']:8.3f}{truth if truth is not None else '-':>8}{ratio}{row['n']:6}")
    print(json.dumps({"model": args.model, "table": table}))


if __name__ == "__main__":
    main()
