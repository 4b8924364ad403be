"""Session state out of a slot and into one, in the form of `state_format`. Compute thread.

Shape letters: as in `engine/models/base.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.kv_pool import SlabPool
from engine.models.base import CausalVideoModel, ModelSpec
from engine.models.upload import upload
from engine.ring import Rebuild, live_chunks, plan_rebuild
from engine.session_state import ChunkRecord, PromptBlend, SessionState, Stage
from engine.state_format import (
    BlendInfo,
    ChunkInfo,
    ExportedState,
    ModelKey,
    Part,
    StateFormatError,
    StateHeader,
    StateScalars,
    describe,
)
from engine.steering import Steering

__all__ = ["begin_rebuild", "check_shapes", "export_kv_frames", "export_state", "finish_rebuild"]
__all__ += [
    "gather_kv_frames",
    "import_kv_frames",
    "import_state",
    "load_scalars",
    "load_slabs",
    "model_key",
    "remember_chunk",
    "snapshot",
]


def model_key(spec: ModelSpec) -> ModelKey:
    """What an importing model must have equal."""
    return ModelKey(name=spec.name, weights_hash=spec.weights_hash, state_version=spec.state_version)


def remember_chunk(spec: ModelSpec, state: SessionState) -> None:
    """Note the chunk whose clean latents are in `x`, and forget those that its own K/V push out."""
    assert state.x is not None and state.embeds is not None and state.stage is Stage.CLEAN
    state.history.append(
        ChunkRecord(index=state.index, latents=state.x, embeds=state.embeds, actions=state.actions)
    )
    live = live_chunks(
        state.index + 1, chunk=spec.chunk_latent_frames, window=spec.window_frames, sink=spec.sink_frames
    )
    state.history = [record for record in state.history if record.index in live]


# --- out ------------------------------------------------------------------------------------------------


def snapshot(spec: ModelSpec, state: SessionState, decoder: Tensor) -> ExportedState:
    """What a checkpoint holds of a session whose newest chunk is decoded; no tensor is copied but `decoder`.

    `seq` and `frame` must be past that chunk. It is the state after the clean pass, which may still be ahead:
    K/V are a cache of what is here. Without checksums: `describe` it again, with checks, for bytes.

    Many of a session may wait for an acknowledgement, also when its client has left for long: they share
    latents and embeddings, which are put together when a buffer is read, on any thread.

    Args:
        decoder: [decoder_state_numel] of the session's slot; part of the snapshot only when the model's
            decoder state can't be made from the newest latents.
    """
    is_made = state.stage is Stage.CLEAN
    assert is_made or state.stage is Stage.BOUNDARY, f"a snapshot in stage {state.stage}"
    table = _EmbedsTable()
    scalars = _scalars(state, table, index=state.index + is_made)
    buffers = _Unstacked(_stacks(spec, state.history, table))
    if spec.decoder_tail_frames is None:
        buffers.stacks["decoder"] = _Stack((), decoder.clone())
    header = StateHeader(model=model_key(spec), session=state.session, epoch=state.epoch, scalars=scalars)
    likeness = {name: stack.likeness() for name, stack in buffers.stacks.items()}
    return ExportedState(header=describe(header, likeness, checked=False).header, buffers=buffers)


def export_state(
    model: CausalVideoModel,
    pool: SlabPool,
    state: SessionState,
    parts: Collection[Part] = frozenset(Part) - {Part.REPLAY},
    *,
    checked: bool = True,
) -> ExportedState:
    """The state at a chunk boundary. K/V, prompt K/V and decoder state are views of the slot: copy them
    before the session goes on or the slot is freed. `replay` is the host's to add.
    """
    assert state.stage is Stage.BOUNDARY, f"an export in stage {state.stage}"
    table, buffers = _EmbedsTable(), dict[str, Tensor]()
    if Part.KV in parts:
        buffers["kv"] = pool.kv[state.slot]
    if Part.PROMPT_KV in parts:
        buffers["prompt_kv"] = pool.prompt_slot(state.slot)
    if Part.DECODER in parts:
        buffers["decoder"] = pool.decoder[state.slot]
    scalars = None
    if Part.LATENTS in parts:
        scalars = _scalars(state, table, index=state.index)
        buffers |= _Unstacked(_stacks(model.spec, state.history, table))
    header = StateHeader(
        model=model_key(model.spec), session=state.session, epoch=state.epoch, scalars=scalars
    )
    return describe(header, buffers, checked=checked)


def export_kv_frames(
    model: CausalVideoModel, pool: SlabPool, state: SessionState, ring: Sequence[int]
) -> ExportedState:
    """K/V of some ring frames only, gathered: [n, L, 2, N, H, D]. Committed frames may go while others are
    being written.
    """
    frames = gather_kv_frames(pool, state.slot, ring)
    header = StateHeader(
        model=model_key(model.spec), session=state.session, epoch=state.epoch, kv_ring=tuple(ring)
    )
    return describe(header, {"kv": frames}, checked=True)


class _EmbedsTable:
    """Gives each distinct embeddings tensor a row."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []

    def row(self, embeds: Tensor) -> int:
        for row, known in enumerate(self.tensors):
            if known is embeds:
                return row
        self.tensors.append(embeds)
        return len(self.tensors) - 1


