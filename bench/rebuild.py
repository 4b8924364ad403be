"""How close to the undisturbed picture is a session rebuilt from its checkpoint, and what does that cost?

A session runs alone; at each of some chunk boundaries another one is rebuilt from the checkpoint of that
boundary and both go on for some chunks. While no frame has left the window the rebuild repeats the very
clean passes, and every number must be zero. Afterwards the influence of what was evicted is lost.

    latent distance   root mean square difference over root mean square, of the first and the last chunk
    pixel distance    mean difference of the frames, levels of 255, of the first chunk
    judge             share of the judge's checks that pass: undisturbed, rebuilt, and started afresh with the
                      same prompt (what a session without a checkpoint shows)
    seam              jump from the last frame before to the first frame after, levels of 255, median; the
                      same of the undisturbed run and of a picture that starts afresh
    rebuild           clean passes, decoder tail and prompt K/V, ms: what is added to a recovery

Bounded by the model's passes, on one thread. Run: .venv/bin/python -m bench.rebuild [--scenes 12]
"""

from __future__ import annotations

import argparse
import random
import time
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bench.shapes_quality import random_scene
from bench.stats import machine, percentile, print_json, print_table
from engine.compute_messages import Open
from engine.kv_pool import SlabPool
from engine.models.base import CausalVideoModel
from engine.models.registry import load_model
from engine.models.shapes.captions import describe
from engine.models.shapes.concepts import Scene
from engine.models.shapes.judge import observe, score
from engine.passes import Passes
from engine.session_state import SessionState, Stage
from engine.state_format import ExportedState
from engine.state_format import describe as described
from engine.state_io import snapshot
from engine.steering import LogEntry, Steering
from engine.stepper import Stepper
from scheduler.messages import PromptInput, SessionId

BOUNDARIES = (1, 2, 4, 5, 6, 8, 12)
AFTER = 4
"""Chunks made after the rebuild."""


class Solo:
    """One session that has an engine's model side for itself."""

    def __init__(self, model: CausalVideoModel, command: Open) -> None:
        self._model = model
        self.pool = SlabPool(model, slots=1)
        self._stepper = Stepper(model, self.pool)
        began = time.perf_counter()
        self.state: SessionState = self._stepper.open(command)
        while self.state.stage is Stage.REBUILD:
            self._stepper.prepare_rebuild(self.state)
            self._pass()
        self.opened_ms = (time.perf_counter() - began) * 1000

    def chunk(self) -> tuple[Tensor, Tensor]:
        """(clean latents [F, C, h, w], frames uint8 [T, Z, Z, 3]) of the next chunk, clean pass included."""
        self._stepper.begin(self.state, due_ms=0.0, now_ms=0.0)
        while not self._pass():
            pass
        frames = torch.from_numpy(self._stepper.decode(self.state))
        assert self.state.x is not None
        latents = self.state.x.clone()
        self.state.seq, self.state.frame = self.state.seq + 1, self.state.frame + len(frames)
        self._pass()
        return latents, frames

    def checkpoint(self) -> ExportedState:
        """At a boundary."""
        kept = snapshot(self._model.spec, self.state, self.pool.decoder[self.state.slot])
        return described(kept.header, kept.buffers, checked=True)

    def _pass(self) -> bool:
        (outcome,) = Passes(self._model, self.pool).run([self.state]).outcomes
        if isinstance(outcome, Exception):
            raise outcome
        return self._stepper.advance(self.state, outcome)


def opening(text: str, seed: int, checkpoint: ExportedState | None = None) -> Open:
    pending = () if checkpoint else (LogEntry(entry="1-0", message=PromptInput(text=text)),)
    return Open(
        session=SessionId("s_bench"),
        epoch=1,
        steering=Steering(seed=seed),
        pending=pending,
        seq=0,
        frame=0,
        checkpoint=checkpoint,
    )


