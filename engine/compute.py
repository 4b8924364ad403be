"""The compute thread's chunk loop: at every pass boundary take in, plan, run one batched pass, advance its
rows.

It never waits for a socket. What other threads tell it arrives at a boundary (`boundary.py`): commands in
order, and per session one `Wish`, of which only the newest counts. What it tells others goes through `emit`.

On an engine of several ranks each rank runs this loop. From equal news and equal states all make the same
plan, so nothing here may depend on a rank's own clock or order of hashing; only decoding is rank 0's alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Protocol, assert_never

import numpy as np
import numpy.typing as npt
import torch

from engine.boundary import Boundary, News, PassTime
from engine.compute_messages import (
    Adopt,
    AdoptShare,
    CheckpointMade,
    Command,
    ComputeDied,
    ComputeEvent,
    Drop,
    Encoded,
    Feed,
    Freeze,
    InputsTaken,
    MoveDone,
    MoveShare,
    Offload,
    Open,
    PartMade,
    Reserve,
    Restore,
    SessionFailed,
    Survey,
    Thaw,
    Unreserve,
    Wish,
)
from engine.cost_table import CostTable
from engine.costs import rehearse
from engine.credit import dry_ms, start_ms
from engine.device_check import DeviceLost, check_device
from engine.encoder import EncodedPart, Encoders, Encoding, SessionEncoder
from engine.kv_pool import SlabPool
from engine.models.base import AttentionBackend, CausalVideoModel
from engine.models.pool_attention import SLICES
from engine.offload import Copier, HostPool
from engine.pass_timer import PassTimer, begin_timing, make_timer
from engine.passes import Passes, PassFailed
from engine.planner import Batch, Planner, ReadyRow, plan
from engine.progress import Progress
from engine.ranks import Ranks, RanksLost, Verdict
from engine.residents import FAILURE_MESSAGE, Resident, Residents
from engine.ring import num_valid
from engine.sampler import sigmas_for
from engine.session_state import SessionState, Stage
from engine.state_format import ExportedState
from engine.state_io import snapshot
from engine.stepper import Stepper
from scheduler.messages import Rung, SessionId

__all__ = ["ComputeLoop", "Movers"]

_log = logging.getLogger("turboserve.engine.compute")

LONG_OPERATION_MS = 10_000.0
"""Limit of taking in commands, prompt encoding and decoding, for the watcher."""
REHEARSAL_MS = 120_000.0
RETRY_MEMORY_PASSES = 500
"""After batches were made smaller for want of memory, larger ones are tried again after so many passes."""


class Movers(Protocol):
    """Who moves a rank's share of sessions to and from other engines, on ranks above 0."""

    def hear(self, command: Command) -> None:
        """What rank 0 told, before it is obeyed."""

    def take(self, migration_id: str) -> tuple[SessionState, ExportedState | None]:
        """As in Adopt, of a share that has come."""


