"""What the compute loop hears between two passes: commands, wishes, the time, and what was measured.

Other threads of rank 0 tell it here; on an engine of several ranks every rank hears the same at the same
boundary. The meeting at which ranks agree on a pass carries the news along, so a boundary costs one meeting;
a second one only after a decode, which takes rank 0 long enough for more to have happened. They meet as well
where one of them may fail alone: when a session is opened, a chunk begun, a window written again.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from engine.compute_messages import (
    Adopt,
    AdoptShare,
    Command,
    Drop,
    Encoded,
    Feed,
    Freeze,
    MoveDone,
    MoveShare,
    Offload,
    Open,
    Reserve,
    Restore,
    Survey,
    Thaw,
    Unreserve,
    Wish,
)
from engine.credit import Player
from engine.rank_wire import Opaque, from_wire, to_wire
from engine.ranks import Alone, Ranks, Verdict
from engine.state_format import ExportedState, pack, unpack
from engine.steering import LogEntry, RecordedInput, Steering
from scheduler.messages import (
    ControlInput,
    MigrateSession,
    PromptInput,
    ReceiveSession,
    ResetInput,
    SessionId,
)

__all__ = ["MAX_INBOX", "Boundary", "InboxFull", "News", "PassTime", "WishOf"]

MAX_INBOX = 4_096
"""Commands between two pass boundaries; never met, as inputs are bounded per session by their reader."""
KEEP_MEETING_MS = 1_000.0
"""Ranks with nothing to do meet so often: whoever waits longer than the timeout takes the others for lost."""


class InboxFull(Exception):
    """The compute thread has not taken in MAX_INBOX commands."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WishOf:
    """A session's newest wish."""

    session: SessionId
    epoch: int
    wish: Wish


@dataclass(frozen=True, slots=True, kw_only=True)
class PassTime:
    """A pass took so long."""

    rows: int
    kv_frames: int
    ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class News:
    """What happened on rank 0 since the last boundary."""

    commands: tuple[Command, ...] = ()
    wishes: tuple[WishOf, ...] = ()
    passes: tuple[PassTime, ...] = ()
    decodes_ms: tuple[float, ...] = ()
    stopping: bool = False


_NOTHING = News()
_WIRE_CLASSES = (
    *(News, WishOf, PassTime, Open, Feed, Drop, Offload, Restore, Encoded, MoveDone, Wish, Player),
    *(LogEntry, RecordedInput, Steering, PromptInput, ControlInput, ResetInput),
    *(Survey, Freeze, Thaw, Reserve, Unreserve, AdoptShare, MoveShare, MigrateSession, ReceiveSession),
)
_OPAQUE = (Opaque(ExportedState, pack, unpack),)


