"""Carries out the session machine's store calls: a connection's inputs in order; forgets in the background.

While Redis can't be reached, `start` and `attach` fail at once and everything else is tried again until
it is back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections import deque
from collections.abc import Awaitable, Callable, Collection
from functools import partial
from typing import assert_never

from gateway.faults import Faults
from gateway.prompt_hook import UNJUDGED, PromptHook, has_prompt
from gateway.session_core import LOST_AFTER_MS
from gateway.session_entry import RETRY_AFTER_MS
from gateway.steps import (
    AppendInput,
    Call,
    CreateSession,
    EndSession,
    Failure,
    FailureKind,
    Forget,
    LoadSession,
    SetPaused,
    TakeControl,
    Taken,
)
from scheduler.messages import GatewayId, SessionId, SessionRecord
from scheduler.store import (
    BeyondGenerated,
    InputLogFull,
    NoSuchSession,
    QueueFull,
    QuotaReached,
    SessionIsClosed,
    StaleController,
    Store,
    StoreError,
    StoreUnavailable,
)

logger = logging.getLogger("gateway.calls")

FIRST_BACKOFF_S = 0.05
MAX_BACKOFF_S = 1.0
BEHIND_S = 5.0
"""So long a record may be behind what its owner has sent once Redis is back: the owner tries every 2 s, and a
try may take as long."""
LAG_S = 1.0
"""So long a record may be behind anyway: of a recorder some engines make a hundred chunks a second."""
PAUSES_S = 2.0
"""An attach waits so long for a pause or resume that a connection before it may still be writing."""
INTERNAL = "internal error; the log of the gateway says more"
MAX_FORGETS = 10_000
"""Beyond, the oldest is dropped: engines close abandoned sessions by themselves, and the scheduler those that
wait, once this gateway ends."""


CarryOut = Callable[[Call, asyncio.Event], Awaitable[None]]


async def perform(store: Store, gateway: GatewayId, queue_limit: int, call: Call) -> object:
    """One attempt. Returns the value or a Failure. Raises StoreUnavailable."""
    try:
        return await _perform(store, gateway, queue_limit, call)
    except StoreUnavailable:
        raise
    except StoreError as exc:
        return _to_failure(exc)


async def _perform(store: Store, gateway: GatewayId, queue_limit: int, call: Call) -> object:
    """`_perform_once`; a session that Redis lost before it had an owner is written again first."""
    copy = call.copy if isinstance(call, AppendInput | SetPaused | LoadSession) else None
    try:
        result = await _perform_once(store, gateway, queue_limit, call)
        if copy is None or result is not None or not isinstance(call, LoadSession):
            return result
    except NoSuchSession:
        if copy is None:
            raise
    await store.restore_queued(copy, gateway=gateway)
    return await _perform_once(store, gateway, queue_limit, call)


async def _perform_once(store: Store, gateway: GatewayId, queue_limit: int, call: Call) -> object:
    match call:
        case CreateSession():
            return await store.create_session(
                session=call.session,
                model=call.model,
                prompt=call.prompt,
                seed=call.seed,
                lead_ms=call.lead_ms,
                codec=call.codec,
                resume_hash=call.resume_hash,
                gateway=gateway,
                queue_limit=queue_limit,
                subject=call.subject,
                max_sessions=call.max_sessions,
            )
        case TakeControl():
            return await _take_control(store, gateway, call)
        case AppendInput():
            return await store.append_input(
                call.session,
                call.message,
                merged_ids=call.ids[:-1],
                controller_epoch=call.controller_epoch,
                write=call.write,
            )
        case SetPaused():
            epoch = call.controller_epoch
            await store.set_paused(call.session, call.paused, ids=call.ids, controller_epoch=epoch)
            return None
        case EndSession():
            epoch = call.controller_epoch
            return await store.close_session(call.session, call.reason, controller_epoch=epoch)
        case LoadSession(copy=None):
            return await _load(store, call.session)
        case LoadSession():
            return await store.get_session(call.session)
        case _:
            assert_never(call)


async def _take_control(store: Store, gateway: GatewayId, call: TakeControl) -> Taken:
    try:
        record = await store.take_control(
            call.session, gateway=gateway, resume_hash=call.resume_hash, next_seq=call.next_seq
        )
    except NoSuchSession:
        await _check_settled(store)
        raise
    pause_ids, input_ids = await store.remembered_ids(call.session)
    return Taken(record=record, pause_ids=pause_ids, input_ids=frozenset(input_ids))


async def _load(store: Store, session: SessionId) -> SessionRecord | None:
    record = await store.get_session(session)
    if record is None:
        await _check_settled(store)
    return record


async def _check_settled(store: Store) -> None:
    """Before it is believed that there is no such session. Raises StoreUnavailable."""
    if not await store.is_settled():
        raise StoreUnavailable("Redis lost its data, and its sessions are being written again")


def _to_failure(exc: StoreError) -> Failure:
    match exc:
        case SessionIsClosed(reason=reason):
            return Failure(kind=FailureKind.CLOSED, message=reason)
        case NoSuchSession():
            return Failure(kind=FailureKind.NO_SUCH_SESSION, message=str(exc))
        case StaleController():
            return Failure(kind=FailureKind.TAKEN_OVER, message=str(exc))
        case QueueFull(retry_after_ms=ms):
            return Failure(kind=FailureKind.QUEUE_FULL, message=str(exc), retry_after_ms=ms)
        case QuotaReached():
            return Failure(kind=FailureKind.QUOTA, message=str(exc))
        case InputLogFull():
            return Failure(kind=FailureKind.LOG_FULL, message=str(exc), retry_after_ms=RETRY_AFTER_MS)
        case BeyondGenerated():
            return Failure(kind=FailureKind.BEYOND, message=str(exc))
        case StoreUnavailable():
            text = "the cluster's records can't be reached right now; try again"
            return Failure(kind=FailureKind.UNAVAILABLE, message=text, retry_after_ms=RETRY_AFTER_MS)
        case _:
            logger.error("unexpected answer of the store: %s", exc)
            return Failure(kind=FailureKind.INTERNAL, message=INTERNAL)


class Lane:
    """Calls that are carried out one after the other. The machine bounds how many there are."""

    def __init__(self) -> None:
        self._calls: deque[tuple[Call, asyncio.Event]] = deque()
        self.task: asyncio.Task[None] | None = None

    def push(self, call: Call, over: asyncio.Event, carry_out: CarryOut) -> asyncio.Task[None]:
        """Add a call, which `carry_out`, always the same, gets in a task. `over`: set once it is in vain."""
        self._calls.append((call, over))
        if self.task is None or self.task.done():
            self.task = asyncio.get_running_loop().create_task(self._run(carry_out))
        return self.task

    async def _run(self, carry_out: CarryOut) -> None:
        while self._calls:
            await carry_out(*self._calls.popleft())


class Pauses:
    """Who writes to the store that a session is paused or not, which its client may have been told by then:
    whoever takes the session over here waits for that, and knows what holds."""

    def __init__(self) -> None:
        self._writing: dict[SessionId, asyncio.Task[None]] = {}

    def begin(self, session: SessionId, writing: asyncio.Task[None]) -> None:
        """The newest controller's."""
        self._writing[session] = writing
        writing.add_done_callback(partial(self._end, session))

    def _end(self, session: SessionId, writing: asyncio.Task[None]) -> None:
        if self._writing.get(session) is writing:
            del self._writing[session]

    async def written(self, session: SessionId) -> None:
        """Wait for it, but not while the store is away."""
        writing = self._writing.get(session)
        if writing is not None and writing is not asyncio.current_task():
            await asyncio.wait((writing,), timeout=PAUSES_S)


