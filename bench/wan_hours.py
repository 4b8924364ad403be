"""Does a session of Wan stay what it is over hours of video: time per chunk, memory, the picture's spread?

One session of LongLive's structure (window 12, sink 3) with random weights, made by the engine's own passes,
sampler and decoder as fast as it goes; every few minutes of video a new prompt comes, for which its window is
written again, and the sink is written again wherever 1,024 latent frames would lie between it and the newest.
The time of a tenth is the median of its chunks; on a busy machine that says little, the rest does not depend
on it. Positions are absolute: they must not wear out. Each tenth is printed when it is done; none is begun
that would end after --limit-s.

    python -m bench.wan_hours                              # 4 hours of video, 64×64, on a CPU
    python -m bench.wan_hours --device cuda --full --minutes 60 --limit-s 540
"""

from __future__ import annotations

import argparse
import resource
import time
from dataclasses import replace
from typing import cast

import torch

from bench.gpu import device_name, settle
from bench.stats import percentile, print_json
from engine.compute_messages import Open
from engine.kv_pool import SlabPool
from engine.models.base import CausalVideoModel
from engine.models.wan.config import LONGLIVE, TINY
from engine.models.wan.model import WanModel
from engine.passes import Passes
from engine.session_state import Stage
from engine.steering import LogEntry, Steering
from engine.stepper import Stepper
from scheduler.messages import PromptInput, SessionId

PROMPTS = ("a red fox runs through snow", "waves roll onto a beach", "night over the sea")
PROMPT_EVERY = 200
"""Chunks between two prompts: 2.5 minutes."""
TENTHS = 10


class Session:
    """The model side of one session, alone."""

    def __init__(self, model: WanModel) -> None:
        self.model = cast(CausalVideoModel, model)
        self.pool = SlabPool(self.model, slots=1)
        self.stepper, self.passes = Stepper(self.model, self.pool), Passes(self.model, self.pool)
        start = LogEntry(entry="0-1", message=PromptInput(text=PROMPTS[0]))
        session = SessionId("s_long")
        self.state = self.stepper.open(
            Open(session=session, epoch=1, steering=Steering(seed=1), pending=(start,), seq=0, frame=0)
        )
        self.rewritten = 0
        """Passes that wrote the window or the sink again."""

    def chunk(self) -> float:
        """Make one, clean pass included; returns the standard deviation of its latents."""
        state = self.state
        if state.seq and state.seq % PROMPT_EVERY == 0:
            text = PROMPTS[state.seq // PROMPT_EVERY % len(PROMPTS)]
            state.pending.append(LogEntry(entry=f"{state.seq}-1", message=PromptInput(text=text)))
        self.stepper.begin(state, due_ms=0.0, now_ms=0.0)
        while not self._pass():
            pass
        assert state.x is not None
        spread = float(state.x.std())
        frames = self.stepper.decode(state)
        state.seq, state.frame = state.seq + 1, state.frame + len(frames)
        self._pass()
        return spread

    def _pass(self) -> bool:
        if self.state.stage is Stage.REBUILD:
            self.stepper.prepare_rebuild(self.state)
            self.rewritten += 1
        (outcome,) = self.passes.run([self.state]).outcomes
        if isinstance(outcome, Exception):
            raise outcome
        return self.stepper.advance(self.state, outcome)


@torch.inference_mode()
def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--full", action="store_true", help="1.3B at 480×832, in bfloat16")
    parser.add_argument("--minutes", type=float, default=240.0, help="of video")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--limit-s", type=float, default=float("inf"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    config = replace(LONGLIVE, name="wan-hours") if args.full else TINY
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    session = Session(WanModel.random(0, config=config, device=device, dtype=dtype))
    spec = session.model.spec
    count = max(TENTHS, round(args.minutes * 60 * spec.fps / spec.chunk_frames))
    tenth = count // TENTHS
    rows: list[tuple[float, float, float, int, int]] = []
    print("| minutes of video | ms a chunk | spread of latents | most memory MiB | written again |")
    print("|---|---|---|---|---|", flush=True)
    first_began = tenth_began = time.perf_counter()
    for _ in range(TENTHS):
        now = time.perf_counter()
        if now - first_began + (now - tenth_began) > args.limit_s:
            break
        tenth_began = now
        times, spreads = list[float](), list[float]()
        for _ in range(tenth):
            began = time.perf_counter()
            spreads.append(session.chunk())
            times.append(1000 * (time.perf_counter() - began))
        settle(device)
        minutes = session.state.frame / spec.fps / 60
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        if device.type == "cuda":
            grown = torch.cuda.memory_reserved(device) // 2**20
        rows.append((minutes, percentile(times, 0.5), sum(spreads) / tenth, grown, session.rewritten))
        cells = (f"{minutes:.1f}", f"{rows[-1][1]:.1f}", f"{rows[-1][2]:.4f}", *map(str, rows[-1][3:]))
        print(f"| {' | '.join(cells)} |", flush=True)
    print_json(
        {
            "device": device_name(device),
            "model": spec.name,
            "chunks": len(rows) * tenth,
            "minutes": round(rows[-1][0], 1),
            "ms_first_tenth": rows[0][1],
            "ms_last_tenth": rows[-1][1],
            "spread_first_tenth": rows[0][2],
            "spread_last_tenth": rows[-1][2],
            "grown_mib_after_first_tenth": rows[-1][3] - rows[0][3],
            "written_again": rows[-1][4],
        }
    )


if __name__ == "__main__":
    main()
