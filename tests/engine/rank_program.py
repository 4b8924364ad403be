"""Programs that tests run on several ranks: `torchrun ... rank_program.py FOLDER NAME...`, one after another.

Each rank writes what it found to FOLDER/<name>/<rank>.pt.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import torch
from torch import Tensor, distributed

from engine.compute import ComputeLoop
from engine.compute_messages import (
    ComputeDied,
    ComputeEvent,
    Drop,
    Feed,
    Offload,
    Open,
    PartMade,
    Resided,
    Restore,
    SessionFailed,
    Wish,
)
from engine.credit import MAX_UNENCODED_CHUNKS, Player
from engine.encoder import EncoderPool
from engine.loading import monotonic_ms, prepare
from engine.models.base import PassBatch
from engine.models.shapes.model import TINY, ShapesModel
from engine.offload import HostPool, slab_bytes
from engine.passes import PassRun
from engine.progress import Progress
from engine.ranks import RankGroup, Ranks, RanksLost, leave
from engine.steering import LogEntry, Steering
from scheduler.messages import PromptInput, ResetInput, Residence, SessionId

CHUNKS = 6
SESSIONS = (SessionId("s_a"), SessionId("s_b"), SessionId("s_c"))
TIMEOUT_S = 30.0


class Model(ShapesModel):
    """A tiny one that notes decoded latents and can fail inside a pass."""

    fail: Callable[[PassBatch], None] = staticmethod(lambda batch: None)  # type: ignore[assignment]
    fail_prompts: Callable[[Sequence[str]], None] = staticmethod(lambda texts: None)  # type: ignore[assignment]

    def encode_prompts(self, texts: Sequence[str]) -> Tensor:
        self.fail_prompts(texts)
        return super().encode_prompts(texts)

    def run_pass(self, batch: PassBatch) -> Tensor:
        self.fail(batch)
        return super().run_pass(batch)


def make_model() -> Model:
    """One that writes its window again for a new prompt: then a pass has more frames than a chunk."""
    model = Model.random(0, config=TINY)
    model.spec = replace(model.spec, recaches_prompts=True)
    return model  # type: ignore[return-value]


class Program:
    """A compute loop that makes CHUNKS chunks of each session and then stops."""

    def __init__(self, ranks: Ranks, model: Model) -> None:
        self.ranks, self.events, self.moves = ranks, list[ComputeEvent](), False
        self.batches: list[list[int]] = []
        self.runs: list[PassRun] = []
        loaded = prepare(model, capacity=4, ranks=ranks)
        self.pool = loaded.pool
        self.encoders = EncoderPool(threads=1)
        self.loop = ComputeLoop(
            model,
            loaded.pool,
            costs=loaded.costs,
            attention=loaded.attention,
            ranks=ranks,
            encoders=self.encoders,
            host=HostPool(model, budget_bytes=len(SESSIONS) * slab_bytes(model)),
            progress=Progress(monotonic_ms),
            clock=monotonic_ms,
            emit=self._take,
        )
        self.latents: dict[SessionId, list[Tensor]] = {session: [] for session in SESSIONS}
        self._watch(model)

    def _watch(self, model: Model) -> None:
        """Note each pass's rows and each chunk's clean latents, on every rank."""
        inner, advance = self.loop._passes.run, self.loop._stepper.advance

        def run(states: object) -> PassRun:
            self.batches.append([state.slot for state in states])  # type: ignore[attr-defined]
            self.runs.append(inner(states))  # type: ignore[arg-type]
            return self.runs[-1]

        def note(state: object, velocity: Tensor) -> bool:
            ready = advance(state, velocity)  # type: ignore[arg-type]
            if ready:
                self.latents[state.session].append(state.x.clone())  # type: ignore[attr-defined]
            return ready

        self.loop._passes.run = run  # type: ignore[method-assign, assignment]
        self.loop._stepper.advance = note  # type: ignore[method-assign, assignment]

    def start(self) -> None:
        """Only rank 0 hears of the sessions."""
        for number, session in enumerate(SESSIONS):
            prompt = LogEntry(entry="1-0", message=PromptInput(text=f"a red ball {number}"))
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
            self._wish(session, 0)

    def run(self) -> None:
        """Until all chunks are made; raises what the loop died of."""
        self.ranks.start_serving()
        if self.ranks.rank == 0:
            self.start()
        self.loop.run()
        self.encoders.close()
        self.loop.close()
        for event in self.events:
            if isinstance(event, ComputeDied):
                raise event.error

    def _wish(self, session: SessionId, done: int) -> None:
        # Not `done`: a chunk begins only when the one before is encoded and what follows from it was said.
        player = Player(
            lead_ms=1e9,
            chunk_ms=750.0,
            has_acked=True,
            emitted_seq=done - MAX_UNENCODED_CHUNKS + 1,
            delivered_seq=done,
            acked_seq=done,
        )
        self.loop.wish(session, 1, Wish(running=done < CHUNKS, since_ms=0.0, player=player))

    def _take(self, event: ComputeEvent) -> None:
        self.events.append(event)
        if isinstance(event, Resided) and event.residence is Residence.OFFLOADED:
            self.loop.submit(Restore(session=event.session, epoch=1))
        if isinstance(event, SessionFailed) and self.ranks.rank == 0:
            self.loop.submit(Drop(session=event.session, epoch=1))
            self._end_if_made()
        if isinstance(event, PartMade) and self.ranks.rank == 0:
            self._steer(event)
            if self.moves:
                self._offload(event)
            self._wish(event.session, event.seq + 1)
            self._end_if_made()

    def _end_if_made(self) -> None:
        failed = {e.session for e in self.events if isinstance(e, SessionFailed)}
        made = [e for e in self.events if isinstance(e, PartMade) and e.session not in failed]
        if len(made) == CHUNKS * (len(SESSIONS) - len(failed)):
            self.loop.stop()

    def _steer(self, event: PartMade) -> None:
        """A prompt for one session and a reset for another, once their second chunk is there."""
        if event.seq == 1 and event.session != SESSIONS[2]:
            change = PromptInput(text="a blue star") if event.session == SESSIONS[0] else ResetInput(seed=9)
            entry = LogEntry(entry="2-0", message=change)
            self.loop.submit(Feed(session=event.session, epoch=1, entries=(entry,)))

    def _offload(self, event: PartMade) -> None:
        """Every session leaves once, each at another chunk, and comes back as soon as it has left."""
        if event.seq == 1 + SESSIONS.index(event.session):
            self.loop.submit(Offload(session=event.session, epoch=1))

    def found(self) -> dict[str, object]:
        return {
            "latents": {str(session): torch.stack(found) for session, found in self.latents.items()},
            "batches": self.batches,
            "heads": self.pool.kv.shape[5],
            "regular": [run.is_regular for run in self.runs],
            "resided": [(e.session, e.residence.value) for e in self.events if isinstance(e, Resided)],
            "failed": [e.session for e in self.events if isinstance(e, SessionFailed)],
            "free": self.pool.num_free,
            "applied": [
                (e.session, e.seq, e.rev) for e in self.events if isinstance(e, PartMade) and e.applied
            ],
        }


def plain(ranks: Ranks) -> dict[str, object]:
    """Nothing goes wrong."""
    program = Program(ranks, make_model())
    program.run()
    return program.found()


def offload(ranks: Ranks) -> dict[str, object]:
    """Sessions leave their slots for host memory and come back, the heads of each rank to its own."""
    program = Program(ranks, make_model())
    program.moves = True
    program.run()
    return program.found()


def memory(ranks: Ranks) -> dict[str, object]:
    """Rank 1 alone runs out of memory in the middle of a pass, whenever it has more than one row."""
    model = make_model()
    program = Program(ranks, model)
    block = model._net.dit.blocks[1]

    def fail(batch: PassBatch) -> None:
        rows = len(batch.rows)

        def forward(*args: Tensor) -> Tensor:
            if rows > 1 and ranks.rank == 1:
                raise torch.OutOfMemoryError("planted")
            return type(block).forward(block, *args)  # type: ignore[arg-type]

        block.forward = forward  # type: ignore[method-assign, assignment]

    model.fail = fail  # type: ignore[method-assign]
    program.run()
    return program.found()


def prompt(ranks: Ranks) -> dict[str, object]:
    """Rank 1 alone can't encode the prompt that the first session is given."""
    model = make_model()
    program = Program(ranks, model)

    def fail_prompts(texts: Sequence[str]) -> None:
        if ranks.rank == 1 and "blue" in texts[0]:
            raise torch.OutOfMemoryError("planted")

    model.fail_prompts = fail_prompts  # type: ignore[method-assign]
    program.run()
    return program.found()


def death(ranks: Ranks) -> dict[str, object]:
    """Rank 1 ends without a word in its 20th pass; the others must notice."""
    model, passes = make_model(), 0
    program = Program(ranks, model)

    def fail(batch: PassBatch) -> None:
        nonlocal passes
        passes += 1
        if passes == 20 and ranks.rank == 1:
            os._exit(0)

    model.fail = fail  # type: ignore[method-assign]
    try:
        program.run()
    except RanksLost as exc:
        return {"lost": str(exc)}
    return {}


PROGRAMS = {program.__name__: program for program in (plain, offload, memory, prompt, death)}
"""The last one leaves too few ranks for any other."""


def main(folder: str, *names: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", timeout=timedelta(seconds=60))
    for name in names:
        ranks = RankGroup(device=torch.device("cpu"), timeout_s=TIMEOUT_S)
        found = PROGRAMS[name](ranks)
        (Path(folder) / name).mkdir(exist_ok=True)
        torch.save(found, Path(folder) / name / f"{ranks.rank}.pt")
    leave()


if __name__ == "__main__":
    main(*sys.argv[1:])
