"""Coalescing: chunks per second and latency against the number of sessions, for three planners.

    one       one session per pass, earliest deadline first
    always    as many sessions per pass as are ready, up to the largest batch
    ours      engine/planner.py: coalesce where the measured t(B) says that it pays and nobody is its victim

The engine's own compute loop runs them (no network; frames are decoded, not encoded), each with its own
sessions, pool and stopwatch. They take turns of a fraction of a second on one thread, so that whatever else
the machine does hits all alike; on a CPU the stopwatches count the CPU time of that thread, on a GPU real
time. Read the ratios, not the milliseconds.

    saturated  every session always wants its next chunk: throughput, and by Little's law latency
    paced      every session plays in real time with a lead of 1.5 s, joining 0.3 s apart: latency from due to
               decoded, time to first chunk, share of time stalled. Idle time is skipped, not waited for

Shapes of model (random weights, which cost the same): `shapes` is what ships; `small` is d128 with 48 tokens
per chunk, where coalescing pays; `wan` is Wan 2.1 1.3B at 480p and needs a GPU.

Run: .venv/bin/python -m bench.coalesce [--shape shapes] [--device cpu] [--sessions 1,2,4,8,16]
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import cast

import numpy as np
import numpy.typing as npt
import torch

from bench.random_wan.turboserve_random_wan import load as load_random_wan
from bench.stats import machine, percentile, print_json, print_table
from engine.compute import ComputeLoop
from engine.compute_messages import ComputeEvent, Open, PartMade, Wish
from engine.cost_table import CostTable
from engine.costs import Measured, measure_costs
from engine.credit import Player, acknowledged, delivered, dry_ms
from engine.encoder import EncodedPart, Lane, SessionEncoder
from engine.kv_pool import SlabPool
from engine.models.base import CausalVideoModel
from engine.models.causal_dit import CausalDiTConfig
from engine.models.shapes.codec import CodecConfig
from engine.models.shapes.concepts import TEXT_LEN
from engine.models.shapes.model import SHAPES, ShapesConfig, ShapesModel
from engine.planner import Batch, Planner, ReadyRow, plan
from engine.progress import Progress
from engine.steering import LogEntry, Steering
from scheduler.messages import PromptInput, Rung, SessionId

LEAD_MS, JOIN_MS, TURN_MS = 1_500.0, 300.0, 600.0
PROMPT = "a red ball"


def one(ready: Iterable[ReadyRow], costs: CostTable, now_ms: float) -> Batch:
    return Batch(rows=tuple(sorted(ready, key=lambda row: (row.deadline_ms, row.session))[:1]))


def always(ready: Iterable[ReadyRow], costs: CostTable, now_ms: float) -> Batch:
    return Batch(rows=tuple(sorted(ready, key=lambda row: (row.deadline_ms, row.session))[: costs.largest]))


PLANNERS: dict[str, Planner] = {"one": one, "always": always, "ours": plan}


SMALL = ShapesConfig(
    dit=CausalDiTConfig(
        dim=128,
        ffn_dim=512,
        heads=4,
        layers=6,
        latent_shape=(8, 8, 8),
        patch=2,
        chunk_frames=3,
        window_frames=12,
        text_shape=(TEXT_LEN, 64),
        spatial_embedding=True,
    ),
    codec=CodecConfig(channels=8, side=8),
)


def random_model(shape: str, device: torch.device) -> CausalVideoModel:
    if shape == "wan":
        return load_random_wan(device, None)
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    config = SHAPES if shape == "shapes" else SMALL
    return ShapesModel.random(0, config=config, device=device, dtype=dtype)


def cpu_ms() -> float:
    """CPU time of this thread, on which all of a CPU's passes run."""
    return time.thread_time() * 1000.0


def real_ms() -> float:
    return time.perf_counter() * 1000.0


