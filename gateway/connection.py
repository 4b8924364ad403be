"""The shell of one client connection: carries out what the session machine decides."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Iterable
from typing import assert_never

from gateway.access import Visitor
from gateway.auth import Identity
from gateway.calls import CallQueue
from gateway.chunk_trace import ChunkTrace
from gateway.faults import survived
from gateway.hub import Hub
from gateway.limits import MESSAGE_BYTES
from gateway.play_meter import PlayMeter
from gateway.protocol import (
    CLIENT_MESSAGES,
    CODECS,
    JSON_SUBPROTOCOL,
    MAX_SEED,
    Ack,
    CloseCode,
    Closed,
    Error,
    Gap,
    MessageError,
    Session,
    State,
    Stats,
)
from gateway.recorder import Take
from gateway.rungs import RungMeter
from gateway.session import Draw, SessionMachine, Stage
from gateway.session_log import SessionLog
from gateway.steps import (
    AppendInput,
    Ask,
    Call,
    Close,
    CreateSession,
    EndSession,
    Follow,
    Forget,
    LoadSession,
    Output,
    Send,
    SendChunk,
    SetPaused,
    TakeControl,
    Unfollow,
)
from gateway.websocket import WebSocket
from scheduler.messages import (
    ChunkPart,
    EngineId,
    Event,
    LinkReply,
    LinkRequest,
    Rung,
    SessionId,
    SessionState,
    StateChanged,
    Subscribed,
    Unwatch,
)
from scheduler.messages import Stats as LinkStats
from scheduler.store import draw_id

_BEGINNINGS: dict[type[Call], str] = {CreateSession: "start", TakeControl: "attach", LoadSession: "watch"}
"""What the client asked for whom the answer to this call brings `session`."""


class ClientConnection:
    """A `gateway.websocket.Receiver` and a `gateway.link.Follower`. All calls come from the event loop.

    Nobody who calls it sees an error: what can't be handled ends this connection and no other.
    """

    def __init__(self, hub: Hub, visitor: Visitor, identity: Identity | None) -> None:
        """`identity` is what the token in the handshake said, None without one."""
        self._hub = hub
        self._loop = asyncio.get_running_loop()
        self.machine = SessionMachine(
            catalog=lambda: hub.catalog, draw=_draw, door=visitor, identity=identity
        )
        self._calls = CallQueue(
            hub.store,
            hub.gateway,
            hub.config.queue_limit,
            hub.prompt_hook,
            faults=hub.faults,
            pauses=hub.pauses,
            redis_up_s=hub.redis_up_s,
        )
        self._codec = CODECS[JSON_SUBPROTOCOL]
        self._socket: WebSocket | None = None
        self._registered: SessionId | None = None
        self._log = SessionLog()
        self._followed: tuple[EngineId, SessionId] | None = None
        self._announced_epoch = 0
        self._take: Take | None = None
        """Where the controlled session is recorded."""
        self._was_queued = False
        self._started_s: float | None = None
        self._meter = PlayMeter()
        self._rungs = RungMeter(can_fall=hub.config.low_rung)
        self._trace = ChunkTrace() if hub.tracing is not None else None
        self._tick: asyncio.TimerHandle | None = None
        self._was_heard = False
        """Did a message come from somebody who is known?"""
        self._silence: asyncio.TimerHandle | None = None
        """Closes a connection that has no session."""

    @property
    def calls_tasks(self) -> tuple[asyncio.Task[None], ...]:
        """Run while store calls are under way."""
        return self._calls.tasks

    @property
    def engine(self) -> EngineId | None:
        """Who is followed."""
        return self._followed[0] if self._followed is not None else None

    @property
    def rung(self) -> Rung:
        """At which the client should get its video."""
        return self._rungs.rung

    # --- Receiver --------------------------------------------------------------------------------------

    @survived
    def receive_open(self, socket: WebSocket) -> None:
        self._socket = socket
        self._codec = CODECS[socket.subprotocol or JSON_SUBPROTOCOL]
        self._hub.connections.add(self)
        timeout_s = self._hub.config.first_message_timeout_s
        self._silence = self._loop.call_later(timeout_s, self._receive_silence)

    @survived
    def receive_frame(self, data: str | bytes) -> None:
        if len(data) > MESSAGE_BYTES:
            may_be_read, outputs = self.machine.receive_long(len(data), self._now_ms())
            if not may_be_read:
                self._do(outputs)
                return
        try:
            message = self._codec.decode_control(CLIENT_MESSAGES, data)
        except MessageError as exc:
            self._do(self.machine.receive_bad(exc, self._now_ms()))
        else:
            outputs = self.machine.receive_message(message, self._now_ms())
            if isinstance(message, Ack) and self.machine.stage is not Stage.OVER:
                self._carry_out(outputs)
                self._count_ack(message)
            else:
                self._do(outputs)
        # Not before, or bad messages would keep the place of nobody for longer.
        if not self._was_heard and self.machine.is_identified():
            self._was_heard = True
            self._update_silence()

    @survived
    def receive_lost(self) -> None:
        self._cancel_silence()
        if self._socket is not None:
            self._log.lose(self._socket.why_aborted, self._socket.close_code)
        try:
            self._do(self.machine.receive_disconnect())
        finally:
            self._let_go()

    def _let_go(self) -> None:
        """Nothing keeps what is left of this connection, whatever has failed in it."""
        self._hub.connections.discard(self)
        self._calls.finish()
        self._socket = None  # which has this connection as its receiver
        if self._tick is not None:
            self._tick.cancel()
        self._unfollow()
        if self._registered is not None:
            self._unregister(self._registered)
            self._registered = None

    # --- Follower --------------------------------------------------------------------------------------

    @survived
    def receive_link_up(self, engine: EngineId) -> None:
        self._do(self.machine.receive_link_up(engine))

    @survived
    def receive_link_down(self, engine: EngineId) -> None:
        self._do(self.machine.receive_link_down(engine))

    @survived
    def receive_link(self, engine: EngineId, reply: LinkReply) -> None:
        outputs = self.machine.receive_link(reply, self._now_ms())
        if not isinstance(reply, LinkStats):
            self._do(outputs)
            if self.rung is Rung.LOW and isinstance(reply, Subscribed | StateChanged):
                self._hub.choose_rungs(reply.session)  # it answers a request that has undone our choice
            return
        if self._trace is not None:
            self._trace.receive_stats(reply)
        self._carry_out(outputs)

    @survived
    def receive_chunk(self, engine: EngineId, part: ChunkPart, payload: memoryview, arrived_s: float) -> None:
        rung = self.rung
        if self.machine.is_watching():
            queued_bytes = self._socket.queued_bytes if self._socket is not None else 0
            outputs = self.machine.receive_viewed(part, payload, queued_bytes, rung)
            self._rungs.receive_offered(part.seq, part.duration_ms * part.parts, queued_bytes)
        else:
            outputs = self.machine.receive_chunk(part, payload, rung)
        for output in outputs:
            self._do_one(output)
            if isinstance(output, SendChunk):
                self._count_part(part, len(payload), arrived_s)
        if self.rung is not rung:
            self._hub.metrics.clients.rung_changes.labels(self.rung.value).inc()
            self._hub.choose_rungs(part.session)

    # --- Fragile ---------------------------------------------------------------------------------------

    def receive_fault(self, exc: Exception) -> None:
        self._hub.faults.note("connection", f"{self._registered}: its connection is cut", exc)
        if self._socket is not None:
            self._socket.abort("an internal error")

    # --- from the hub ----------------------------------------------------------------------------------

    @survived
    def receive_event(self, event: Event) -> None:
        self._do(self.machine.receive_event(event, self._now_ms()))

    @survived
    def receive_events_lost(self) -> None:
        self._do(self.machine.receive_events_lost())

    @survived
    def receive_taken_over(self, controller_epoch: int) -> None:
        self._do(self.machine.receive_taken_over(controller_epoch))

    @survived
    def receive_position(self, position: int | None, eta_ms: int) -> None:
        self._do(self.machine.receive_position(position, eta_ms, self._now_ms()))

    @survived
    def receive_shutdown(self) -> None:
        self._do(self.machine.receive_shutdown())

    @survived
    def _receive_result(self, call: Call, result: object) -> None:
        outputs = self.machine.receive_result(call, result, self._now_ms())
        how = _BEGINNINGS.get(type(call))
        if how and any(isinstance(o, Send) and isinstance(o.message, Session) for o in outputs):
            self._log.begin(call.session, how)
        self._do(outputs)

    @survived
    def _receive_tick(self) -> None:
        self._tick = None
        self._do(self.machine.receive_tick(self._now_ms()))

    @survived
    def _receive_silence(self) -> None:
        self._do(self.machine.receive_silence())

    # --- outputs ---------------------------------------------------------------------------------------

    def _do(self, outputs: Iterable[Output]) -> None:
        """Carry out what the machine decided, then keep registry and timer in line with it."""
        self._carry_out(outputs)
        self._update_registration()
        self._update_timer()

    def _carry_out(self, outputs: Iterable[Output]) -> None:
        """For what comes with each chunk, parts, stats and acks: it changes neither session nor deadline."""
        for output in outputs:
            self._do_one(output)

    def _do_one(self, output: Output) -> None:  # noqa: C901 - one arm per kind
        match output:
            case Send(message=message):
                self._count(message)
                self._send(self._codec.encode_control(message))
            case SendChunk(header=header, payload=payload):
                if self._socket is not None:
                    self._socket.send_pieces(self._codec.encode_media_head(header), payload)
                if self._take is not None:
                    self._take.add(header, payload)
            case Ask(request=request):
                if self._followed is not None and not self._is_watched_by_others(request):
                    self._hub.relay.send(self._followed[0], request)
            case Close(code=code, reason=reason):
                self._close(code, reason)
            case Follow(engine=engine):
                self._follow(engine)
            case Unfollow():
                self._unfollow()
            case Forget():
                self._hub.forgetter.push(output)
            case CreateSession() | TakeControl() | AppendInput() | SetPaused() | EndSession() | LoadSession():
                if isinstance(output, CreateSession):
                    self._started_s = time.perf_counter()
                self._calls.push(output, self._receive_result)
            case _:
                assert_never(output)

    def _is_watched_by_others(self, request: LinkRequest) -> bool:
        """Would this take away what other viewers at this gateway watch?"""
        return isinstance(request, Unwatch) and any(
            other is not self and other.machine.is_watching() and other.engine == self.engine
            for other in self._hub.of(request.session)
        )

    def _send(self, data: str | bytes) -> None:
        if self._socket is not None:
            self._socket.send(data)

    def _close(self, code: CloseCode, reason: str) -> None:
        self._hub.metrics.clients.closes.labels(int(code)).inc()
        self._log.close(self._registered, code, reason)
        if self._socket is not None:
            self._socket.close(code, reason)

    def _follow(self, engine: EngineId) -> None:
        self._unfollow()
        session = self.machine.session_id
        assert session is not None, "only a connection with a session follows an engine"
        self._followed = (engine, session)
        self._hub.relay.follow(engine, session, self)

    def _unfollow(self) -> None:
        if self._followed is not None:
            self._hub.relay.unfollow(*self._followed, self)
            self._followed = None

    def _update_registration(self) -> None:
        session = self.machine.session_id
        if session != self._registered:
            if self._registered is not None:
                self._unregister(self._registered)
            if session is not None:
                self._hub.register(session, self)
            self._registered = session
            self._update_silence()
            self._announced_epoch = 0
            if self.machine.stage is not Stage.STARTING:  # what was started before never had a chunk
                self._started_s = None
            recorder = self._hub.recorder if session is not None and not self.machine.is_watching() else None
            self._take = recorder.begin(session) if recorder is not None and session is not None else None
        epoch = self.machine.controller_epoch
        if session is not None and epoch > self._announced_epoch:
            self._announced_epoch = epoch
            self._announce_control(session, epoch)
        is_queued = self.machine.is_queued()
        if is_queued and not self._was_queued:
            self._hub.queue_changed()
        self._was_queued = is_queued

    def _unregister(self, session: SessionId) -> None:
        self._hub.unregister(session, self)
        rungs = {self.rung, *(other.rung for other in self._hub.of(session))}
        if Rung.LOW in rungs:  # who is left may want something else
            self._hub.choose_rungs(session)
        self._rungs = RungMeter(can_fall=self._hub.config.low_rung)

    def _announce_control(self, session: SessionId, epoch: int) -> None:
        """Other connections of this gateway hear at once that they lost the session, without Redis."""
        for other in self._hub.of(session):
            if other is not self:
                other.receive_taken_over(epoch)

    def _update_timer(self) -> None:
        deadline_ms = self.machine.deadline_ms()
        if self._tick is not None:
            self._tick.cancel()
            self._tick = None
        if deadline_ms is not None and self.machine.stage is not Stage.OVER:
            self._tick = self._loop.call_at(deadline_ms / 1000, self._receive_tick)

    def _update_silence(self) -> None:
        """Who is known has longer to ask for a session, and again after its end, but not for ever."""
        self._cancel_silence()
        if self._was_heard and self._registered is None and self.machine.stage is not Stage.OVER:
            timeout_s = self._hub.config.no_session_timeout_s
            self._silence = self._loop.call_later(timeout_s, self._receive_silence)

    def _cancel_silence(self) -> None:
        if self._silence is not None:
            self._silence.cancel()
            self._silence = None

    def _now_ms(self) -> float:
        return self._loop.time() * 1000

    # --- figures ---------------------------------------------------------------------------------------

    def _count_part(self, part: ChunkPart, num_bytes: int, arrived_s: float) -> None:
        if part.part + 1 == part.parts:
            self._meter.receive_chunk(part.seq, part.pts_ms + part.duration_ms)
            if not self.machine.is_watching():
                self._rungs.receive_sent(part.seq, part.duration_ms * part.parts, self._now_ms())
        metrics, now_s = self._hub.metrics, time.perf_counter()
        metrics.relay.observe(now_s - arrived_s)
        metrics.parts.inc()
        metrics.media_bytes.inc(num_bytes)
        if self._trace is not None and not self.machine.is_watching():
            self._trace.receive_part(part, num_bytes, arrived_s * 1000, now_s * 1000)
        if self._started_s is not None:
            metrics.clients.ttfc.observe(now_s - self._started_s)
            self._started_s = None

    def _count(self, message: object) -> None:
        metrics = self._hub.metrics.clients
        match message:
            case Error(code=code):
                metrics.errors.labels(code.value).inc()
            case Stats(latency_ms=latency_ms):
                metrics.chunk_latency.observe(latency_ms / 1000)
            case Closed(reason=reason):
                self._log.end(reason)
            case Gap(from_seq=from_seq, to_seq=to_seq):
                metrics.gaps.inc(to_seq - from_seq + 1)
            case State(state=state) if state is not SessionState.ACTIVE:
                self._meter.rest()
            case Session():
                self._meter = PlayMeter()
                self._trace = ChunkTrace() if self._hub.tracing is not None else None

    def _count_ack(self, message: Ack) -> None:
        self._rungs.receive_ack(message.seq, message.buffer_ms, self._now_ms())
        if self.machine.told_state() is SessionState.ACTIVE:
            metrics = self._hub.metrics.clients
            played_ms, stalled_ms = self._meter.receive_ack(message.seq, message.buffer_ms, self._now_ms())
            metrics.played.inc(played_ms / 1000)
            if stalled_ms:
                metrics.stalled.inc(stalled_ms / 1000)
        if self._trace is not None and self._followed is not None and self._hub.tracing is not None:
            now_ms, engine = time.perf_counter() * 1000, self._followed[0]
            self._hub.tracing.export(self._trace.receive_ack(message.seq, message.buffer_ms, engine, now_ms))


def _draw() -> Draw:
    return Draw(
        session=SessionId(draw_id("s", 8)),
        resume=secrets.token_urlsafe(24),
        seed=secrets.randbelow(MAX_SEED + 1),
    )