@dataclass
class Row:
    """What was measured at one boundary, a value per scene."""

    first: list[float] = field(default_factory=list)
    last: list[float] = field(default_factory=list)
    pixels: list[float] = field(default_factory=list)
    seam: list[float] = field(default_factory=list)
    seam_undisturbed: list[float] = field(default_factory=list)
    seam_afresh: list[float] = field(default_factory=list)
    rebuild_ms: list[float] = field(default_factory=list)
    passed: dict[str, list[bool]] = field(default_factory=dict)


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).pow(2).mean().sqrt() / theirs.pow(2).mean().sqrt())


def levels(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.float() - theirs.float()).abs().mean())


@torch.inference_mode()
def measure(model: CausalVideoModel, scene: Scene, seed: int, rows: dict[int, Row]) -> None:
    """One scene."""
    text = describe(scene, lambda words: words[0])
    solo = Solo(model, opening(text, seed))
    chunks, checkpoints = [], {}
    for index in range(max(BOUNDARIES) + AFTER):
        if index in BOUNDARIES:
            checkpoints[index] = solo.checkpoint()
        chunks.append(solo.chunk())
    fresh = torch.cat([frames for _, frames in chunks[:AFTER]])
    for boundary, row in rows.items():
        rebuilt = Solo(model, opening(text, seed, checkpoints[boundary]))
        ours, theirs = [rebuilt.chunk() for _ in range(AFTER)], chunks[boundary : boundary + AFTER]
        before = chunks[boundary - 1][1][-1]
        row.rebuild_ms.append(rebuilt.opened_ms)
        row.first.append(relative(ours[0][0], theirs[0][0]))
        row.last.append(relative(ours[-1][0], theirs[-1][0]))
        row.pixels.append(levels(ours[0][1], theirs[0][1]))
        row.seam.append(levels(ours[0][1][0], before))
        row.seam_undisturbed.append(levels(theirs[0][1][0], before))
        row.seam_afresh.append(levels(fresh[0], before))
        videos = {
            "undisturbed": torch.cat([frames for _, frames in theirs]),
            "rebuilt": torch.cat([frames for _, frames in ours]),
            "afresh": fresh,
        }
        for name, video in videos.items():
            row.passed.setdefault(name, []).extend(score(observe(video), scene).values())


def share(values: list[bool]) -> float:
    return sum(values) / len(values)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scenes", type=int, default=12)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = load_model("shapes", device=torch.device("cpu"), weights=None)
    window = model.spec.window_frames // model.spec.chunk_latent_frames
    scenes = [random_scene(random.Random(number)) for number in range(options.scenes)]
    rows = {boundary: Row() for boundary in BOUNDARIES}
    for seed, scene in enumerate(scenes):
        measure(model, scene, seed, rows)
    print(f"machine: {machine()}; {options.scenes} scenes, window of {window} chunks")
    print_table(
        ["boundary", "evicted chunks", "latents first chunk", f"latents chunk +{AFTER - 1}", "pixels"]
        + ["seam", "undisturbed", "afresh", "judge undisturbed", "rebuilt", "afresh", "rebuild ms"],
        [
            [boundary, max(0, boundary - window), max(row.first), max(row.last), max(row.pixels)]
            + [percentile(seams, 0.5) for seams in (row.seam, row.seam_undisturbed, row.seam_afresh)]
            + [share(row.passed[name]) for name in ("undisturbed", "rebuilt", "afresh")]
            + [percentile(row.rebuild_ms, 0.5)]
            for boundary, row in rows.items()
        ],
    )
    print_json(
        {
            "bench": "rebuild",
            "exact_within_window": all(max(rows[b].last) == 0.0 for b in BOUNDARIES if b <= window),
            "latent_distance": {b: round(max(row.first), 4) for b, row in rows.items()},
            "judge": {
                name: round(share([x for row in rows.values() for x in row.passed[name]]), 3)
                for name in ("undisturbed", "rebuilt", "afresh")
            },
            "rebuild_ms_p50": round(percentile([ms for r in rows.values() for ms in r.rebuild_ms], 0.5), 1),
        }
    )


if __name__ == "__main__":
    main()