class Stopwatch:
    """Milliseconds of a clock, only while it runs."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock, self._shown, self._since, self._runs = clock, 0.0, 0.0, False

    def __call__(self) -> float:
        return self._shown + (self._clock() - self._since if self._runs else 0.0)

    def run(self, on: bool) -> None:
        self._shown, self._since, self._runs = self(), self._clock(), on

    def skip(self, wait_ms: float) -> None:
        self._shown += wait_ms


class _NoEncoders:
    """Stands for the encoder pool: a chunk is finished when it is decoded."""

    def open_lane(self, encoder: SessionEncoder) -> Lane:
        return Lane(encoder=encoder, thread=0)

    def submit(
        self,
        lane: Lane,
        frames: npt.NDArray[np.uint8],
        on_part: Callable[[EncodedPart], None],
        on_error: Callable[[Exception], None],
        rungs: Sequence[Rung] = (Rung.FULL,),
    ) -> Future[None]:
        on_part(EncodedPart(part=0, parts=1, frames=len(frames), sizes=(), payload=b""))
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def close_lane(self, lane: Lane) -> None:
        pass

    def renew_lane(self, lane: Lane) -> None:
        pass


class _SkippingLoop(ComputeLoop):
    """Does not wait for time to pass, but lets it."""

    stopwatch: Stopwatch

    def _rest(self, wait_ms: float | None) -> None:
        assert wait_ms is not None, "nothing is left to do"
        self.stopwatch.skip(wait_ms + 0.01)

    def _make_encoder(self, codec: str) -> SessionEncoder:
        return cast(SessionEncoder, None)


@dataclass
class Run:
    """One planner with its sessions."""

    model: CausalVideoModel
    planner: Planner
    measured: Measured
    count: int
    paced: bool
    stopwatch: Stopwatch
    players: dict[SessionId, Player] = field(default_factory=dict)
    joined_ms: dict[SessionId, float] = field(default_factory=dict)
    latency_ms: list[float] = field(default_factory=list)
    ttfc_ms: list[float] = field(default_factory=list)
    stalled_ms: float = 0.0
    num_decoded: int = 0
    turns: list[tuple[float, float]] = field(default_factory=list)
    """Chunks and milliseconds of each."""

    def __post_init__(self) -> None:
        self.loop = _SkippingLoop(
            self.model,
            SlabPool(self.model, slots=self.count),
            costs=self.measured.costs,
            attention=self.measured.attention,
            plan=self.planner,
            encoders=_NoEncoders(),
            progress=Progress(self.stopwatch),
            clock=self.stopwatch,
            emit=self._take,
        )
        self.loop.stopwatch = self.stopwatch
        self.loop.rehearse()
        if not self.paced:
            while len(self.players) < self.count:
                self._join()

    @torch.inference_mode()
    def turn(self, turn_ms: float) -> None:
        """Run for so long; notes the work done."""
        self.stopwatch.run(True)
        began, before = self.stopwatch(), self._work()
        while self.stopwatch() - began < turn_ms:
            while len(self.players) < self.count and self.stopwatch() >= JOIN_MS * len(self.players):
                self._join()
            self.loop.step()
        if self.model.device.type == "cuda":  # a pass in work belongs to who began it
            torch.cuda.synchronize(self.model.device)
        self.turns.append((self._work() - before, self.stopwatch() - began))
        self.stopwatch.run(False)

    @property
    def rate(self) -> float:
        """Chunks per second."""
        return 1000.0 * sum(chunks for chunks, _ in self.turns) / sum(ms for _, ms in self.turns)

    def _work(self) -> float:
        """Chunks made; of a chunk in work the share that its passes have when run one at a time.

        A turn may end between the passes of many sessions and their decodes: whole chunks are too coarse.
        """
        costs, passes = self.measured.costs, len(self.model.spec.sigmas) + 1
        pass_ms = costs.pass_ms(1, self.model.spec.window_frames)
        done_ms = self.loop.num_rows * pass_ms + self.num_decoded * costs.decode_ms
        return done_ms / (passes * pass_ms + costs.decode_ms)

    def forget(self) -> None:
        """What was measured so far was warm-up."""
        self.latency_ms.clear()
        self.turns.clear()

    def _join(self) -> None:
        spec, number = self.model.spec, len(self.players)
        session = SessionId(f"s_{number:02}")
        chunk_ms = spec.chunk_frames * 1000.0 / spec.fps
        self.players[session] = Player(lead_ms=LEAD_MS if self.paced else 1e12, chunk_ms=chunk_ms)
        self.joined_ms[session] = self.stopwatch()
        prompt = LogEntry(entry="1-0", message=PromptInput(text=PROMPT))
        self.loop.submit(
            Open(
                session=session,
                epoch=1,
                steering=Steering(seed=number),
                pending=(prompt,),
                seq=0,
                frame=0,
            )
        )
        self._wish(session)

    def _wish(self, session: SessionId) -> None:
        wish = Wish(running=True, since_ms=self.joined_ms[session], player=self.players[session])
        self.loop.wish(session, 1, wish)

    def _take(self, event: ComputeEvent) -> None:
        if not isinstance(event, PartMade):
            return
        session, now = event.session, self.stopwatch()
        player, chunk_ms = self.players[session], self.players[session].chunk_ms
        self.num_decoded += 1
        self.latency_ms.append(now - event.due_ms)
        if event.seq == 0:
            self.ttfc_ms.append(now - self.joined_ms[session])
        else:
            made_ms = event.seq * chunk_ms
            dry = dry_ms(player, made_ms=made_ms, due_ms=-1e18, now_ms=now)
            self.stalled_ms += max(0.0, now - dry)
        end_ms = (event.seq + 1) * chunk_ms
        player = delivered(player, seq=event.seq, end_media_ms=end_ms, now_ms=now)
        buffer_ms = end_ms - player.playhead_ms(now)
        player = acknowledged(player, seq=event.seq, end_media_ms=end_ms, buffer_ms=buffer_ms, now_ms=now)
        self.players[session] = replace(player, emitted_seq=event.seq + 1)
        self._wish(session)


def _clock(model: CausalVideoModel) -> Callable[[], float]:
    return cpu_ms if model.device.type == "cpu" else real_ms


def runs(model: CausalVideoModel, measured: Measured, count: int, *, paced: bool) -> dict[str, Run]:
    return {
        name: Run(
            model=model,
            planner=planner,
            measured=measured,
            count=count,
            paced=paced,
            stopwatch=Stopwatch(_clock(model)),
        )
        for name, planner in PLANNERS.items()
    }


def take_turns(contest: dict[str, Run], rounds: int) -> None:
    """Another one begins in each round."""
    names = list(contest)
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            contest[name].turn(TURN_MS)


def saturated(model: CausalVideoModel, measured: Measured, count: int, rounds: int) -> dict[str, Run]:
    contest = runs(model, measured, count, paced=False)
    while any(state.index < 4 for run in contest.values() for state in run.loop.states()):
        take_turns(contest, 1)  # until all windows are full
    for run in contest.values():
        run.forget()
    take_turns(contest, rounds)
    finish(contest)
    return contest


def paced(model: CausalVideoModel, measured: Measured, count: int, seconds: float) -> dict[str, Run]:
    contest = runs(model, measured, count, paced=True)
    while min(run.stopwatch() for run in contest.values()) < seconds * 1000.0:
        take_turns(contest, 1)
    finish(contest)
    return contest


def finish(contest: dict[str, Run]) -> None:
    """Give the pools back: with Wan, those of all contests would not fit into one GPU."""
    for run in contest.values():
        del run.loop
    gc.collect()  # loop and residents refer to each other


def ratio(contest: dict[str, Run], other: str) -> float:
    """Chunks per second of ours against another planner."""
    return contest["ours"].rate / contest[other].rate


def measure(
    model: CausalVideoModel, counts: Sequence[int], *, rounds: int, seconds: float
) -> dict[str, object]:
    """Print both curves, and what they say in short."""
    model.encode_prompts([PROMPT])  # kept, where that takes long: or nothing would be left to do meanwhile
    trial = SlabPool(model, slots=min(max(counts), 16))
    measured = measure_costs(model, trial, _clock(model))
    del trial
    print(f"machine: {machine()}; model {model.spec.name} on {model.device}")
    table = measured.costs.ms[-1]
    print("t(B) ms: " + ", ".join(f"{ms:.1f}" for ms in table) + f"; decode {measured.costs.decode_ms:.1f}")
    print(f"attention: {measured.attention.name}\n", flush=True)
    full = {count: saturated(model, measured, count, rounds) for count in counts}
    print_table(
        ["saturated", *(f"{n} chunks/s" for n in PLANNERS), *(f"{n} latency p50 ms" for n in PLANNERS)]
        + ["ours / one", "ours / always"],
        [_saturated_row(count, contest) for count, contest in full.items()],
    )
    print(flush=True)
    live = {count: paced(model, measured, count, seconds) for count in counts}
    what = ("latency p50", "latency p99", "ttfc max", "stalled")
    print_table(
        ["paced", *(f"{name} {item}" for item in what for name in PLANNERS)],
        [_paced_row(count, contest) for count, contest in live.items()],
    )
    return {
        "bench": "coalesce",
        "model": model.spec.name,
        "device": str(model.device),
        "t_ms": [round(ms, 2) for ms in table],
        "ours_to_one": {count: round(ratio(contest, "one"), 3) for count, contest in full.items()},
        "ours_to_always": {count: round(ratio(contest, "always"), 3) for count, contest in full.items()},
        "stalled": {
            name: {count: round(_stalled(contest[name]), 4) for count, contest in live.items()}
            for name in PLANNERS
        },
    }


def _saturated_row(count: int, contest: dict[str, Run]) -> list[object]:
    rates = [f"{run.rate:.2f}" for run in contest.values()]
    latency = [f"{percentile(run.latency_ms, 0.5):.0f}" for run in contest.values()]
    return [count, *rates, *latency, f"{ratio(contest, 'one'):.3f}", f"{ratio(contest, 'always'):.3f}"]


def _paced_row(count: int, contest: dict[str, Run]) -> list[object]:
    each = contest.values()
    return [
        count,
        *(f"{percentile(run.latency_ms, 0.5):.0f}" for run in each),
        *(f"{percentile(run.latency_ms, 0.99):.0f}" for run in each),
        *(f"{max(run.ttfc_ms):.0f}" for run in each),
        *(f"{100 * _stalled(run):.1f} %" for run in each),
    ]


def _stalled(run: Run) -> float:
    """Share of the sessions' time."""
    watched_ms = sum(run.stopwatch() - joined for joined in run.joined_ms.values())
    return run.stalled_ms / watched_ms


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=("shapes", "small", "wan"), default="shapes")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--sessions", default="1,2,4,8,16")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--seconds", type=float, default=15.0, help="of each paced run")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = random_model(options.shape, torch.device(options.device))
    counts = [int(count) for count in options.sessions.split(",")]
    print_json(measure(model, counts, rounds=options.rounds, seconds=options.seconds))


if __name__ == "__main__":
    main()
