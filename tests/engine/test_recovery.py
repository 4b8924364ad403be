"""Where a session goes on, from what earlier owners left."""

from __future__ import annotations

from dataclasses import replace

import torch

from engine.models.shapes.model import TINY, ShapesModel
from engine.recovery import Past, plan_opening
from engine.state_format import ChunkInfo, ExportedState, ModelKey, StateHeader, StateScalars
from engine.steering import LogEntry, RecordedInput, Steering
from scheduler.messages import ControlInput, PromptInput, ResetInput
from scheduler.store import AppliedRecord, CheckpointPointer
from tests.engine.test_host import RECORD

SPEC = ShapesModel.random(0, config=TINY).spec
LOG = tuple(
    LogEntry(entry=f"{n}-0", message=message)
    for n, message in enumerate(
        (PromptInput(text="a"), PromptInput(text="b"), ResetInput(seed=9), PromptInput(text="c")), start=1
    )
)
APPLIED = tuple(
    AppliedRecord(entry=entry, rev=rev, seq=seq)
    for entry, rev, seq in (("1-0", 0, 0), ("2-0", 1, 3), ("3-0", 2, 5))
)
SCALARS = StateScalars(
    seq=3,
    frame=36,
    index=3,
    seed=7,
    text="a",
    rev=0,
    held=ControlInput(),
    last_applied="1-0",
    embeds=0,
    blend=None,
    history=(ChunkInfo(index=2, embeds=0),),
)
CHECKPOINT = ExportedState(
    header=StateHeader(
        model=ModelKey(name="shapes", weights_hash="", state_version=1),
        session=RECORD.id,
        epoch=1,
        scalars=SCALARS,
    ),
    buffers={"latents": torch.zeros(1)},
)
POINTER = CheckpointPointer(epoch=1, seq=3, last_applied="1-0", text="a", seed=7, rev=0, size=1)
PAST = Past(
    record=replace(RECORD, next_seq=6, last_applied="3-0"),
    log=LOG,
    applied=APPLIED,
    pointer=POINTER,
    checkpoint=CHECKPOINT,
)


def combine(shown: str, text: str) -> str:
    return text


def test_with_a_checkpoint_recorded_inputs_are_applied_where_they_were() -> None:
    """Those in the checkpoint not again, those after it at their chunks, the rest as new ones."""
    opening = plan_opening(PAST, combine, LOG)
    assert opening.recorded == (
        RecordedInput(seq=3, entry=LOG[1]),
        RecordedInput(seq=5, entry=LOG[2]),
    )
    assert opening.pending == [LOG[3]]
    assert opening.steering == Steering(text="a", seed=7, rev=0)
    assert (opening.last_applied, opening.earliest_seq) == ("1-0", 3)


def test_without_a_checkpoint_the_prompt_in_force_is_restored() -> None:
    """What was applied is not applied again; revision and seed go on."""
    opening = plan_opening(replace(PAST, pointer=None, checkpoint=None), combine, LOG)
    assert opening.steering == Steering(text="b", seed=9, rev=2)
    assert (opening.recorded, opening.pending, opening.earliest_seq) == ((), [LOG[3]], 0)


def test_when_the_bytes_are_gone_the_pointer_tells_the_prompt_of_the_trimmed_log() -> None:
    """The log begins after what was trimmed."""
    opening = plan_opening(replace(PAST, checkpoint=None, log=LOG[1:]), combine, LOG[1:])
    assert opening.steering == Steering(text="b", seed=9, rev=2)
    trimmed = replace(PAST, checkpoint=None, pointer=replace(POINTER, last_applied="3-0", text="b", rev=2))
    assert plan_opening(trimmed, combine, LOG[2:]).steering == Steering(text="b", seed=7, rev=2)


def test_an_input_whose_record_is_lost_is_applied_at_the_checkpoint() -> None:
    """It was applied somewhere after it: better too early than never."""
    opening = plan_opening(replace(PAST, applied=APPLIED[:1]), combine, LOG)
    assert [item.seq for item in opening.recorded] == [3, 3]
