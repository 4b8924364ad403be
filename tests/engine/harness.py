"""A compute loop with a small random model, driven step by step on the test's own thread."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from engine.compute import ComputeLoop
from engine.compute_messages import (
    Absent,
    CheckpointMade,
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
from engine.cost_table import CostTable
from engine.credit import Player
from engine.encoder import EncoderPool
from engine.kv_pool import SlabPool
from engine.models.base import CausalVideoModel, ModelSpec, PassBatch
from engine.models.shapes.model import TINY, ShapesModel
from engine.offload import HostPool, slab_bytes
from engine.progress import Progress
from engine.session_state import Stage
from engine.state_format import ExportedState, describe, pack, unpack
from engine.steering import LogEntry, RecordedInput, Steering
from scheduler.messages import Input, PromptInput, Residence, Rung, SessionId

BATCHING_PAYS = CostTable.flat(1.0, 1.01, 1.02, 1.03, 1.04, 1.05, 1.06, 1.07)
BATCHING_COSTS = CostTable.flat(1.0)


class RecordingModel:
    """A random tiny model that notes batches and decoded latents, and can be told to fail."""

    def __init__(self, *, seed: int = 0, inner: CausalVideoModel | None = None) -> None:
        self.inner = inner if inner is not None else ShapesModel.random(seed, config=TINY)
        self.spec: ModelSpec = self.inner.spec
        self.device, self.dtype = self.inner.device, self.inner.dtype
        self.batches: list[PassBatch] = []
        self.latents: list[Tensor] = []
        self.frames: list[Tensor] = []
        self.errors: list[Exception] = []
        """Raised by the next passes, one each."""
        self.decode_errors: list[Exception] = []
        """Raised by the next decodes, one each."""
        self.max_rows: int | None = None
        """Larger batches run out of memory."""
        self.poisoned_slot: int | None = None
        """A batch with this slot fails."""

    def encode_prompts(self, texts: Sequence[str]) -> Tensor:
        return self.inner.encode_prompts(texts)

    def combine_prompts(self, shown: str, text: str) -> str:
        return self.inner.combine_prompts(shown, text)

    def encode_control(self, keys: Collection[str], axes: Mapping[str, float]) -> tuple[float, ...]:
        return self.inner.encode_control(keys, axes)

    def prompt_kv(self, embeds: Tensor) -> Tensor:
        return self.inner.prompt_kv(embeds)

    def run_pass(self, batch: PassBatch) -> Tensor:
        self.batches.append(batch)
        if self.errors:
            raise self.errors.pop(0)
        if self.max_rows is not None and len(batch.rows) > self.max_rows:
            raise torch.OutOfMemoryError("no memory for so many rows")
        if any(row.slot == self.poisoned_slot for row in batch.rows):
            raise RuntimeError("this row breaks the pass")
        return self.inner.run_pass(batch)

    def initial_decoder_state(self) -> Tensor:
        return self.inner.initial_decoder_state()

    def decode(self, latents: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        if self.decode_errors:
            raise self.decode_errors.pop(0)
        self.latents.append(latents.clone())
        frames, following = self.inner.decode(latents, state)
        self.frames.append(frames.clone())
        return frames, following


@dataclass
class Client:
    """What a session's player did, as the compute loop is told."""

    epoch: int
    player: Player
    running: bool = True
    since_ms: float = 0.0
    rungs: tuple[Rung, ...] = (Rung.FULL,)