def _scalars(state: SessionState, table: _EmbedsTable, *, index: int) -> StateScalars:
    blend = state.blend
    return StateScalars(
        seq=state.seq,
        frame=state.frame,
        index=index,
        seed=state.steering.seed,
        text=state.steering.text,
        rev=state.steering.rev,
        held=state.steering.held,
        last_applied=state.last_applied,
        history=tuple(
            ChunkInfo(index=record.index, embeds=table.row(record.embeds), joined=record.joined)
            for record in state.history
        ),
        embeds=None if state.embeds is None else table.row(state.embeds),
        blend=None
        if blend is None
        else BlendInfo(
            start=table.row(blend.start), target=table.row(blend.target), chunks=blend.chunks, done=blend.done
        ),
    )


@dataclass(frozen=True, slots=True)
class _Stack:
    """A buffer of tensors of one shape, or `whole` where there are none."""

    tensors: Sequence[Tensor]
    whole: Tensor

    def make(self) -> Tensor:
        return torch.stack(list(self.tensors)) if self.tensors else self.whole

    def likeness(self) -> Tensor:
        """A tensor of its shape and type that takes no memory."""
        first = self.tensors[0] if self.tensors else self.whole
        shape = (len(self.tensors), *first.shape) if self.tensors else first.shape
        return torch.empty(shape, dtype=first.dtype, device="meta")


class _Unstacked(Mapping[str, Tensor]):
    """Buffers that are made when they are read: before, they take no memory of their own."""

    def __init__(self, stacks: dict[str, _Stack]) -> None:
        self.stacks = stacks

    def __getitem__(self, name: str) -> Tensor:
        return self.stacks[name].make()

    def __iter__(self) -> Iterator[str]:
        return iter(self.stacks)

    def __len__(self) -> int:
        return len(self.stacks)


def _stacks(spec: ModelSpec, history: Sequence[ChunkRecord], table: _EmbedsTable) -> dict[str, _Stack]:
    shape = (spec.chunk_latent_frames, *spec.latent_shape)
    stacks = {
        "latents": _Stack([record.latents for record in history], torch.empty(0, *shape)),
        "embeds": _Stack([embeds[0] for embeds in table.tensors], torch.empty(0, *spec.text_shape)),
    }
    if spec.action_dim:
        actions = [record.actions for record in history if record.actions is not None]
        nothing = torch.empty(0, spec.chunk_latent_frames, spec.action_dim)
        stacks["actions"] = _Stack(actions, nothing)
    return stacks


# --- in -------------------------------------------------------------------------------------------------


