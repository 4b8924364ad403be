"""Does a session hold a slot? The I/O side's part: what Redis counts, what the compute thread is told.

`hosted.residence` is what Redis counts, or is about to be told. A session gives its slot up when the compute
thread has taken its state out, and takes one only after Redis has granted it, so that engine and leader never
give one slot to two sessions.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol, assert_never

from engine.compute_messages import Command, Offload, Open, Resided, Restore
from engine.hosted import Hosted, Place
from engine.lifecycle import Verdict
from scheduler.messages import Residence

__all__ = ["Admission", "Residency"]

_log = logging.getLogger("turboserve.engine.residency")


class Admission(Protocol):
    """What needs Redis. Both return at once; the answers come to the host."""

    def ask_slot(self, hosted: Hosted) -> None:
        """Ask for a slot; answered by `Host.admit`, now or when the leader has made room."""

    def load(self, hosted: Hosted) -> None:
        """Read the session's past; answered by `Host.load`."""

    def changed(self) -> None:
        """Publish soon."""


class Residency:
    """Belongs to the event loop."""

    def __init__(self, submit: Callable[[Command], None], admission: Admission) -> None:
        self._submit, self._admission = submit, admission

    def settle(self, hosted: Hosted, verdict: Verdict) -> None:
        """Act on what is wanted of a session now."""
        match hosted.residence:
            case Residence.RESIDENT:
                if verdict.active:
                    self._use_slot(hosted)
                elif verdict.offload:
                    self._leave(hosted)
            case Residence.LEAVING:
                if verdict.active:
                    self._submit(Restore(session=hosted.id, epoch=hosted.epoch))
                    self._move(hosted, Residence.RESIDENT)
            case Residence.OFFLOADED | Residence.STORED:
                if verdict.active and not hosted.asking:
                    hosted.asking = True
                    self._admission.ask_slot(hosted)
                hosted.asking = hosted.asking and verdict.active
            case _:
                assert_never(hosted.residence)

    def admit(self, hosted: Hosted) -> None:
        """A slot was granted."""
        before, is_wanted = hosted.residence, hosted.asking
        hosted.asking = False
        if before in (Residence.RESIDENT, Residence.LEAVING):
            return
        if not is_wanted:  # idle again; where it has said so since the grant, the slot may be another's
            hosted.published = None
            self._admission.changed()
            return
        self._move(hosted, Residence.RESIDENT)
        if before is Residence.OFFLOADED:
            self._submit(Restore(session=hosted.id, epoch=hosted.epoch))
        else:
            self._use_slot(hosted)

    def receive(self, hosted: Hosted, resided: Resided) -> None:
        """The compute thread says where the state is."""
        residence = resided.residence
        if residence is Residence.STORED:
            hosted.at_compute = False
            if resided.seq is not None:
                hosted.goes_on = Place(resided.seq, resided.frame)
            if hosted.residence is Residence.RESIDENT:
                self._use_slot(hosted)  # it was forgotten just before it was wanted again
            else:
                self._move(hosted, Residence.STORED)
        elif residence is Residence.OFFLOADED and hosted.residence is Residence.LEAVING:
            self._move(hosted, Residence.OFFLOADED)
        # Else it is where it is wanted, or on its way there.

    def _use_slot(self, hosted: Hosted) -> None:
        """Have the session's state in its slot."""
        if hosted.at_compute:
            return
        if hosted.opening is None:
            if not hosted.loading:
                hosted.loading = True
                self._admission.load(hosted)
            return
        if hosted.goes_on is None:
            return  # the first subscriber says where
        opening, hosted.opening, hosted.at_compute = hosted.opening, None, True
        self._submit(
            Open(
                session=hosted.id,
                epoch=hosted.epoch,
                steering=opening.steering,
                codec=hosted.record.codec,
                last_applied=opening.last_applied,
                recorded=opening.recorded,
                pending=tuple(opening.pending),
                seq=hosted.goes_on.seq,
                frame=hosted.goes_on.frame,
                checkpoint=opening.checkpoint,
            )
        )

    def _leave(self, hosted: Hosted) -> None:
        if hosted.at_compute:
            self._submit(Offload(session=hosted.id, epoch=hosted.epoch))
            self._move(hosted, Residence.LEAVING)
        else:  # its state never came here
            self._move(hosted, Residence.STORED)

    def _move(self, hosted: Hosted, residence: Residence) -> None:
        _log.info("%s is %s", hosted.id, residence.value)
        hosted.residence = residence
        self._admission.changed()