@dataclass
class Bench:
    """The loop, its model and what it emitted. Time stands still unless a test moves it."""

    model: RecordingModel = field(default_factory=RecordingModel)
    slots: int = 4
    host_slabs: int = 4
    costs: CostTable = BATCHING_PAYS
    now_ms: float = 0.0
    takes_checkpoints: bool = True
    events: list[ComputeEvent] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.pool = SlabPool(self.model, slots=self.slots)
        self.host = HostPool(self.model, budget_bytes=self.host_slabs * slab_bytes(self.model))
        self.encoders = EncoderPool(threads=1)
        self.loop = ComputeLoop(
            self.model,
            self.pool,
            costs=self.costs,
            encoders=self.encoders,
            host=self.host,
            checkpoint_every=1,
            takes_checkpoint=lambda session: self.takes_checkpoints,
            progress=Progress(self.clock),
            clock=self.clock,
            emit=self._note,
        )
        self.clients: dict[SessionId, Client] = {}
        self.fed: set[int] = set()
        """For scripts: chunks whose inputs were given at the opening."""

    def _note(self, event: ComputeEvent) -> None:
        self.events.append(event)
        if isinstance(event, Resided | Absent):
            # Or the step would rest, when the test waits for this and nothing else.
            self.loop._boundary._wake.set()

    def clock(self) -> float:
        return self.now_ms

    def open(
        self,
        session: str,
        *,
        text: str | None = "a red ball",
        seed: int = 1,
        epoch: int = 1,
        seq: int = 0,
        lead_ms: float = 1e9,
    ) -> SessionId:
        """A new session whose player never gets enough."""
        spec = self.model.spec
        id = SessionId(session)
        frame = seq * spec.chunk_frames
        start = () if text is None else (LogEntry(entry="1-0", message=PromptInput(text=text)),)
        self.loop.submit(
            Open(session=id, epoch=epoch, steering=Steering(seed=seed), pending=start, seq=seq, frame=frame)
        )
        player = Player(lead_ms=lead_ms, chunk_ms=spec.chunk_frames * 1000 / spec.fps, has_acked=True)
        self.clients[id] = Client(epoch=epoch, player=player)
        self.allow(id, seq)
        return id

    def allow(self, session: SessionId, done: int) -> None:
        """The client has all chunks before `done` and wants more."""
        client = self.clients[session]
        client.player = replace(client.player, emitted_seq=done, delivered_seq=done, acked_seq=done)
        self._wish(session)

    def run(self, session: SessionId, running: bool) -> None:
        """Resume or pause."""
        self.clients[session].running = running
        self._wish(session)

    def choose(self, session: SessionId, *rungs: Rung) -> None:
        """What its clients watch."""
        self.clients[session].rungs = rungs
        self._wish(session)

    def feed(self, session: SessionId, *inputs: Input) -> None:
        """Append to the session's input log."""
        entries = tuple(LogEntry(entry=f"2-{n}", message=message) for n, message in enumerate(inputs))
        self.feed_entries(session, entries)

    def feed_entries(self, session: SessionId, entries: tuple[LogEntry, ...]) -> None:
        self.loop.submit(Feed(session=session, epoch=self.clients[session].epoch, entries=entries))

    def reopen(
        self,
        session: str,
        checkpoint: ExportedState,
        *,
        seq: int,
        recorded: tuple[RecordedInput, ...] = (),
        pending: tuple[LogEntry, ...] = (),
        epoch: int = 2,
    ) -> SessionId:
        """A session from its checkpoint, whose client has all chunks before `seq`."""
        id = SessionId(session)
        command = Open(
            session=id,
            epoch=epoch,
            steering=Steering(seed=0),
            pending=pending,
            recorded=recorded,
            seq=seq,
            frame=0,
            checkpoint=checkpoint,
        )
        self.loop.submit(command)
        spec = self.model.spec
        player = Player(lead_ms=1e9, chunk_ms=spec.chunk_frames * 1000 / spec.fps, has_acked=True)
        self.clients[id] = Client(epoch=epoch, player=player)
        self.allow(id, seq)
        return id

    def offload(self, session: SessionId) -> None:
        """Take it out of its slot; returns when its state is elsewhere."""
        self.loop.submit(Offload(session=session, epoch=self.clients[session].epoch))
        self._until_resided(session, lambda residence: residence is not Residence.RESIDENT)

    def restore(self, session: SessionId) -> None:
        """Bring it back; returns when it is in a slot."""
        self.loop.submit(Restore(session=session, epoch=self.clients[session].epoch))
        self._until_resided(session, lambda residence: residence is Residence.RESIDENT)

    def resided(self, session: SessionId) -> list[Residence]:
        """Every place where its state was said to be."""
        return [e.residence for e in self.events if isinstance(e, Resided) and e.session == session]

    def checkpoints(self, session: SessionId) -> dict[int, ExportedState]:
        """Its checkpoints by seq, as they come out of their bytes."""
        made = [e for e in self.events if isinstance(e, CheckpointMade) and e.session == session]
        return {e.seq: unpack(pack(describe(e.state.header, e.state.buffers, checked=True))) for e in made}

    def _until_resided(self, session: SessionId, is_there: Callable[[Residence], bool]) -> None:
        before = len(self.resided(session))
        with torch.inference_mode():
            while not any(is_there(residence) for residence in self.resided(session)[before:]):
                assert self.loop.step(), "the loop ended"

    def renew_encoder(self, session: SessionId) -> None:
        """Encode the next chunk with a fresh encoder, as a new owner does."""
        resident = self.loop._residents[session]
        assert resident.lane is not None
        self.encoders.renew_lane(resident.lane)

    def drop(self, session: SessionId) -> None:
        self.loop.submit(Drop(session=session, epoch=self.clients.pop(session).epoch))

    def drop_unknown(self) -> None:
        """A command without effect."""
        self.loop.submit(Drop(session=SessionId("s_unknown"), epoch=1))

    def step(self, passes: int = 1) -> None:
        """Run so many passes, all sessions wanting more all the time."""
        goal = self.loop.num_passes + passes
        with torch.inference_mode():
            while self.loop.num_passes < goal:
                self._want_more()
                assert self.loop.step(), "the loop ended"

    def chunks(self, session: SessionId, count: int) -> None:
        """Run until the session has made `count` chunks."""
        with torch.inference_mode():
            while self.made(session) < count:
                self._want_more()
                assert self.loop.step(), "the loop ended"
        self.encoders.close()

    def to_boundary(self, session: SessionId) -> None:
        """Pause, and run the clean pass of the newest chunk."""
        self.run(session, False)
        with torch.inference_mode():
            while any(s.session == session and s.stage is not Stage.BOUNDARY for s in self.loop.states()):
                assert self.loop.step()

    def made(self, session: SessionId) -> int:
        """Chunks that the session has made since it was opened."""
        return next((s.seq for s in self.loop.states() if s.session == session), 0)

    def parts(self, session: SessionId) -> list[PartMade]:
        return [e for e in self.events if isinstance(e, PartMade) and e.session == session]

    def failed(self) -> list[SessionId]:
        return [e.session for e in self.events if isinstance(e, SessionFailed)]

    def _want_more(self) -> None:
        for state in self.loop.states():
            if state.session in self.clients:
                self.allow(state.session, state.seq)

    def _wish(self, session: SessionId) -> None:
        client = self.clients[session]
        self.loop.wish(
            session,
            client.epoch,
            Wish(
                running=client.running,
                since_ms=client.since_ms,
                player=client.player,
                rungs=client.rungs,
            ),
        )