def import_state(
    model: CausalVideoModel, pool: SlabPool, exported: ExportedState, *, epoch: int
) -> SessionState:
    """A session at the boundary that the export stands for, in a new slot.

    With K/V, prompt K/V and decoder state it can go on at once. Without K/V it is in stage REBUILD: run its
    passes, then `finish_rebuild`.

    Raises:
        PoolFull: no slot is free.
        StateFormatError: the export is another model's, has no scalars, or contradicts itself.
    """
    header = exported.header
    if header.model != model_key(model.spec):
        raise StateFormatError(f"the state is one of {header.model}, this engine has {model_key(model.spec)}")
    if header.scalars is None:
        raise StateFormatError("the state has no scalars")
    check_shapes(model.spec, pool, exported)
    slot = pool.allocate()
    try:
        state = load_scalars(exported, model.device, slot=slot, epoch=epoch)
        load_slabs(pool, exported, slot)
        if "prompt_kv" not in exported.buffers and state.embeds is not None:
            pool.prompt_slot(slot).copy_(model.prompt_kv(state.embeds)[0])
        if "kv" not in exported.buffers:
            begin_rebuild(model, pool, state, has_decoder="decoder" in exported.buffers)
    except BaseException:
        pool.free(slot)
        raise
    return state


def load_slabs(pool: SlabPool, exported: ExportedState, slot: int) -> None:
    """Copy what the export has of K/V, prompt K/V and decoder state into a slot that the caller holds.

    Any thread, as long as no other touches this slot. Copies from pinned memory do not block the host.
    """
    targets = {"kv": pool.kv[slot], "prompt_kv": pool.prompt_slot(slot), "decoder": pool.decoder[slot]}
    for name, target in targets.items():
        if name in exported.buffers:
            target.copy_(exported.buffers[name], non_blocking=True)


def gather_kv_frames(pool: SlabPool, slot: int, ring: Sequence[int]) -> Tensor:
    """K/V of some ring frames of a slot, [n, L, 2, N, H, D]. Any thread."""
    return pool.kv[slot][:, :, _index(ring)].permute(2, 0, 1, 3, 4, 5).contiguous()


def _index(ring: Sequence[int]) -> slice | list[int]:
    """A slice where it can be one: then nothing is copied to take these frames."""
    frames = list(ring)
    is_run = bool(frames) and frames == list(range(frames[0], frames[0] + len(frames)))
    return slice(frames[0], frames[0] + len(frames)) if is_run else frames


def import_kv_frames(model: CausalVideoModel, pool: SlabPool, exported: ExportedState, slot: int) -> None:
    """Write ring frames of an `export_kv_frames` into a slot.

    Raises:
        StateFormatError: another model's, or other shapes.
    """
    header, frames = exported.header, exported.buffers.get("kv")
    layers, two, window, *rest = pool.kv.shape[1:]
    wanted = (len(header.kv_ring), layers, two, *rest)
    if header.model != model_key(model.spec) or frames is None or tuple(frames.shape) != wanted:
        raise StateFormatError(f"these are not {len(header.kv_ring)} ring frames of this engine's model")
    if any(ring >= window for ring in header.kv_ring):
        raise StateFormatError(f"a slab has no ring frames {header.kv_ring}")
    pool.kv[slot][:, :, _index(header.kv_ring)] = frames.to(pool.kv.device).permute(1, 2, 0, 3, 4, 5)


def check_shapes(spec: ModelSpec, pool: SlabPool, exported: ExportedState) -> None:
    """Raises StateFormatError when a buffer does not fit the model, the rank's pool or the scalars."""
    scalars, buffers = exported.header.scalars, exported.buffers
    assert scalars is not None
    latents, embeds = buffers.get("latents"), buffers.get("embeds")
    wanted = {
        "kv": tuple(pool.kv.shape[1:]),
        "prompt_kv": spec.prompt_kv_shape,
        "decoder": (spec.decoder_state_numel,),
        "latents": (len(scalars.history), spec.chunk_latent_frames, *spec.latent_shape),
        "embeds": (0 if embeds is None else len(embeds), *spec.text_shape),
        "actions": (len(scalars.history), spec.chunk_latent_frames, spec.action_dim),
    }
    for name, shape in wanted.items():
        if name in buffers and tuple(buffers[name].shape) != shape:
            raise StateFormatError(f"buffer {name} is {list(buffers[name].shape)}, needs {list(shape)}")
    if latents is None or embeds is None or ("actions" in buffers) != bool(spec.action_dim):
        raise StateFormatError("the state has no latents, embeddings or actions, or actions too many")
    if exported.header.kv_ring:
        raise StateFormatError("the state has only some ring frames")
    if any(row >= len(embeds) for row in _rows(scalars)):
        raise StateFormatError("the state refers to embeddings that it does not have")