class ComputeLoop:
    """Owns model, pool and session states. Other threads use `submit`, `wish` and `stop` only."""

    def __init__(
        self,
        model: CausalVideoModel,
        pool: SlabPool,
        *,
        costs: CostTable,
        attention: AttentionBackend = SLICES,
        plan: Planner = plan,
        ranks: Ranks | None = None,
        movers: Movers | None = None,
        encoders: Encoders,
        encoding: Encoding | None = None,
        host: HostPool | None = None,
        checkpoint_every: int = 0,
        takes_checkpoint: Callable[[SessionId], bool] = lambda session: True,
        progress: Progress,
        clock: Callable[[], float],
        emit: Callable[[ComputeEvent], None],
    ) -> None:
        """`clock` gives monotonic milliseconds; `emit` is called on the compute and encoder threads.

        With several ranks, one loop runs on each. All but rank 0 hear from it what to do, decode nothing, and
        emit nothing that matters to anybody but their `movers`.

        Without `host` memory, a session that leaves its slot is forgotten. A CheckpointMade comes every
        `checkpoint_every` chunks of a session for which `takes_checkpoint` says so just then, none with 0.
        """
        self._model, self._pool, self._stepper = model, pool, Stepper(model, pool)
        self._boundary = Boundary(clock, ranks)
        self._is_first = ranks is None or ranks.rank == 0
        self._is_alone = ranks is None or ranks.size == 1
        self._passes = Passes(model, pool, attention=attention, ranks=ranks, agree=self._boundary.agree)
        self._attention = attention
        self._timer: PassTimer[tuple[int, int] | None] = make_timer(model.device, clock)
        self.costs, self._plan = costs, plan
        self.num_passes, self.num_rows = 0, 0
        """Passes run, and the rows of all of them together."""
        self._max_rows: int | None = None
        """Largest batch that memory has room for, as far as was noticed."""
        self._retry_memory_at = 0
        self._encoders, self._encoding = encoders, encoding or Encoding()
        self._progress, self._clock, self._emit = progress, clock, emit
        self._movers = movers
        self._checkpoint_every, self._takes_checkpoint = checkpoint_every, takes_checkpoint
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
            clock=clock,
            emit=emit,
            post=self._boundary.post,
            agree=self._boundary.agree,
        )
        self._wishes: dict[tuple[SessionId, int], Wish] = {}

    # --- for other threads ---------------------------------------------------------------------------

    def submit(self, command: Command) -> None:
        """Hand over a command; commands take effect in order at the next pass boundary.

        Raises:
            InboxFull: MAX_INBOX commands wait already.
        """
        self._boundary.submit(command)

    def wish(self, session: SessionId, epoch: int, wish: Wish) -> None:
        """Replace what is wanted of a session. To be called after its Open and before its Drop."""
        self._boundary.wish(session, epoch, wish)

    def stop(self) -> None:
        """Begin no more chunks; `run` returns once those in work have their frames."""
        self._boundary.stop()

    # --- the loop ------------------------------------------------------------------------------------

    def rehearse(self) -> None:
        """Before `run`, on its thread and without sessions: see `costs.rehearse`. All ranks together.

        Raises:
            RanksLost: another rank is gone.
        """
        self._progress.enter("rehearsing", limit_ms=REHEARSAL_MS)
        is_gpu = self._model.device.type == "cuda"
        rehearse(self._model, self._pool, self._passes, self._attention, every_shape=is_gpu)
        self._progress.rest()

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
        for news in self._boundary.hear():
            self._take_in(news)
        now = self._boundary.now_ms
        self._residents.settle()
        if self._rebuild_one(now):
            return True
        ready, wake_ms = self._ready_rows(now)
        batch = self._plan(ready, self._plannable(), now)
        if batch.rows:
            self._run_batch(batch)
            return True
        if self._boundary.stopping:
            return False
        self._rest(None if wake_ms is None else max(0.0, wake_ms - now))
        return True

    def _rest(self, wait_ms: float | None) -> None:
        """Until somebody tells us something, or so long."""
        self._progress.rest()
        self._boundary.rest(wait_ms)

    def _take_in(self, news: News) -> None:
        for seen in news.passes:
            self.costs = self.costs.observed(seen.rows, seen.kv_frames, seen.ms)
        for decode_ms in news.decodes_ms:
            self.costs = self.costs.decoded(decode_ms)
        self._wishes.update({(item.session, item.epoch): item.wish for item in news.wishes})
        for command in news.commands:
            self._progress.enter("taking_in", limit_ms=LONG_OPERATION_MS)
            if self._movers is not None:
                self._movers.hear(command)
            self._obey(command)

    def _obey(self, command: Command) -> None:
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
            case Encoded():
                self._note_encoded(command)
            case MoveDone(number=number):
                self._residents.finish_move(number)
            case Survey() | Freeze() | Thaw() | Reserve() | Unreserve() | Adopt() | AdoptShare():
                self._migrate(command)
            case MoveShare():
                pass  # the movers have heard it
            case _:
                assert_never(command)

    def _note_encoded(self, encoded: Encoded) -> None:
        if encoded.is_failed:
            # The device may encode as well. Not asked where it failed, which is another thread.
            check_device(self._model.device, RuntimeError(f"encoding failed for {encoded.session}"))
            failed = SessionFailed(session=encoded.session, epoch=encoded.epoch, message=FAILURE_MESSAGE)
            self._emit(failed)
        self._residents.note_encoded(encoded.session, encoded.epoch, encoded.seq)

    def _migrate(self, command: Survey | Freeze | Thaw | Reserve | Unreserve | Adopt | AdoptShare) -> None:
        residents = self._residents
        match command:
            case Survey(session=session, epoch=epoch, is_last=is_last):
                residents.survey(session, epoch, is_last=is_last)
            case Freeze(session=session, epoch=epoch):
                residents.freeze(session, epoch, on=True)
            case Thaw(session=session, epoch=epoch):
                residents.freeze(session, epoch, on=False)
            case Reserve(migration_id=id, in_slot=in_slot):
                residents.reserve(id, in_slot=in_slot)
            case Unreserve(migration_id=id):
                residents.unreserve(id)
            case Adopt(migration_id=id, state=state, away=away, codec=codec):
                residents.adopt(id, state, away, codec)
            case AdoptShare(migration_id=id, codec=codec):
                assert self._movers is not None, "rank 0 has told itself of an AdoptShare"
                residents.adopt(id, *self._movers.take(id), codec)
            case _:
                assert_never(command)

    def _ready_rows(self, now_ms: float) -> tuple[list[ReadyRow], float | None]:
        """What could run now, and when something more becomes ready by the passage of time alone."""
        ready: list[ReadyRow] = []
        wake_ms: float | None = None
        for resident in self._residents.in_slots():
            state = resident.state
            wish = self._wishes.get((state.session, state.epoch))
            if wish is None or resident.is_held:
                continue
            start = self._update_due(state, wish, now_ms)
            if start is not None and start > now_ms:
                wake_ms = start if wake_ms is None else min(wake_ms, start)
            if not self._awaits_prompts(state) and self._can_run(state):
                ready.append(self._row(resident, wish, now_ms))
        return ready, wake_ms

    def _awaits_prompts(self, state: SessionState) -> bool:
        """Can it not go on because its prompts are being encoded? Several ranks don't know that of each other
        and encode them at the boundary."""
        is_awaited = self._is_alone and self._stepper.awaits_prompts(state, self._boundary.wake)
        return is_awaited and state.stage is Stage.BOUNDARY

    def _update_due(self, state: SessionState, wish: Wish, now_ms: float) -> float | None:
        """Note since when the next chunk is due. Returns when credit is or will be there."""
        if state.stage is Stage.DENOISE or state.is_refreshing:
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
                return not self._boundary.stopping
            case Stage.REBUILD:
                return False  # not the planner's: see _rebuild_one
            case Stage.BOUNDARY:
                return state.due_ms is not None and not state.awaits_prompt and not self._boundary.stopping
            case _:
                assert_never(state.stage)

    def _row(self, resident: Resident, wish: Wish, now_ms: float) -> ReadyRow:
        state, spec = resident.state, self._model.spec
        due = state.work.due_ms if state.stage is Stage.DENOISE and state.work else state.due_ms
        # A clean pass is the first one of the next chunk's frames: what has to be done before they are there.
        is_clean = state.stage is Stage.CLEAN
        steps = len(sigmas_for(spec, state.index + is_clean))
        return ReadyRow(
            session=state.session,
            kv_frames=self._kv_frames(state),
            passes_left=steps + 1 if is_clean else steps - state.step,
            deadline_ms=dry_ms(
                wish.player,
                made_ms=self._media_ms(state),
                due_ms=now_ms if due is None else due,
                now_ms=now_ms,
            ),
            fresh=resident.fresh,
        )

    def _plannable(self) -> CostTable:
        """The costs of batches that memory has room for."""
        if self._max_rows is not None and self.num_passes >= self._retry_memory_at:
            self._max_rows = None
        return self.costs if self._max_rows is None else self.costs.limited(self._max_rows)

    def _run_batch(self, batch: Batch) -> None:
        residents = [self._residents[row.session] for row in batch.rows]
        residents = [resident for resident in residents if self._begin_if_due(resident)]
        if not residents:
            return
        num_rows = len(residents)
        self._progress.enter("pass", limit_ms=4.0 * self.costs.pass_ms(num_rows, batch.kv_frames))
        states = [resident.state for resident in residents]
        buckets = {self._kv_frames(state) for state in states}
        self._timer.begin()
        run = self._passes.run(states)
        is_typical = run.is_regular and len(buckets) == 1
        for seen, pass_ms in self._timer.end((num_rows, buckets.pop()) if is_typical else None):
            if seen is not None:
                self._boundary.note_pass(PassTime(rows=seen[0], kv_frames=seen[1], ms=pass_ms))
        if run.out_of_memory:
            self._max_rows = max(1, num_rows // 2)
            self._retry_memory_at = self.num_passes + RETRY_MEMORY_PASSES
        self.num_passes, self.num_rows = self.num_passes + 1, self.num_rows + num_rows
        share_ms = self.costs.pass_ms(num_rows, batch.kv_frames) / num_rows
        for resident, outcome in zip(residents, run.outcomes, strict=True):
            resident.fresh = False
            if isinstance(outcome, Exception):
                self._fail(resident.state, outcome)
                continue
            self._count(resident.state, num_rows)
            resident.used_ms += share_ms
            self._guarded(resident.state, partial(self._after_pass, resident, outcome))

    def _kv_frames(self, state: SessionState) -> int:
        spec = self._model.spec
        return num_valid(state.index, chunk=spec.chunk_latent_frames, window=spec.window_frames)

    def _rebuild_one(self, now_ms: float) -> bool:
        """Run one clean pass of a rebuild, if one is left and it is not the turn of the others."""
        waiting = [
            resident
            for resident in self._residents.in_slots()
            if resident.state.stage is Stage.REBUILD
            and (resident.state.is_refreshing or not self._boundary.stopping)
        ]
        others_first = self._rebuilt_last and self._ready_rows(now_ms)[0]
        self._rebuilt_last = False
        if not waiting or others_first:
            return False
        resident = min(waiting, key=lambda it: not it.state.is_refreshing)  # who streams goes first
        self._rebuilt_last = True
        self._progress.enter("rebuilding", limit_ms=LONG_OPERATION_MS)
        state = resident.state
        if self._guarded(state, lambda: self._stepper.prepare_rebuild(state), together=True):
            self._guarded(state, lambda: self._rebuild(state), together=True)
        return True

    def _rebuild(self, state: SessionState) -> None:
        (outcome,) = self._passes.run([state]).outcomes
        self.num_passes += 1
        if isinstance(outcome, PassFailed) and outcome.verdict is Verdict.NO_MEMORY:
            if state.is_refreshing:
                _log.warning("session %s: no memory to write its window again", state.session)
                self._stepper.skip_rebuild(state)
                return
            if self._stepper.split_rebuild(state):
                _log.warning("session %s: no memory to write its window in one pass", state.session)
                return
        if isinstance(outcome, Exception):
            raise outcome
        self._stepper.advance(state, outcome)

    def _begin_if_due(self, resident: Resident) -> bool:
        state = resident.state
        if state.stage is not Stage.BOUNDARY:
            return True
        self._progress.enter("beginning", limit_ms=LONG_OPERATION_MS)
        return self._guarded(state, lambda: self._begin(state), together=True) and not state.is_refreshing

    def _begin(self, state: SessionState) -> None:
        now = self._boundary.now_ms
        taken = self._stepper.begin(state, due_ms=now if state.due_ms is None else state.due_ms, now_ms=now)
        state.due_ms = None
        if taken:
            self._emit(InputsTaken(session=state.session, epoch=state.epoch, count=taken))

    def _after_pass(self, resident: Resident, velocity: torch.Tensor) -> None:
        state = resident.state
        if not self._stepper.advance(state, velocity):
            return
        # The frames leave before the clean pass runs: it is off the latency path.
        self._boundary.expire()
        if state.seq >= state.emit_from:
            resident.sending = state.seq
        else:  # made again after a loss: nobody pays for that
            resident.used_ms = 0.0
        if self._is_first:
            self._decode(resident)
        state.seq, state.frame = state.seq + 1, state.frame + self._stepper.num_frames(state)
        self._offer_checkpoint(state)

    def _decode(self, resident: Resident) -> None:
        """Make the frames of the chunk and send them off; only on rank 0."""
        state = resident.state
        self._progress.enter("decode", limit_ms=LONG_OPERATION_MS)
        end_timing = begin_timing(self._model.device, self._clock)
        try:
            frames = self._stepper.decode(state)
            decode_ms = end_timing()
            self._boundary.note_decode(decode_ms)
            resident.used_ms += decode_ms
            if resident.sending == state.seq:
                self._send(resident, frames)
        except Exception as exc:  # the other ranks hear of it at the next boundary, as we do
            check_device(self._model.device, exc)
            self._report_failure(state, exc)
            self._boundary.post(Drop(session=state.session, epoch=state.epoch))

    def _offer_checkpoint(self, state: SessionState) -> None:
        """Everything that the next boundary is made of is known here, before the clean pass runs."""
        if not self._checkpoint_every or state.seq % self._checkpoint_every or state.seq < state.emit_from:
            return
        if not self._takes_checkpoint(state.session):
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
            self._encoders.renew_lane(resident.lane)
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
            engine_ms=resident.used_ms,
        )
        resident.used_ms = 0.0
        sent, is_failed = 0, False

        def on_part(encoded: EncodedPart) -> None:
            nonlocal sent
            gen_ms = self._clock() - work.started_ms
            self._emit(replace(template, frame=template.chunk_frame + sent, encoded=encoded, gen_ms=gen_ms))
            if encoded.rung is not Rung.LOW:  # else the same frames come again
                sent += encoded.frames

        def on_error(exc: Exception) -> None:
            nonlocal is_failed
            is_failed = True
            _log.error("session %s: encoding failed", template.session, exc_info=exc)

        def on_end(_: object) -> None:
            self._boundary.post(
                Encoded(session=template.session, epoch=template.epoch, seq=template.seq, is_failed=is_failed)
            )

        wish = self._wishes.get((state.session, state.epoch))
        rungs = wish.rungs if wish is not None else (Rung.FULL,)
        encoding = self._encoders.submit(resident.lane, frames, on_part, on_error, rungs)
        encoding.add_done_callback(on_end)

    def _make_encoder(self, codec: str) -> SessionEncoder:
        spec = self._model.spec
        return SessionEncoder(
            width=spec.width, height=spec.height, fps=spec.fps, encoding=self._encoding, codec=codec
        )

    def _guarded(self, state: SessionState, action: Callable[[], None], *, together: bool = False) -> bool:
        """Do it; an error closes this session and nothing else. `together`: one rank may fail alone, and an
        error of any closes it on all.

        Raises:
            RanksLost, DeviceLost: no session is to blame, or the other ranks would go on with it.
        """
        error: Exception | None = None
        try:
            action()
        except (RanksLost, DeviceLost):
            raise
        except Exception as exc:
            check_device(self._model.device, exc)
            error = exc
        verdict = Verdict.DONE if error is None else Verdict.FAILED
        if together:
            verdict = self._boundary.agree(verdict)
        elif error is not None and not self._is_alone:
            raise RanksLost(f"this rank can't go on with {state.session}: {error}") from error
        if verdict is not Verdict.DONE:
            self._fail(state, error or PassFailed(verdict, None))
        return verdict is Verdict.DONE

    def _fail(self, state: SessionState, error: Exception) -> None:
        self._residents.forget(state.session)
        self._report_failure(state, error)

    def _report_failure(self, state: SessionState, error: Exception) -> None:
        _log.error("session %s fails", state.session, exc_info=error)
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
