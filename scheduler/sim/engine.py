"""The chunk loop of an engine and the player at its other end, without a clock. Pure.

Passes are what an engine runs, but as long as the same rows run together they are all alike, so only the
moments count at which that changes: a chunk becomes due, a chunk is done. In between time is arithmetic. Rows
start in the order of their players' running dry, first chunks before all others, at pass boundaries, up to
the batch that does most work per millisecond, and then run their chunk to its end. Where a pass costs more
with a fuller window, a young session beside an old one may do less work per millisecond than alone: then the
batch is chosen anew at each boundary, and who is less urgent pauses. (The real planner also keeps batches
smaller where somebody would be late by them.) A chunk is there after its last pass, its decode and its
encoding; decodes follow one another. A clean pass, if the profile has one, runs next: as a row of its own, or
before the session's next chunk where that is due already. Times are float milliseconds.
"""

from __future__ import annotations

from array import array
from heapq import heapify, heappop, heappush
from typing import Any, Final, TypeAlias

from scheduler.sim.profile import MIN_GAIN, Profile
from scheduler.sim.record import SimRecord

__all__ = ["AT_REST", "DUE", "RUNNING", "WAITING", "Agenda", "Figures", "SimEngine", "SimSession"]

AT_REST: Final = 0
"""No chunk is wanted yet."""
WAITING: Final = 1
"""A chunk is due, and no engine can begin it."""
DUE: Final = 2
"""It is in its engine's line."""
RUNNING: Final = 3

FOREVER: Final = float("inf")
FIRST: Final = float("-inf")
EPSILON_MS: Final = 1e-6


class Agenda:
    """What happens next: (time, serial, kind, subject, token). Equal times in the order of their making."""

    __slots__ = ("heap", "serial")

    def __init__(self) -> None:
        self.heap: list[tuple[float, int, int, Any, int]] = []
        self.serial = 0

    def add(self, at_ms: float, kind: int, subject: Any = None, token: int = 0) -> None:
        self.serial = serial = self.serial + 1
        heappush(self.heap, (at_ms, serial, kind, subject, token))


CHUNK_DUE: Final = 0
BOUNDARY: Final = 1

Row: TypeAlias = "tuple[int, int, SimSession | None, int]"
"""(value of `done` at its end, serial, session, chunks in its window). None: a clean pass."""


class Figures:
    """What is measured about chunks."""

    __slots__ = ("abandoned", "delivered", "due", "latency_ms", "ttfc_ms", "worst_abandoned_ms")

    def __init__(self) -> None:
        self.latency_ms = array("d")
        """Of each delivered chunk, from due to its last byte."""
        self.ttfc_ms = array("d")
        self.due = 0
        """Chunks that became due."""
        self.delivered = 0
        self.abandoned = 0
        """Chunks due whose session became idle or left before they were begun or done."""
        self.worst_abandoned_ms = 0.0
        """Longest that one of these had waited."""


class SimSession:
    """One session: the state of its chunk, and of its player."""

    __slots__ = (
        "active",
        "came_ms",
        "due_ms",
        "dry_ms",
        "engine",
        "extra_passes",
        "got_ms",
        "held_ms",
        "home",
        "limit_ms",
        "number",
        "paused_ms",
        "play_ms",
        "played_ms",
        "record",
        "resting",
        "restoring",
        "stage",
        "stalled_ms",
        "token",
        "turn",
        "vain_ms",
        "wants_rest",
        "window",
    )

    def __init__(self, number: int, record: SimRecord, now_ms: float, profile: Profile) -> None:
        self.number = number
        self.record = record
        self.home: SimEngine | None = None
        """Where it is placed."""
        self.engine: SimEngine | None = None
        """Where its chunks can be made now: None unless its state is in a slot of its home, not frozen."""
        self.turn = 0
        """Of the control event that counts: it grows with each."""
        self.restoring = False
        """Is its state on its way back into its slot?"""
        self.resting = False
        """Frozen by a migration."""
        self.wants_rest = False
        """A migration, or the way out of its slot, waits for the end of its chunk."""
        self.active = True
        self.stage = AT_REST
        self.token = 0
        """Of the CHUNK_DUE that counts."""
        self.extra_passes = 0
        """Before its next chunk is done, besides those of every chunk."""
        self.came_ms = now_ms
        """When it came, later by the time that it was paused before its first chunk."""
        self.paused_ms = now_ms
        """When it was last paused."""
        self.due_ms = now_ms
        self.dry_ms: float | None = None
        """When its player has shown all that was delivered; None before the first chunk."""
        self.held_ms = 0.0
        """Video that the player holds while it is paused."""
        self.play_ms = profile.play_ms
        self.limit_ms = max(profile.lead_ms, profile.play_ms)
        self.got_ms = 0.0
        """Video that was delivered to it."""
        self.played_ms = 0.0
        """What of that was shown, once it has left."""
        self.stalled_ms = 0.0
        self.vain_ms = 0.0
        """For how long it had wanted a first chunk, pauses left out, when it left without one."""
        self.window = 0
        """Chunks in its window."""

    def slack_ms(self, now_ms: float) -> float:
        """Video that its player holds."""
        if not self.active:
            return self.held_ms
        return 0.0 if self.dry_ms is None else max(0.0, self.dry_ms - now_ms)

    def pause(self, now_ms: float, figures: Figures) -> None:
        """Its user stops watching. A chunk that runs is finished; one that waits is not wanted any more."""
        dry_ms = self.dry_ms
        if dry_ms is not None:
            self.stalled_ms += max(0.0, now_ms - dry_ms)
            self.held_ms = max(0.0, dry_ms - now_ms)
        self.active = False
        self.paused_ms = now_ms
        self.drop_chunk(now_ms, figures, also_running=False)

    def resume(self, now_ms: float) -> float:
        """Its user watches again: when its next chunk is due, unless one runs."""
        self.active = True
        if self.dry_ms is None:
            self.came_ms += now_ms - self.paused_ms
            return now_ms
        self.dry_ms = now_ms + self.held_ms
        return max(now_ms, self.dry_ms - self.limit_ms)

    def drop_chunk(self, now_ms: float, figures: Figures, *, also_running: bool) -> None:
        """Its due chunk is not wanted any more."""
        self.token += 1
        if self.stage == AT_REST or (self.stage == RUNNING and not also_running):
            return
        if self.engine is not None:
            self.engine.remove(self, now_ms)
        self.stage = AT_REST
        figures.abandoned += 1
        figures.worst_abandoned_ms = max(figures.worst_abandoned_ms, now_ms - self.due_ms)