def _rows(scalars: StateScalars) -> Iterable[int]:
    yield from (info.embeds for info in scalars.history)
    if scalars.embeds is not None:
        yield scalars.embeds
    if scalars.blend is not None:
        yield from (scalars.blend.start, scalars.blend.target)


def load_scalars(exported: ExportedState, device: torch.device, *, slot: int, epoch: int) -> SessionState:
    """The session without its slabs. Latents and embeddings are copies, made before anything that is given to
    the device after them; the host waits for none that comes from pinned memory."""
    header, scalars = exported.header, exported.header.scalars
    assert scalars is not None
    latents = exported.buffers["latents"].to(device, copy=True, non_blocking=True)
    embeds = exported.buffers["embeds"].to(device, copy=True, non_blocking=True)
    rows = [embeds[row : row + 1] for row in range(len(embeds))]
    actions = exported.buffers.get("actions")
    if actions is not None:
        actions = actions.to(device, copy=True, non_blocking=True)
    blend = scalars.blend
    return SessionState(
        session=header.session,
        epoch=epoch,
        slot=slot,
        steering=Steering(text=scalars.text, seed=scalars.seed, rev=scalars.rev, held=scalars.held),
        seq=scalars.seq,
        frame=scalars.frame,
        index=scalars.index,
        last_applied=scalars.last_applied,
        embeds=None if scalars.embeds is None else rows[scalars.embeds],
        blend=None
        if blend is None
        else PromptBlend(
            start=rows[blend.start], target=rows[blend.target], chunks=blend.chunks, done=blend.done
        ),
        history=[
            ChunkRecord(
                index=info.index,
                latents=latents[place],
                embeds=rows[info.embeds],
                actions=None if actions is None else actions[place],
                joined=info.joined,
            )
            for place, info in enumerate(scalars.history)
        ],
    )


# --- rebuild ----------------------------------------------------------------------------------------------


def begin_rebuild(model: CausalVideoModel, pool: SlabPool, state: SessionState, *, has_decoder: bool) -> None:
    """Put a session with a cleared slab into stage REBUILD; its decoder state is made at once.

    The decoder reads the chunks of its tail in the groups in which they were decoded first, so that its
    state is the same to the bit.
    """
    spec, plan = model.spec, _plan(model.spec, state)
    state.rebuild.extend(plan.passes)
    state.stage = Stage.REBUILD if plan.passes else Stage.BOUNDARY
    if not has_decoder and spec.decoder_tail_frames is not None:
        chunks = -(-spec.decoder_tail_frames // spec.chunk_latent_frames)
        decoder = model.initial_decoder_state()
        for record in state.history[-chunks:] if chunks else ():
            _, decoder = model.decode(record.latents, decoder)
        pool.decoder[state.slot].copy_(decoder)


def finish_rebuild(spec: ModelSpec, pool: SlabPool, state: SessionState) -> None:
    """After the last pass: every frame goes where the ring has it, and the session is at its boundary."""
    plan = _plan(spec, state)
    slab = pool.kv[state.slot]
    if plan.moves:
        sources, targets = upload(torch.tensor(plan.moves), slab.device).unbind(1)
        written = slab.index_select(2, sources)
        slab.zero_()
        slab.index_copy_(2, targets, written)
    state.stage = Stage.BOUNDARY


def _plan(spec: ModelSpec, state: SessionState) -> Rebuild:
    return plan_rebuild(
        state.index,
        [record.index for record in state.history],
        chunk=spec.chunk_latent_frames,
        window=spec.window_frames,
        sink=spec.sink_frames,
        reach=spec.sink_reach,
        joined=[record.index for record in state.history if record.joined],
    )
