"""The model side of a session's chunk: begin it at a boundary, advance it by a pass, decode it.

Shape letters: F latent frames of a chunk, C latent channels, h, w latent size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import islice, takewhile

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from engine.compute_messages import Open
from engine.kv_pool import SlabPool
from engine.models.base import CausalVideoModel, PreparesPrompts
from engine.models.upload import upload
from engine.ring import plan_anchor, plan_recache
from engine.sampler import denoise, initial_latents, sigmas_for
from engine.session_state import ChunkWork, PromptBlend, SessionState, Stage, rebuilt_chunks
from engine.state_io import begin_rebuild, finish_rebuild, import_state, remember_chunk
from engine.steering import Blend, Changes, LogEntry, fold, held_in_frames
from scheduler.messages import ControlInput

__all__ = ["BrokenSession", "Stepper"]


class BrokenSession(Exception):
    """The session's state cannot give a picture; the message says why, for the log."""


class Stepper:
    """Advances session states. Not thread-safe: it belongs to the compute thread, like the pool."""

    def __init__(self, model: CausalVideoModel, pool: SlabPool) -> None:
        self._model = model
        self._prepares = model if isinstance(model, PreparesPrompts) else None
        self._pool = pool

    def open(self, command: Open) -> SessionState:
        """Model state for a session: fresh, or rebuilt from its checkpoint (then perhaps in stage REBUILD).

        Raises:
            PoolFull: no slot is free.
            StateFormatError: the checkpoint is not one of this model.
        """
        if command.checkpoint is not None:
            state = import_state(self._model, self._pool, command.checkpoint, epoch=command.epoch)
        else:
            state = SessionState(
                session=command.session,
                epoch=command.epoch,
                slot=self._pool.allocate(),
                steering=command.steering,
                seq=command.seq,
                frame=command.frame,
                last_applied=command.last_applied,
            )
        state.emit_from = command.seq
        state.recorded.extend(command.recorded)
        state.pending.extend(command.pending)
        return state

    def begin(self, state: SessionState, *, due_ms: float, now_ms: float) -> int:
        """Start the next chunk: apply what is pending, draw its noise. Returns how many inputs were taken.

        It may have to write frames of the window again first: then the state is in stage REBUILD.

        Raises:
            BrokenSession: there is no prompt.
        """
        assert state.stage is Stage.BOUNDARY, f"a chunk was begun in stage {state.stage}"
        taken = self._take_inputs(state)
        before = state.steering
        state.steering, changes = fold(before, taken, self._model.combine_prompts)
        if taken:
            state.last_applied = taken[-1].entry
        if changes.reset:
            self._reset(state)
        self._steer(state, changes, before.text)
        if changes.cut is not None and before.text is not None and self._model.spec.recaches_prompts:
            self._recache(state)
        self._anchor(state)  # after that: its new place is that in the window of the chunk to come
        state.actions = self._actions(before.held, changes.controls)
        state.x = initial_latents(
            self._model.spec, seed=state.steering.seed, index=state.index, device=self._model.device
        )
        state.step, state.stage = 0, Stage.REBUILD if state.rebuild else Stage.DENOISE
        state.work = ChunkWork(applied=changes.applied, due_ms=due_ms, started_ms=now_ms)
        return len(taken)

    def awaits_prompts(self, state: SessionState, on_ready: Callable[[], None]) -> bool:
        """Would `begin` have to wait for its prompts to be encoded? They are being encoded then, see
        `PreparesPrompts`; so it pays to ask as soon as there are inputs."""
        if self._prepares is None:
            return False
        count = self._num_recorded(state)
        inputs = [item.entry for item in islice(state.recorded, count)]
        if self._takes_pending(state, count):
            inputs.extend(state.pending)
        if not inputs and state.embeds is not None:
            return False
        _, changes = fold(state.steering, inputs, self._model.combine_prompts)
        cut = _cut(state, changes, state.steering.text)
        blend = None if changes.blend is None else changes.blend.text
        texts = [text for text in (cut, blend) if text is not None]
        return bool(texts) and not self._prepares.prepare_prompts(texts, on_ready)

    def _take_inputs(self, state: SessionState) -> list[LogEntry]:
        """The inputs of chunk `seq`: those recorded for it; new ones only after all recorded ones, and not in
        a chunk that the client has already."""
        count = self._num_recorded(state)
        takes_pending = self._takes_pending(state, count)
        taken = [state.recorded.popleft().entry for _ in range(count)]
        if takes_pending:
            taken.extend(state.pending)
            state.pending.clear()
        return taken

    @staticmethod
    def _num_recorded(state: SessionState) -> int:
        return sum(1 for _ in takewhile(lambda item: item.seq <= state.seq, state.recorded))

    @staticmethod
    def _takes_pending(state: SessionState, num_recorded: int) -> bool:
        return num_recorded == len(state.recorded) and state.seq >= state.emit_from

    def advance(self, state: SessionState, velocity: Tensor) -> bool:
        """Take the result of the session's pass; True when the chunk's latents are now ready to decode."""
        if state.stage is Stage.REBUILD:
            state.rebuild.popleft()
            if not state.rebuild:
                self._finish_rebuild(state)
            return False
        if state.stage is Stage.CLEAN:
            state.stage, state.x = Stage.BOUNDARY, None
            state.index, state.step = state.index + 1, 0
            return False
        assert state.x is not None and state.stage is Stage.DENOISE
        spec, seed = self._model.spec, state.steering.seed
        state.x = denoise(spec, state.x, velocity, seed=seed, index=state.index, step=state.step)
        state.step += 1
        if state.step < len(sigmas_for(spec, state.index)):
            return False
        state.stage = Stage.CLEAN
        remember_chunk(self._model.spec, state)
        return True

    def skip_rebuild(self, state: SessionState) -> None:
        """Leave the window of the chunk in work as it is: there was no memory to write it again."""
        state.rebuild.clear()
        self._finish_rebuild(state)

    def split_rebuild(self, state: SessionState) -> bool:
        """There was no memory to write chunks of the lost window in one pass, as it was written: begin again,
        with each of them alone. False: it was one."""
        indices = state.rebuild[0].indices
        if len(indices) == 1:
            return False
        state.history = [
            replace(record, joined=False) if record.index in indices else record for record in state.history
        ]
        state.rebuild.clear()
        begin_rebuild(self._model, self._pool, state, has_decoder=True)
        return True

    def _finish_rebuild(self, state: SessionState) -> None:
        embeds = state.embeds
        assert embeds is not None
        if state.x is None:
            finish_rebuild(self._model.spec, self._pool, state)
        else:
            state.stage = Stage.DENOISE
            embeds = embeds[:]  # a new tensor: a migration may have copied the prompt K/V meanwhile
        if state.is_lent:
            self._show(state, embeds)
            state.is_lent = False

    def num_frames(self, state: SessionState) -> int:
        """Pixel frames of the chunk whose latents are ready."""
        return self._model.spec.chunk_frames - self._num_dropped(state)

    def _num_dropped(self, state: SessionState) -> int:
        return self._model.spec.first_chunk_drop_frames if state.index == 0 else 0

    def decode(self, state: SessionState) -> npt.NDArray[np.uint8]:
        """RGB uint8 [frames, height, width, 3] of the chunk whose latents are ready.

        Here the host waits for the device, once per chunk.

        Raises:
            BrokenSession: the latents are not finite.
        """
        assert state.x is not None and state.stage is Stage.CLEAN
        finite = torch.isfinite(state.x).all()
        decoder = self._pool.decoder[state.slot]
        frames, following = self._model.decode(state.x, decoder)
        decoder.copy_(following)
        # Into pinned memory, which is several times as fast; to read `finite` is to wait for the frames too.
        rgb: npt.NDArray[np.uint8] = frames[self._num_dropped(state) :].to("cpu", non_blocking=True).numpy()
        if not finite:
            raise BrokenSession("its latents are not finite")
        return rgb

    def prepare_rebuild(self, state: SessionState) -> None:
        """To be called before each pass in stage REBUILD: the slot's prompt becomes that of its chunks."""
        embeds = rebuilt_chunks(state)[0].embeds
        if embeds is not state.embeds or state.is_lent or state.x is None:
            self._pool.prompt_kv[state.slot].copy_(self._model.prompt_kv(embeds)[0])
            state.is_lent = True

    def close(self, state: SessionState) -> None:
        """Free the session's slot."""
        self._pool.free(state.slot)

    def _reset(self, state: SessionState) -> None:
        self._pool.clear(state.slot)
        state.index = 0
        state.resets += 1
        state.history.clear()
        if state.blend is not None:  # nothing is left to blend from
            self._show(state, state.blend.target)
            state.blend = None

    def _anchor(self, state: SessionState) -> None:
        """Have the sink written at its new position, if it gets one here."""
        spec = self._model.spec
        passes = plan_anchor(
            state.index,
            {record.index for record in state.history},
            chunk=spec.chunk_latent_frames,
            window=spec.window_frames,
            sink=spec.sink_frames,
            reach=spec.sink_reach,
        )
        state.rebuild.extend(passes)
        state.resets += bool(passes)

    def _recache(self, state: SessionState) -> None:
        """Have the window written again with the prompt in force."""
        spec, embeds = self._model.spec, state.embeds
        step = plan_recache(
            state.index,
            {record.index for record in state.history},
            chunk=spec.chunk_latent_frames,
            window=spec.window_frames,
            sink=spec.sink_frames,
        )
        if step is None:
            return
        assert embeds is not None
        others = step.indices[1:]
        state.history = [
            replace(record, embeds=embeds, joined=record.index in others)
            if record.index in step.indices
            else record
            for record in state.history
        ]
        state.rebuild.append(step)
        state.resets += 1

    def _steer(self, state: SessionState, changes: Changes, before: str | None) -> None:
        cut = _cut(state, changes, before)
        if cut is not None:
            state.blend = None
            self._show(state, self._encode(cut))
        if changes.blend is not None:
            state.blend = self._begin_blend(state, changes.blend)
        if state.blend is not None:
            self._show(state, state.blend.advance())
            if state.blend.done >= state.blend.chunks:
                state.blend = None
        if state.embeds is None:
            raise BrokenSession("its input log holds no prompt")

    def _begin_blend(self, state: SessionState, blend: Blend) -> PromptBlend:
        if state.embeds is None:
            raise BrokenSession("its input log holds no start prompt")
        return PromptBlend(start=state.embeds, target=self._encode(blend.text), chunks=blend.chunks)

    def _actions(self, held: ControlInput, controls: tuple[ControlInput, ...]) -> Tensor | None:
        """What pushes each latent frame of the chunk, [F, A]; None when the model takes no control input."""
        spec = self._model.spec
        if spec.action_dim == 0:
            return None
        frames = held_in_frames(held, controls, spec.chunk_latent_frames)
        return upload(torch.tensor([self._strongest(states) for states in frames]), self._model.device)

    def _strongest(self, states: tuple[ControlInput, ...]) -> list[float]:
        """Each component of several states counts where it is largest: a tap is not averaged away."""
        actions = [self._model.encode_control(state.keys, state.axes or {}) for state in states]
        return [max(values, key=abs) for values in zip(*actions, strict=True)]

    def _encode(self, text: str) -> Tensor:
        return self._model.encode_prompts([text])  # [1, T, E]

    def _show(self, state: SessionState, embeds: Tensor) -> None:
        """Make these embeddings [1, T, E] the ones that the session's passes attend to."""
        state.embeds = embeds
        self._pool.prompt_kv[state.slot].copy_(self._model.prompt_kv(embeds)[0])


def _cut(state: SessionState, changes: Changes, before: str | None) -> str | None:
    """The prompt that the next chunk begins to show at once. `before`: in force until now, which an earlier
    owner may have applied."""
    return before if changes.cut is None and state.embeds is None else changes.cut