class Boundary:
    """`submit`, `wish` and `stop` are for other threads, the rest for the compute thread."""

    def __init__(self, clock: Callable[[], float], ranks: Ranks | None = None) -> None:
        """`clock` gives monotonic milliseconds; only rank 0's counts."""
        self._clock, self._ranks = clock, ranks or Alone()
        self.now_ms = clock()
        """Of the present boundary, on rank 0's clock."""
        self.stopping = False
        """Was `stop` called, as far as all ranks know?"""
        self._inbox: deque[Command] = deque()
        self._wishes: dict[tuple[SessionId, int], Wish] = {}
        self._passes: list[PassTime] = []
        self._decodes_ms: list[float] = []
        self._stop = False
        self._wake = threading.Event()
        self._heard: list[News] = []
        self._is_stale = True
        """Is another meeting needed before the next plan?"""

    # --- for other threads ---------------------------------------------------------------------------

    def submit(self, command: Command) -> None:
        """Hand over a command. Raises InboxFull."""
        if len(self._inbox) >= MAX_INBOX:
            raise InboxFull(f"{MAX_INBOX} commands wait for the compute thread")
        self._inbox.append(command)
        self._wake.set()

    def wish(self, session: SessionId, epoch: int, wish: Wish) -> None:
        """Replace what is wanted of a session."""
        self._wishes[session, epoch] = wish
        self._wake.set()

    def wake(self) -> None:
        """Something has changed that no command tells: look again."""
        self._wake.set()

    def stop(self) -> None:
        """No more chunks are to be begun."""
        self._stop = True
        self._wake.set()

    def post(self, command: Command) -> None:
        """As `submit`, past the bound, for what the loop says to itself: at most some per session and copy.

        Only rank 0's word counts.
        """
        if self._ranks.rank == 0:
            self._inbox.append(command)
            self._wake.set()

    # --- for the compute thread ------------------------------------------------------------------------

    def hear(self) -> list[News]:
        """Everything since the last call, in order. Raises RanksLost."""
        if self._is_stale:
            self._meet(Verdict.DONE)
        heard, self._heard, self._is_stale = self._heard, [], True
        self.stopping = self.stopping or any(news.stopping for news in heard)
        return heard

    def agree(self, verdict: Verdict) -> Verdict:
        """The verdict of all ranks on what they have done; the same meeting brings the news. Raises
        RanksLost."""
        return verdict if self._ranks.size == 1 else self._meet(verdict)

    def _meet(self, verdict: Verdict) -> Verdict:
        first = self._ranks.rank == 0
        now, news = self._clock(), self._collect() if first else _NOTHING
        wire = b"" if self._ranks.size == 1 or news == _NOTHING else to_wire(_for_others(news), _OPAQUE)
        meeting = self._ranks.meet(verdict, now_ms=now, news=wire)
        if not first and meeting.news:
            told = from_wire(meeting.news, _WIRE_CLASSES, _OPAQUE)
            assert isinstance(told, News), f"rank 0 told {type(told).__name__}"
            news = told
        self.now_ms, self._is_stale = meeting.now_ms, False
        if news != _NOTHING:
            self._heard.append(news)
        return meeting.verdict

    def note_pass(self, time: PassTime) -> None:
        """Rank 0 has measured it; everybody's costs follow at the next boundary. What others measure does not
        count."""
        if self._ranks.rank == 0:
            self._passes.append(time)

    def note_decode(self, ms: float) -> None:
        """Same for a decode."""
        self._decodes_ms.append(ms)

    def expire(self) -> None:
        """A decode has passed since the last meeting. To be called on all ranks."""
        self._is_stale = True

    def rest(self, wait_ms: float | None) -> None:
        """Wait until somebody tells something, at most so long; None: until then."""
        if self._ranks.rank > 0 or self._heard:
            return  # the next meeting waits for rank 0; what was told meanwhile is to be heard first
        if self._ranks.size > 1:
            wait_ms = KEEP_MEETING_MS if wait_ms is None else min(wait_ms, KEEP_MEETING_MS)
        self._wake.wait(None if wait_ms is None else wait_ms / 1000.0)

    def _collect(self) -> News:
        self._wake.clear()  # before reading: what comes later sets it again
        commands: list[Command] = []
        while self._inbox:
            commands.append(self._inbox.popleft())
        wishes: list[WishOf] = []  # after the commands: no Drop may be heard before a wish that came first
        while self._wishes:  # item by item: others write meanwhile
            (session, epoch), wish = self._wishes.popitem()
            wishes.append(WishOf(session=session, epoch=epoch, wish=wish))
        passes, self._passes = tuple(self._passes), []
        decodes, self._decodes_ms = tuple(self._decodes_ms), []
        return News(
            commands=tuple(commands),
            wishes=tuple(wishes),
            passes=passes,
            decodes_ms=decodes,
            stopping=self._stop,
        )


def _for_others(news: News) -> News:
    """What ranks above 0 are told: the state of a session that comes, each has got by itself."""
    commands = (
        AdoptShare(migration_id=command.migration_id, codec=command.codec)
        if isinstance(command, Adopt)
        else command
        for command in news.commands
    )
    return replace(news, commands=tuple(commands))