class SimEngine:
    """One engine's chunk loop. Its owner hands it every BOUNDARY whose time is still `next_ms`."""

    __slots__ = (
        "agenda",
        "anchor_ms",
        "batch",
        "chunk_passes",
        "clean_passes",
        "decode_ms",
        "done",
        "encode_ms",
        "figures",
        "first_passes",
        "heard_ms",
        "holders",
        "id",
        "is_choosy",
        "is_dead",
        "next_ms",
        "paused",
        "profile",
        "rested",
        "running",
        "serial",
        "started_ms",
        "stopped_ms",
        "t_ms",
        "waiting",
        "windows_ms",
    )

    def __init__(self, id: Any, profile: Profile, agenda: Agenda, figures: Figures, now_ms: float) -> None:
        self.id = id
        self.profile = profile
        self.agenda = agenda
        self.figures = figures
        self.started_ms = now_ms
        self.heard_ms = round(now_ms)
        """Time of its last heartbeat."""
        self.stopped_ms: float | None = None
        self.is_dead = False
        self.windows_ms = profile.windows_ms
        self.batch = len(self.windows_ms[-1]) - 1
        self.is_choosy = len(self.windows_ms) > 1
        """Is the batch chosen anew at each boundary? Where all windows cost alike, it is all that fit."""
        self.decode_ms, self.encode_ms = profile.costs.decode_ms, profile.encode_ms
        self.clean_passes = clean = profile.clean_passes
        self.chunk_passes = profile.costs.chunk_passes - clean
        self.first_passes = profile.costs.first_chunk_passes - clean
        self.running: list[Row] = []
        """A heap."""
        self.paused: list[Row] = []
        """Begun and left out since; the passes that are left instead of their end."""
        self.waiting: list[tuple[float, int, SimSession]] = []
        """(when its player runs dry, serial, session), a heap."""
        self.holders: set[SimSession] = set()
        """Who holds one of its slots, or is about to."""
        self.rested: list[SimSession] = []
        """Whose chunk ended at the last boundary, and who were to rest then."""
        self.serial = 0
        self.done = 0
        """Passes that were run up to `anchor_ms`."""
        self.anchor_ms = now_ms
        self.t_ms = 0.0
        """Of the pass that runs, and of those after it as long as nothing changes."""
        self.next_ms = FOREVER
        """The boundary at which something changes."""

    def submit(self, session: SimSession, now_ms: float) -> None:
        """Its chunk is due and can be begun here."""
        session.stage = DUE
        self.serial = serial = self.serial + 1
        dry_ms = session.dry_ms
        heappush(self.waiting, (FIRST if dry_ms is None else dry_ms, serial, session))
        if self.is_dead:
            return
        if self.next_ms == FOREVER:
            # Idle, or the last decodes of a batch still run.
            self._wake(max(now_ms, self.anchor_ms))
        elif self.is_choosy or len(self.running) < self.batch:
            self._wake(self._boundary_ms(now_ms))

    def remove(self, session: SimSession, now_ms: float) -> None:
        """Forget its chunk. The pass that runs goes on as it is."""
        if session.stage == DUE:
            self.waiting = [entry for entry in self.waiting if entry[2] is not session]
            heapify(self.waiting)
        elif session.stage == RUNNING:
            self.running = [entry for entry in self.running if entry[2] is not session]
            heapify(self.running)
            self.paused = [entry for entry in self.paused if entry[2] is not session]
            if not self.is_dead:
                self._wake(self._boundary_ms(now_ms))

    def die(self) -> None:
        """Nothing happens here any more."""
        self.is_dead = True
        self.next_ms = FOREVER

    def boundary(self, now_ms: float) -> None:
        """A pass ends, and what runs changes."""
        if self.t_ms:
            self.done += round((now_ms - self.anchor_ms) / self.t_ms)
        self.anchor_ms = now_ms
        running, waiting, done = self.running, self.waiting, self.done
        full = len(self.windows_ms) - 1
        while running and running[0][0] <= done:
            _, _, made, window = heappop(running)
            if made is not None:
                self.anchor_ms += self.decode_ms
                made.window = min(window + 1, full)
                self._deliver(made, self.anchor_ms + self.encode_ms)
                if self.clean_passes:
                    self._clean(made, window)
        while waiting and (self.is_choosy or len(running) < self.batch):
            session = heappop(waiting)[2]
            session.stage = RUNNING
            passes = self.chunk_passes if session.dry_ms is not None else self.first_passes
            if session.extra_passes:
                passes += session.extra_passes
                session.extra_passes = 0
            self.serial = serial = self.serial + 1
            heappush(running, (done + passes, serial, session, session.window))
        if self.is_choosy:
            running = self._choose()
        if running:
            widest = max([entry[3] for entry in running]) if full else 0
            self.t_ms = t_ms = self.windows_ms[widest][len(running)]
            self.next_ms = next_ms = self.anchor_ms + (running[0][0] - done) * t_ms
            self.agenda.add(next_ms, BOUNDARY, self)
        else:
            self.t_ms = 0.0
            self.next_ms = FOREVER

    def _choose(self) -> list[Row]:
        """Of the most urgent rows, so many run as do most work per millisecond; the others pause."""
        done = self.done
        ready = [(done + left, serial, session, window) for left, serial, session, window in self.paused]
        rows = sorted([*self.running, *ready], key=_urgency)
        windows_ms, alone_ms, widest = self.windows_ms, 0.0, 0
        size, best = 0, 0.0
        for number, (_, _, _, window) in enumerate(rows[: self.batch], start=1):
            alone_ms, widest = alone_ms + windows_ms[window][1], max(widest, window)
            gain = alone_ms / windows_ms[widest][number]
            if gain * (1.0 - MIN_GAIN) >= best:
                size, best = number, gain
        self.running = rows[:size]
        heapify(self.running)
        self.paused = [(end - done, serial, session, window) for end, serial, session, window in rows[size:]]
        return self.running

    def _clean(self, session: SimSession, window: int) -> None:
        """What is left to do of a chunk that was just delivered."""
        if session.stage == DUE:
            session.extra_passes += self.clean_passes
            return
        self.serial = serial = self.serial + 1
        heappush(self.running, (self.done + self.clean_passes, serial, None, window))

    def _boundary_ms(self, now_ms: float) -> float:
        """The end of the pass that runs now."""
        if now_ms <= self.anchor_ms or not self.t_ms:
            return max(now_ms, self.anchor_ms)
        passes = (now_ms - self.anchor_ms - EPSILON_MS) // self.t_ms + 1
        return self.anchor_ms + passes * self.t_ms

    def _wake(self, at_ms: float) -> None:
        if at_ms < self.next_ms:
            self.next_ms = at_ms
            self.agenda.add(at_ms, BOUNDARY, self)

    def _deliver(self, session: SimSession, at_ms: float) -> None:
        """Its chunk is there; its next one may be due."""
        figures = self.figures
        figures.delivered += 1
        figures.latency_ms.append(at_ms - session.due_ms)
        dry_ms, play_ms = session.dry_ms, session.play_ms
        session.got_ms += play_ms
        session.stage = AT_REST
        if session.wants_rest:
            self.rested.append(session)
        if dry_ms is None:
            waited_until_ms = at_ms if session.active else session.paused_ms
            figures.ttfc_ms.append(waited_until_ms - session.came_ms)
            dry_ms = at_ms
        if not session.active:
            session.held_ms += play_ms
            session.dry_ms = dry_ms
            return
        if at_ms > dry_ms:
            session.stalled_ms += at_ms - dry_ms
            dry_ms = at_ms
        session.dry_ms = dry_ms = dry_ms + play_ms
        due_ms = dry_ms - session.limit_ms
        if due_ms <= at_ms and not session.wants_rest:
            session.due_ms = at_ms
            session.stage = DUE
            figures.due += 1
            self.serial = serial = self.serial + 1
            heappush(self.waiting, (dry_ms, serial, session))
        else:
            self.agenda.add(max(due_ms, at_ms), CHUNK_DUE, session, session.token)


def _urgency(row: Row) -> tuple[float, int]:
    """First chunks before all others, then whose player runs dry first; clean passes are last."""
    _, serial, session, _ = row
    if session is None:
        return FOREVER, serial
    return FIRST if session.dry_ms is None else session.dry_ms, serial
