"""The compute thread's chunk loop: at every pass boundary take in, plan, run one batched pass, advance its
rows.

It never waits for a socket. What other threads tell it arrives in two ways: commands in an inbox, in order;
and per session one `Wish`, of which only the newest counts. What it tells others goes through `emit`.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import assert_never

import numpy as np
import numpy.typing as npt
import torch

from engine.compute_messages import (
    CheckpointMade,
    Command,
    ComputeDied,
    ComputeEvent,
    Drop,
    Feed,
    InputsTaken,
    MoveDone,
    Offload,
    Open,
    PartMade,
    Restore,
    SessionFailed,
    Wish,
)
from engine.credit import dry_ms, start_ms
from engine.encoder import EncodedPart, EncoderPool, SessionEncoder
from engine.kv_pool import SlabPool
from engine.models.base import CausalVideoModel
from engine.offload import Copier, HostPool
from engine.passes import run_rows
from engine.planner import Batch, CostTable, ReadyRow, plan
from engine.progress import Progress
from engine.residents import FAILURE_MESSAGE, Resident, Residents
from engine.sampler import sigmas_for
from engine.session_state import SessionState, Stage
from engine.state_io import snapshot
from engine.stepper import Stepper
from scheduler.messages import SessionId

__all__ = ["ComputeLoop", "InboxFull"]

_log = logging.getLogger("turboserve.engine.compute")

MAX_INBOX = 4_096
"""Commands between two pass boundaries; never met, as inputs are bounded per session by their reader."""
LONG_OPERATION_MS = 10_000.0
"""Limit of taking in commands, prompt encoding and decoding, for the watcher."""
_SMOOTHING = 0.2


class InboxFull(Exception):
    """The compute thread has not taken in MAX_INBOX commands."""


class ComputeLoop:
    """Owns model, pool and session states. Other threads use `submit`, `wish` and `stop` only."""

    def __init__(
        self,
        model: CausalVideoModel,
        pool: SlabPool,
        *,
        costs: CostTable,
        encoders: EncoderPool,
        crf: int,
        host: HostPool | None = None,
        checkpoint_every: int = 0,
        progress: Progress,
        clock: Callable[[], float],
        emit: Callable[[ComputeEvent], None],
    ) -> None:
        """`clock` gives monotonic milliseconds; `emit` is called on the compute and encoder threads.

        Without `host` memory, a session that leaves its slot is forgotten. A CheckpointMade comes every
        `checkpoint_every` chunks of a session, none with 0.
        """
        self._model, self._pool, self._stepper = model, pool, Stepper(model, pool)
        self.costs = costs
        self.num_passes = 0
        self._decode_ms = 0.0
        self._encoders, self._crf = encoders, crf
        self._progress, self._clock, self._emit = progress, clock, emit
        self._checkpoint_every = checkpoint_every
        self._rebuilt_last = False
        """Was the last pass one of a rebuild?"""
        self._copier = Copier(model.device)
        self._residents = Residents(
            model,
            pool,
            self._stepper,
            host=host if host is not None else HostPool(model, budget_bytes=0),
            copier=self._copier,
            encoders=encoders,
            make_encoder=self._make_encoder,
            emit=emit,
            post=self._post,
        )
        self._inbox: deque[Command] = deque()
        self._wishes: dict[tuple[SessionId, int], Wish] = {}
        self._wake = threading.Event()
        self._stopping = False

    # --- for other threads ---------------------------------------------------------------------------

    def submit(self, command: Command) -> None:
        """Hand over a command; commands take effect in order at the next pass boundary.

        Raises:
            InboxFull: MAX_INBOX commands wait already.
        """
        if len(self._inbox) >= MAX_INBOX:
            raise InboxFull(f"{MAX_INBOX} commands wait for the compute thread")
        self._inbox.append(command)
        self._wake.set()

    def wish(self, session: SessionId, epoch: int, wish: Wish) -> None:
        """Replace what is wanted of a session. To be called after its Open and before its Drop."""
        self._wishes[session, epoch] = wish
        self._wake.set()

    def stop(self) -> None:
        """Begin no more chunks; `run` returns once those in work have their frames."""
        self._stopping = True
        self._wake.set()

    # --- the loop ------------------------------------------------------------------------------------

    @torch.inference_mode()
    def run(self) -> None:
        """Run until stopped. Never raises: an error of the loop itself is emitted as ComputeDied."""
        try:
            while self.step():
                pass
        except BaseException as exc:
            _log.exception("the compute loop ended by an error")
            self._emit(ComputeDied(error=exc))
        finally:
            self._progress.rest()

    def step(self) -> bool:
        """One pass boundary: run a pass, or rest until something is ready. False: there is no more to do."""
        self._take_in()
        self._residents.settle()
        if self._rebuild_one():
            return True
        now = self._clock()
        ready, wake_ms = self._ready_rows(now)
        batch = plan(ready, self.costs, now)
        if batch.rows:
            self._run_batch(batch)
            return True
        if self._stopping:
            return False
        self._progress.rest()
        self._wake.wait(None if wake_ms is None else max(0.0, (wake_ms - now) / 1000.0))
        return True

    def _take_in(self) -> None:
        self._wake.clear()  # before reading: what comes later sets it again
        while self._inbox:
            command = self._inbox.popleft()
            self._progress.enter("taking_in", limit_ms=LONG_OPERATION_MS)
            match command:
                case Open():
                    self._residents.open(command)
                case Feed(session=session, epoch=epoch, entries=entries):
                    self._residents.feed(session, epoch, entries)
                case Drop(session=session, epoch=epoch):
                    self._wishes.pop((session, epoch), None)
                    self._residents.drop(session, epoch)
                case Offload(session=session, epoch=epoch):
                    self._residents.want(session, epoch, in_slot=False)
                case Restore(session=session, epoch=epoch):
                    self._residents.want(session, epoch, in_slot=True)
                case MoveDone(number=number):
                    self._residents.finish_move(number)
                case _:
                    assert_never(command)

    def _ready_rows(self, now_ms: float) -> tuple[list[ReadyRow], float | None]:
        """What could run now, and when something more becomes ready by the passage of time alone."""
        ready: list[ReadyRow] = []
        wake_ms: float | None = None
        for resident in self._residents.in_slots():
            state = resident.state
            wish = self._wishes.get((state.session, state.epoch))
            if wish is None:
                continue
            start = self._update_due(state, wish, now_ms)
            if start is not None and start > now_ms:
                wake_ms = start if wake_ms is None else min(wake_ms, start)
            if self._can_run(state):
                ready.append(self._row(state, wish, now_ms))
        return ready, wake_ms

    def _update_due(self, state: SessionState, wish: Wish, now_ms: float) -> float | None:
        """Note since when the next chunk is due. Returns when credit is or will be there."""
        if state.stage is Stage.DENOISE:
            return None
        if state.seq < state.emit_from:  # the client has it already and waits for what comes after it
            state.due_ms = now_ms if state.due_ms is None else state.due_ms
            return None
        start = (
            start_ms(wish.player, next_seq=state.seq, made_ms=self._media_ms(state)) if wish.running else None
        )
        if start is None or start > now_ms:
            state.due_ms = None
        elif state.due_ms is None:  # kept when a later ack confirms it: lateness must not shrink by acks
            state.due_ms = max(start, wish.since_ms)
        return start

    def _can_run(self, state: SessionState) -> bool:
        match state.stage:
            case Stage.DENOISE:
                return True
            case Stage.CLEAN:
                return not self._stopping
            case Stage.REBUILD:
                return False  # not the planner's: see _rebuild_one
            case Stage.BOUNDARY:
                return state.due_ms is not None and not self._stopping
            case _:
                assert_never(state.stage)

    def _row(self, state: SessionState, wish: Wish, now_ms: float) -> ReadyRow:
        steps = len(sigmas_for(self._model.spec, state.index))
        due = state.work.due_ms if state.stage is Stage.DENOISE and state.work else state.due_ms
        dry = dry_ms(
            wish.player,
            made_ms=self._media_ms(state),
            due_ms=now_ms if due is None else due,
            now_ms=now_ms,
        )
        return ReadyRow(
            session=state.session,
            step=state.step,
            index=state.index,
            passes_left=1 if state.stage is Stage.CLEAN else steps - state.step,
            deadline_ms=dry - self._decode_ms,
        )

    def _run_batch(self, batch: Batch) -> None:
        residents = [self._residents[row.session] for row in batch.rows]
        residents = [resident for resident in residents if self._begin_if_due(resident)]
        if not residents:
            return
        num_rows = len(residents)
        expected_ms = self.costs.pass_ms(num_rows)
        self._progress.enter("pass", limit_ms=4.0 * expected_ms)
        began = self._clock()
        outcomes = run_rows(self._model, self._pool, [resident.state for resident in residents])
        self.costs = self.costs.observe(num_rows, max(self._clock() - began, 1e-3))
        self.num_passes += 1
        for resident, outcome in zip(residents, outcomes, strict=True):
            if isinstance(outcome, Exception):
                self._fail(resident.state, outcome)
                continue
            self._count(resident.state, num_rows)
            self._guarded(resident.state, partial(self._after_pass, resident, outcome))

    def _rebuild_one(self) -> bool:
        """Run one clean pass of a rebuild, if one is left and it is not the turn of the others."""
        waiting = [r for r in self._residents.in_slots() if r.state.stage is Stage.REBUILD]
        others_first = self._rebuilt_last and self._ready_rows(self._clock())[0]
        self._rebuilt_last = False
        if not waiting or others_first or self._stopping:
            return False
        resident = waiting[0]
        self._rebuilt_last = True
        self._progress.enter("rebuilding", limit_ms=LONG_OPERATION_MS)
        self._guarded(resident.state, partial(self._rebuild, resident.state))
        return True

    def _rebuild(self, state: SessionState) -> None:
        self._stepper.prepare_rebuild(state)
        (outcome,) = run_rows(self._model, self._pool, [state])
        self.num_passes += 1
        if isinstance(outcome, Exception):
            raise outcome
        self._stepper.advance(state, outcome)

    def _begin_if_due(self, resident: Resident) -> bool:
        state = resident.state
        if state.stage is not Stage.BOUNDARY:
            return True
        self._progress.enter("beginning", limit_ms=LONG_OPERATION_MS)
        return self._guarded(state, lambda: self._begin(state))

    def _begin(self, state: SessionState) -> None:
        now = self._clock()
        taken = self._stepper.begin(state, due_ms=now if state.due_ms is None else state.due_ms, now_ms=now)
        state.due_ms = None
        if taken:
            self._emit(InputsTaken(session=state.session, epoch=state.epoch, count=taken))

    def _after_pass(self, resident: Resident, velocity: torch.Tensor) -> None:
        state = resident.state
        if not self._stepper.advance(state, velocity):
            return
        # The frames leave before the clean pass runs: it is off the latency path.
        self._progress.enter("decode", limit_ms=LONG_OPERATION_MS)
        began = self._clock()
        frames = self._stepper.decode(state)
        self._decode_ms += _SMOOTHING * (self._clock() - began - self._decode_ms)
        if state.seq >= state.emit_from:
            self._send(resident, frames)
        state.seq, state.frame = state.seq + 1, state.frame + len(frames)
        self._offer_checkpoint(state)

    def _offer_checkpoint(self, state: SessionState) -> None:
        """Everything that the next boundary is made of is known here, before the clean pass runs."""
        if not self._checkpoint_every or state.seq % self._checkpoint_every or state.seq < state.emit_from:
            return
        kept = snapshot(self._model.spec, state, self._pool.decoder[state.slot])
        event = CheckpointMade(session=state.session, epoch=state.epoch, seq=state.seq, state=kept)
        self._emit(event)

    # --- parts of the above ----------------------------------------------------------------------------

    def _send(self, resident: Resident, frames: npt.NDArray[np.uint8]) -> None:
        """Hand the frames of the session's chunk to its encoder."""
        state, work = resident.state, resident.state.work
        assert work is not None and resident.lane is not None
        if state.index == 0 and resident.has_sent:  # rate control remembers: a reset forgets that too
            resident.lane = replace(resident.lane, encoder=self._make_encoder())
        resident.has_sent = True
        template = PartMade(
            session=state.session,
            epoch=state.epoch,
            seq=state.seq,
            frame=state.frame,
            chunk_frame=state.frame,
            chunk_frames=len(frames),
            rev=state.steering.rev,
            applied=work.applied,
            encoded=EncodedPart(part=0, parts=1, frames=0, sizes=(), payload=b""),
            due_ms=work.due_ms,
            gen_ms=0.0,
            batch=work.num_rows / work.num_passes,
        )
        sent = 0

        def on_part(encoded: EncodedPart) -> None:
            nonlocal sent
            gen_ms = self._clock() - work.started_ms
            self._emit(replace(template, frame=template.chunk_frame + sent, encoded=encoded, gen_ms=gen_ms))
            sent += encoded.frames

        def on_error(exc: Exception) -> None:
            _log.error("session %s: encoding failed", template.session, exc_info=exc)
            self._emit(SessionFailed(session=template.session, epoch=template.epoch, message=FAILURE_MESSAGE))

        resident.encoding = self._encoders.submit(resident.lane, frames, on_part, on_error)
        resident.encoding.add_done_callback(lambda _: self._wake.set())  # it may be waited for to leave

    def _make_encoder(self) -> SessionEncoder:
        spec = self._model.spec
        return SessionEncoder(width=spec.width, height=spec.height, fps=spec.fps, crf=self._crf)

    def _guarded(self, state: SessionState, action: Callable[[], None]) -> bool:
        """Do it; an error closes this session and nothing else."""
        try:
            action()
        except Exception as exc:
            self._fail(state, exc)
            return False
        return True

    def _fail(self, state: SessionState, error: Exception) -> None:
        _log.error("session %s fails", state.session, exc_info=error)
        self._residents.forget(state.session)
        self._emit(SessionFailed(session=state.session, epoch=state.epoch, message=FAILURE_MESSAGE))

    def _media_ms(self, state: SessionState) -> float:
        return state.frame * 1000.0 / self._model.spec.fps

    def _count(self, state: SessionState, num_rows: int) -> None:
        if state.work is not None and state.stage is Stage.DENOISE:
            state.work.num_passes += 1
            state.work.num_rows += num_rows

    def states(self) -> Iterable[SessionState]:
        """The states in slots, for checks while the loop is not running."""
        return [resident.state for resident in self._residents.in_slots()]

    def close(self) -> None:
        """After `run` has returned: end the thread that copies. Blocks until it has."""
        self._copier.close()

    def _post(self, done: MoveDone) -> None:
        # Past the bound: there is at most one per slot and host slab, and losing it would lose them.
        self._inbox.append(done)
        self._wake.set()