class CallQueue:
    """The calls of one connection. Starts and inputs keep their order, and so does everything else.

    The two don't wait for each other: a session is paused, ended and read while a prompt is being judged.
    Nor does a start or an attach wait for what was asked of the session before, which is over.
    Nothing here holds whose calls they are longer than they last: an ended connection is no cycle.
    """

    def __init__(
        self,
        store: Store,
        gateway: GatewayId,
        queue_limit: int,
        hook: PromptHook | None = None,
        *,
        faults: Faults,
        pauses: Pauses,
        redis_up_s: Callable[[], float] = lambda: math.inf,
    ) -> None:
        """pauses: of all connections. redis_up_s: see `Hub.redis_up_s`."""
        self._store = store
        self._gateway = gateway
        self._queue_limit = queue_limit
        self._hook = hook
        self._faults = faults
        self._pauses = pauses
        self._redis_up_s = redis_up_s
        self._is_finished = False
        self._has_given_up = False
        """Was an input of who is gone not written?"""
        self._over = asyncio.Event()
        """Of the calls since the newest start or attach: set when nobody waits for them any more."""
        self._inputs, self._others = Lane(), Lane()

    @property
    def tasks(self) -> tuple[asyncio.Task[None], ...]:
        """Run while calls are under way."""
        return tuple(lane.task for lane in (self._inputs, self._others) if lane.task is not None)

    def push(self, call: Call, on_result: Callable[[Call, object], None]) -> None:
        """Add a call; its result is delivered from a task of its own, to the same `on_result` for all."""
        lane = self._inputs if isinstance(call, CreateSession | AppendInput) else self._others
        if isinstance(call, CreateSession | TakeControl) and not self._is_finished:
            self._over.set()
            self._over = asyncio.Event()
        task = lane.push(call, self._over, partial(self._carry_out, on_result))
        if isinstance(call, SetPaused):
            self._pauses.begin(call.session, task)

    async def _carry_out(
        self, on_result: Callable[[Call, object], None], call: Call, over: asyncio.Event
    ) -> None:
        on_result(call, await self._call(call, over))

    def finish(self) -> None:
        """The client is gone: try what waits once more, but wait for nothing.

        After an input that could not be written none is: it sends them all again when it is back, and what
        was written before those ahead of it would stay there.
        """
        self._is_finished = True
        self._over.set()

    async def _judge(self, hook: PromptHook, call: Call, over: asyncio.Event) -> Failure | None:
        """What the hook says, or UNJUDGED as soon as nobody waits for it."""
        if not has_prompt(call):
            return None
        loop = asyncio.get_running_loop()
        judging = loop.create_task(hook.judge(call))
        ending = loop.create_task(over.wait())
        try:
            await asyncio.wait((judging, ending), return_when=asyncio.FIRST_COMPLETED)
            return judging.result() if judging.done() else UNJUDGED
        finally:  # and not waited for: somebody else's code may take its time
            judging.cancel()
            ending.cancel()

    async def _call(self, call: Call, over: asyncio.Event) -> object:
        is_input = isinstance(call, AppendInput)
        if over.is_set() and (not self._is_finished or (is_input and self._has_given_up)):
            return Failure(kind=FailureKind.UNAVAILABLE, message="its session is over")
        if self._hook is not None and (refusal := await self._judge(self._hook, call, over)) is not None:
            self._has_given_up |= self._is_finished and refusal is UNJUDGED
            return refusal
        if isinstance(call, TakeControl):
            await self._pauses.written(call.session)
        backoff_s, refused_s = FIRST_BACKOFF_S, None
        now_s = asyncio.get_running_loop().time
        while True:
            try:
                result = await perform(self._store, self._gateway, self._queue_limit, call)
                refused_s = now_s() if refused_s is None else refused_s
                # In its place, so that the order of inputs stays: the owner writes the session again soon.
                if over.is_set() or not self._may_be_wrong(call, result, now_s() - refused_s):
                    return result
            except StoreUnavailable as exc:
                refused_s = None
                if isinstance(call, CreateSession | TakeControl) or over.is_set():
                    self._has_given_up |= self._is_finished and is_input
                    return _to_failure(exc)
            except Exception as exc:
                self._faults.note("call", f"{call.session}: {type(call).__name__} failed", exc)
                return Failure(kind=FailureKind.INTERNAL, message=INTERNAL)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(backoff_s):
                    await over.wait()
            backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)

    def _may_be_wrong(self, call: Call, result: object, passed_s: float) -> bool:
        """Has the session's owner perhaps not written the record again yet? `passed_s`: since the first such
        answer."""
        match call, result:
            case TakeControl(), Failure(kind=FailureKind.BEYOND):
                return passed_s < (BEHIND_S if self._redis_up_s() < BEHIND_S else LAG_S)
            case CreateSession() | TakeControl(), _:
                return False
            case _, Failure(kind=FailureKind.NO_SUCH_SESSION):
                return passed_s <= LOST_AFTER_MS / 1000
            case _:
                return False


async def finish_calls(tasks: Collection[asyncio.Task[None]], *, within_s: float) -> None:
    """Wait for what clients that are gone asked of the store, and drop what it does not answer in time."""
    if tasks:
        _done, late = await asyncio.wait(tasks, timeout=within_s)
        for task in late:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Forgetter:
    """Tells the store, whenever it can be reached, that connections are gone."""

    def __init__(self, store: Store, gateway: GatewayId, is_held: Callable[[SessionId, int], bool]) -> None:
        """is_held: see `Hub.is_held`."""
        self._store = store
        self._gateway = gateway
        self._is_held = is_held
        self._waiting: deque[Forget] = deque(maxlen=MAX_FORGETS)
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    def push(self, forget: Forget) -> None:
        self._waiting.append(forget)
        self._idle.clear()
        self._wake.set()

    async def drained(self) -> None:
        """Wait until everything was told."""
        await self._idle.wait()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            while self._waiting:
                await self._forget_first()
            self._idle.set()
            self._wake.clear()
            await self._wake.wait()

    async def _forget_first(self) -> None:
        forget = self._waiting.popleft()
        try:
            epoch = forget.controller_epoch
            if epoch is None:
                epoch = await self._find_epoch(forget.session)
            if epoch is None:
                return
            if forget.close is not None:
                await self._store.close_session(forget.session, forget.close, controller_epoch=epoch)
            else:
                await self._store.leave_session(forget.session, controller_epoch=epoch)
        except StoreUnavailable:
            if len(self._waiting) < MAX_FORGETS:
                self._waiting.appendleft(forget)
                await asyncio.sleep(MAX_BACKOFF_S)
        except StoreError as exc:
            logger.debug("%s needs no forgetting: %s", forget.session, exc)

    async def _find_epoch(self, session: SessionId) -> int | None:
        """The controller_epoch that was given to a connection of this gateway, which never heard it; None: it
        is another's, who forgets the session itself."""
        record = await self._store.get_session(session)
        if record is None or record.gateway != self._gateway:
            return None
        return None if self._is_held(session, record.controller_epoch) else record.controller_epoch
