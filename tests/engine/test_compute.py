"""The chunk loop, driven step by step with a small random model."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch
from torch import Tensor

from engine.boundary import MAX_INBOX, InboxFull
from engine.compute import RETRY_MEMORY_PASSES
from engine.compute_messages import ComputeDied, Drop, InputsTaken, PartMade
from engine.cost_table import CostTable
from engine.planner import Batch, ReadyRow
from engine.ranks import RanksLost
from engine.session_state import Stage
from scheduler.messages import ControlInput, PromptInput, ResetInput, Rung, SessionId
from tests.engine.harness import BATCHING_COSTS, BATCHING_PAYS, Bench

TOLERANCE = 2e-5
"""float32 on CPUs: a GEMM of more rows may add in another order."""


def latents_of(bench: Bench, session: SessionId) -> list[Tensor]:
    """Clean latents of the session's chunks, in order: decodes happen in the order of first parts."""
    decoded = [event.session for event in bench.events if isinstance(event, PartMade)]
    return [bench.model.latents[i] for i, name in enumerate(decoded) if name == session]


def alone(text: str, seed: int, chunks: int) -> list[Tensor]:
    """Latents of a session that has the engine for itself."""
    bench = Bench()
    bench.chunks(bench.open("s_alone", text=text, seed=seed), chunks)
    return bench.model.latents


def test_latents_are_equal_alone_and_coalesced_with_others_at_other_steps() -> None:
    """A session's latents do not depend on who shares its passes, beyond the order of float additions."""
    bench = Bench(costs=BATCHING_PAYS)
    first = bench.open("s_a", text="a red ball moving left", seed=11)
    bench.step(7)
    second = bench.open("s_b", text="a blue square", seed=12)
    bench.step(11)
    third = bench.open("s_c", text="two green rings on white", seed=13)
    bench.chunks(third, 6)
    sigmas = {tuple(batch.sigma[:, 0].tolist()) for batch in bench.model.batches if len(batch.rows) == 3}
    starts = {tuple(row.frame_start for row in b.rows) for b in bench.model.batches if len(b.rows) == 3}
    assert any(len(set(levels)) == 3 for levels in sigmas), "no batch mixed three steps"
    assert any(len(set(frames)) == 3 for frames in starts), "no batch mixed three chunk indices"
    texts = {first: ("a red ball moving left", 11), second: ("a blue square", 12)}
    texts[third] = ("two green rings on white", 13)
    for session, (text, seed) in texts.items():
        shared = latents_of(bench, session)
        assert len(shared) >= 6
        for ours, theirs in zip(shared, alone(text, seed, len(shared)), strict=True):
            assert torch.allclose(ours, theirs, rtol=0, atol=TOLERANCE)


def test_latents_are_bit_equal_when_passes_are_only_interleaved() -> None:
    """With batches of one, sharing the engine changes no bit."""
    bench = Bench(costs=BATCHING_COSTS)
    a, b = bench.open("s_a", seed=11), bench.open("s_b", seed=12)
    bench.chunks(b, 5)
    for session, seed in ((a, 11), (b, 12)):
        shared = latents_of(bench, session)
        pairs = zip(shared, alone("a red ball", seed, len(shared)), strict=True)
        assert all(torch.equal(ours, theirs) for ours, theirs in pairs)


def test_chunks_are_contiguous_with_pts_from_the_frame_index() -> None:
    """seq and frames count on from where the session was opened."""
    bench = Bench()
    a = bench.open("s_a", seq=3)
    bench.chunks(a, 6)
    frames = bench.model.spec.chunk_frames
    assert [(p.seq, p.frame, p.chunk_frames) for p in bench.parts(a)] == [
        (seq, seq * frames, frames) for seq in (3, 4, 5)
    ]


def test_a_chunk_at_two_rungs_is_the_same_frames_twice() -> None:
    """From the chunk on that is made after somebody chose it; the copy first."""
    bench = Bench()
    a = bench.open("s_a")
    bench.step(len(bench.model.spec.first_sigmas) + 1)
    bench.choose(a, Rung.FULL, Rung.LOW)
    bench.chunks(a, 3)
    frames = bench.model.spec.chunk_frames
    (first, *_) = parts = [(part.seq, part.encoded.rung, part.frame) for part in bench.parts(a)]
    assert first == (0, None, 0)
    assert parts[1:] == [(seq, rung, seq * frames) for seq in (1, 2) for rung in (Rung.LOW, Rung.FULL)]


def test_frames_leave_before_the_clean_pass() -> None:
    """The part is emitted with the last denoising pass, not with the pass that writes the final K/V."""
    bench = Bench()
    a = bench.open("s_a")
    bench.step(len(bench.model.spec.first_sigmas))
    assert len(bench.model.latents) == 1
    bench.step(1)
    assert bench.model.batches[-1].sigma.tolist() == [[0.0] * bench.model.spec.chunk_latent_frames]
    assert torch.equal(bench.model.batches[-1].x[0], bench.model.latents[0])
    bench.drop(a)


def test_no_checkpoint_is_made_while_none_is_taken() -> None:
    """Not even on the device: its place has refused one."""
    for takes, made in ((True, [1, 2]), (False, [])):
        bench = Bench(takes_checkpoints=takes)
        a = bench.open("s_a")
        bench.chunks(a, 2)
        assert sorted(bench.checkpoints(a)) == made


class FixedCosts(CostTable):
    """Costs that nothing observed changes."""

    def observed(self, rows: int, bucket: int, measured_ms: float) -> CostTable:
        return self


def test_compute_time_is_shared_by_who_shares_a_pass() -> None:
    """What chunks cost adds up to what the passes cost, but for those whose chunk is not yet sent."""
    bench = Bench(costs=FixedCosts.flat(1.0, 1.2))
    a = bench.open("s_a")
    bench.step(2)
    b = bench.open("s_b", seed=2)
    bench.chunks(b, 4)
    rows = [len(batch.rows) for batch in bench.model.batches]
    assert set(rows) == {1, 2}
    sent_ms = sum(part.engine_ms for session in (a, b) for part in bench.parts(session))
    unsent_ms = sum(resident.used_ms for resident in bench.loop._residents.in_slots())
    assert sent_ms + unsent_ms == pytest.approx(sum((1.0, 1.2)[n - 1] for n in rows))
    assert min(part.engine_ms for part in bench.parts(a)) > 1.0


def test_a_prompt_applies_at_the_next_boundary_and_raises_rev() -> None:
    """The chunk in work keeps its prompt; the next one shows the new and says so."""
    bench = Bench()
    a = bench.open("s_a")
    bench.step(2)
    bench.feed(a, PromptInput(text="a blue square", id="p"))
    bench.chunks(a, 3)
    parts = bench.parts(a)
    assert [part.rev for part in parts] == [0, 1, 1]
    assert [[applied.id for applied in part.applied] for part in parts] == [[None], ["p"], []]
    assert torch.equal(latents_of(bench, a)[0], alone("a red ball", 1, 1)[0])
    assert not torch.equal(latents_of(bench, a)[1], alone("a red ball", 1, 2)[1])


def test_a_cut_gives_the_new_prompt_at_once_and_a_blend_by_steps() -> None:
    """A blend over two chunks shows half the way, then exactly the target."""
    cut, blend = Bench(), Bench()
    seen: list[list[Tensor]] = []
    for bench, transition in ((cut, "cut"), (blend, "blend")):
        a = bench.open("s_a")
        bench.step(2)
        bench.feed(a, PromptInput(text="a blue square", transition=transition, blend_chunks=2))  # type: ignore[arg-type]
        shown = []
        for chunk in (1, 2, 3):
            while bench.made(a) < chunk:
                bench.step(1)
            shown.append(next(iter(bench.loop.states())).embeds)
        seen.append([embeds for embeds in shown if embeds is not None])
        bench.encoders.close()
    old, new = cut.model.encode_prompts(["a red ball", "a blue square"])
    for embeds, expected in zip(seen[0], (old, new, new), strict=True):
        assert torch.equal(embeds[0], expected)
    for embeds, expected in zip(seen[1], (old, old.lerp(new, 0.5), new), strict=True):
        assert torch.equal(embeds[0], expected)


def test_the_prompt_kv_in_the_slot_follows_the_prompt() -> None:
    """What the passes attend to is the K/V of the prompt in force, in the session's own slot only."""
    bench = Bench()
    a, b = bench.open("s_a"), bench.open("s_b", text="a green star")
    bench.step(1)
    bench.feed(a, PromptInput(text="a blue square"))
    while bench.made(a) < 2:
        bench.step(1)
    expected = bench.model.prompt_kv(bench.model.encode_prompts(["a blue square", "a green star"]))
    slots = {state.session: state.slot for state in bench.loop.states()}
    assert torch.equal(bench.pool.prompt_kv[slots[a]], expected[0])
    assert torch.equal(bench.pool.prompt_kv[slots[b]], expected[1])
    bench.encoders.close()


def test_a_reset_starts_the_picture_over_and_the_count_goes_on() -> None:
    """After a reset the latents equal those of a new session; seq, pts and rev continue."""
    bench = Bench()
    a = bench.open("s_a", seed=5)
    bench.step(2)
    bench.feed(a, ResetInput(id="r"))
    bench.chunks(a, 3)
    fresh = alone("a red ball", 5, 2)
    latents = latents_of(bench, a)
    assert torch.equal(latents[1], fresh[0]) and torch.equal(latents[2], fresh[1])
    assert [(part.seq, part.rev) for part in bench.parts(a)] == [(0, 0), (1, 1), (2, 1)]
    assert [part.frame for part in bench.parts(a)] == [n * bench.model.spec.chunk_frames for n in range(3)]


def test_a_reset_with_a_seed_changes_the_noise() -> None:
    """The picture after it is that of a new session with the new seed."""
    bench = Bench()
    a = bench.open("s_a", seed=5)
    bench.step(2)
    bench.feed(a, ResetInput(seed=6))
    bench.chunks(a, 2)
    assert torch.equal(latents_of(bench, a)[1], alone("a red ball", 6, 1)[0])


def test_a_reset_restarts_the_decoder() -> None:
    """The frames after a reset equal those of a new session, so no decoder state is left over."""
    bench = Bench()
    a = bench.open("s_a", seed=5)
    bench.step(2)
    bench.feed(a, ResetInput())
    bench.chunks(a, 3)
    fresh = Bench()
    fresh.chunks(fresh.open("s_alone", seed=5), 2)
    assert [torch.equal(bench.model.frames[1 + n], fresh.model.frames[n]) for n in (0, 1)] == [True, True]


def test_a_reset_restarts_the_encoder() -> None:
    """A chunk after a reset has the very bytes of the start: rate control remembers nothing of the past."""
    bench = Bench()
    a = bench.open("s_a", seed=5)
    while bench.made(a) < 3:
        bench.step(1)
    bench.feed(a, ResetInput())
    bench.chunks(a, 6)
    first = next(n for n, part in enumerate(bench.parts(a)) if part.rev == 1)
    payloads = [part.encoded.payload for part in bench.parts(a)]
    assert payloads[first : first + 2] == payloads[:2]


def test_an_order_of_inputs_is_taken_whole_at_one_boundary() -> None:
    """Inputs that wait together become one change, each with its own rev, and are counted."""
    bench = Bench()
    a = bench.open("s_a")
    bench.step(1)
    bench.feed(a, PromptInput(text="x", id="1"), ResetInput(id="2"), PromptInput(text="a star", id="3"))
    bench.chunks(a, 2)
    assert [(item.id, item.rev) for item in bench.parts(a)[1].applied] == [("1", 1), ("2", 2), ("3", 3)]
    assert [event.count for event in bench.events if isinstance(event, InputsTaken)] == [1, 3]


def test_out_of_memory_halves_the_batch_and_nobody_is_lost() -> None:
    """Four rows do not fit, two do; every session gets its chunks, equal to those it gets alone."""
    bench = Bench()
    bench.model.max_rows = 2
    sessions = [bench.open(f"s_{n}", seed=n) for n in range(4)]
    bench.chunks(sessions[-1], 2)
    assert bench.failed() == []
    assert {len(batch.rows) for batch in bench.model.batches} == {4, 2}
    for n, session in enumerate(sessions):
        shared = latents_of(bench, session)
        for ours, theirs in zip(shared, alone("a red ball", n, len(shared)), strict=True):
            assert torch.allclose(ours, theirs, rtol=0, atol=TOLERANCE)


def test_after_running_out_of_memory_batches_stay_small_for_a_while() -> None:
    """Not every pass is tried in vain; after some hundred the larger batch gets its chance again."""
    bench = Bench()
    bench.model.max_rows = 2
    for n in range(4):
        bench.open(f"s_{n}", seed=n)
    bench.step(RETRY_MEMORY_PASSES)
    assert [len(batch.rows) for batch in bench.model.batches].count(4) == 1
    bench.model.max_rows = None
    bench.loop.costs = BATCHING_PAYS  # this clock stands still, so what was observed means nothing
    bench.step(3)
    assert len(bench.model.batches[-1].rows) == 4
    bench.encoders.close()


def test_a_new_session_runs_in_the_very_next_pass() -> None:
    """Once: before sessions whose deadlines are earlier, also where nothing coalesces; not for its second."""
    bench = Bench(costs=BATCHING_COSTS)
    old = [bench.open(f"s_{n}") for n in range(2)]
    bench.step(30)
    new = bench.open("s_new")
    bench.clients[new].since_ms = 90_000.0  # its deadline is the latest of all
    bench.allow(new, 0)
    bench.step(2)
    slots = {state.session: state.slot for state in bench.loop.states()}
    assert bench.model.batches[-2].rows[0].slot == slots[new]
    assert bench.model.batches[-1].rows[0].slot in {slots[s] for s in old}
    bench.encoders.close()


def test_the_clean_pass_waits_for_frames_that_are_needed_earlier() -> None:
    """It has the deadline of its session's next chunk; and it comes before that chunk's first step."""
    bench = Bench(costs=BATCHING_COSTS)
    a = bench.open("s_a")
    bench.step(len(bench.model.spec.first_sigmas))
    b = bench.open("s_b")
    bench.now_ms = 10.0
    bench.step(1)
    states = {state.session: state for state in bench.loop.states()}
    assert states[a].stage is Stage.CLEAN and states[b].step == 1
    while states[a].index == 0:
        bench.step(1)
    assert states[b].seq == 1, "the clean pass of one ran before the other's frames were there"
    bench.encoders.close()


def test_the_planner_is_told_how_many_passes_a_chunk_takes() -> None:
    """All of them before it is begun, too, whatever the chunk before it took."""
    bench, told = Bench(), list[int]()
    inner = bench.loop._plan

    def watched(ready: Iterable[ReadyRow], costs: CostTable, now_ms: float) -> Batch:
        batch = inner(ready, costs, now_ms)
        told.extend(row.passes_left for row in batch.rows)
        return batch

    bench.loop._plan = watched
    bench.chunks(bench.open("s_a"), 3)
    spec = bench.model.spec
    first, later = (list(range(len(sigmas), 0, -1)) for sigmas in (spec.first_sigmas, spec.sigmas))
    assert told == [*first, later[0] + 1, *later, later[0] + 1, *later]


def test_a_session_that_breaks_a_pass_is_closed_and_the_others_go_on() -> None:
    """The row at fault is found, its slot is free again."""
    bench = Bench()
    bad, good = bench.open("s_bad"), bench.open("s_good")
    bench.step(3)
    bench.model.poisoned_slot = next(s.slot for s in bench.loop.states() if s.session == bad)
    bench.chunks(good, 2)
    assert bench.failed() == [bad]
    assert [part.seq for part in bench.parts(good)] == [0, 1]
    assert bench.pool.num_free == bench.slots - 1
    bench.pool.check_integrity()


def test_a_failure_of_one_pass_is_repeated_row_by_row() -> None:
    """An error that does not come back costs nobody their session."""
    bench = Bench()
    a, b = bench.open("s_a"), bench.open("s_b")
    bench.step(1)
    bench.model.errors.append(RuntimeError("a passing trouble"))
    bench.chunks(b, 2)
    assert bench.failed() == []
    assert len(bench.parts(a)) >= 1


def test_latents_that_are_not_finite_close_the_session() -> None:
    """A broken picture is not sent."""
    bench = Bench()
    bad, good = bench.open("s_bad"), bench.open("s_good")
    bench.step(1)
    state = next(s for s in bench.loop.states() if s.session == bad)
    assert state.x is not None
    state.x = torch.full_like(state.x, float("nan"))
    bench.chunks(good, 2)
    assert bench.failed() == [bad] and bench.parts(bad) == []


def test_a_rank_that_fails_behind_a_pass_ends_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others have not: they would run other passes than this one, and mix up what they exchange."""
    bench = Bench(costs=BATCHING_COSTS)
    bench.open("s_a")
    bench.loop._is_alone = False

    def fail(*_: object) -> bool:
        raise torch.OutOfMemoryError("planted")

    monkeypatch.setattr(bench.loop._stepper, "advance", fail)
    bench.loop.run()
    (died,) = [event for event in bench.events if isinstance(event, ComputeDied)]
    assert isinstance(died.error, RanksLost) and bench.failed() == []


def test_a_session_without_a_prompt_in_its_log_fails_alone() -> None:
    """A log that was lost is that session's end, not the engine's."""
    bench = Bench()
    a, b = bench.open("s_a"), bench.open("s_b", text=None)
    bench.chunks(a, 2)
    assert bench.failed() == [b]
    assert [part.seq for part in bench.parts(a)] == [0, 1]


def test_a_session_without_a_slot_waits_for_one() -> None:
    """It is opened with all its inputs when another one ends."""
    bench = Bench(slots=2)
    first, second, third = (bench.open(f"s_{n}") for n in range(3))
    bench.feed(third, PromptInput(text="a blue square"))
    bench.step(3)
    assert bench.failed() == [] and {s.session for s in bench.loop.states()} == {first, second}
    bench.drop(first)
    bench.chunks(third, 1)
    assert bench.parts(third)[0].rev == 1


def test_a_dropped_session_frees_its_slot_for_the_next() -> None:
    """Drop and open in one inbox, in order; an old epoch's drop does not touch the new one."""
    bench = Bench(slots=1)
    a = bench.open("s_a")
    bench.step(3)
    bench.drop(a)
    again = bench.open("s_a", epoch=2)
    bench.loop.submit(Drop(session=a, epoch=1))
    bench.chunks(again, 2)
    assert bench.failed() == []
    assert [(part.epoch, part.seq) for part in bench.parts(again)] == [(2, 0), (2, 1)]


def test_a_paused_session_finishes_its_chunk_and_starts_no_other() -> None:
    """Pause takes effect at the chunk boundary."""
    bench = Bench()
    a, b = bench.open("s_a"), bench.open("s_b")
    bench.step(2)
    bench.run(a, False)
    bench.chunks(b, 4)
    assert [part.seq for part in bench.parts(a)] == [0]


def test_stop_finishes_the_chunks_in_work() -> None:
    """What was begun leaves; nothing else begins, and the loop ends."""
    bench = Bench()
    a = bench.open("s_a")
    bench.step(2)
    bench.loop.stop()
    bench.loop.run()
    bench.encoders.close()
    assert [part.seq for part in bench.parts(a)] == [0]


def test_lateness_is_not_shortened_by_acks() -> None:
    """A chunk that waits for its turn stays due since it could first start."""
    bench = Bench(costs=BATCHING_COSTS)
    a = bench.open("s_a")
    bench.now_ms = 100.0
    bench.step(1)
    assert next(iter(bench.loop.states())).work is not None
    b = bench.open("s_b")
    bench.now_ms = 150.0
    bench.step(1)
    bench.now_ms = 5_000.0
    bench.chunks(b, 1)
    assert bench.parts(b)[0].due_ms <= 150.0
    assert bench.parts(a)[0].due_ms <= 100.0


def test_the_inbox_is_bounded() -> None:
    """More commands than any correct caller has are refused."""
    bench = Bench()
    with pytest.raises(InboxFull):
        for _ in range(MAX_INBOX + 1):
            bench.drop_unknown()


def test_a_broken_encoder_closes_its_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """An encoding error is reported as the session's failure."""
    bench = Bench()
    a = bench.open("s_a")
    bench.step(1)
    resident = bench.loop._residents[a]
    monkeypatch.setattr(resident.lane.encoder, "encode", None)
    bench.step(len(bench.model.spec.first_sigmas))
    bench.encoders.close()
    bench.step(1)
    assert bench.failed() == [a]


def test_held_keys_push_the_next_chunk_and_a_tap_one_frame() -> None:
    """A key is held until it is let go; press and release between two boundaries still show for a frame."""
    bench = Bench()
    a = bench.open("s_a")
    inputs = {
        1: (ControlInput(keys=("ArrowRight",)),),
        3: (ControlInput(), ControlInput(axes={"y": -0.5}), ControlInput()),
    }
    for chunk in (1, 2, 3, 4):
        while bench.made(a) < chunk:
            bench.step(1)
        bench.feed(a, *inputs.get(chunk, ()))
    bench.encoders.close()
    pushes: dict[int, list[list[float]]] = {}
    for batch in bench.model.batches:
        (row,) = batch.rows
        assert batch.actions is not None
        pushes[row.frame_start // 3] = batch.actions[0].tolist()
    right, still, up = [1.0, 0.0], [0.0, 0.0], [0.0, -0.5]
    assert [pushes[chunk] for chunk in range(4)] == [
        [still] * 3,
        [right] * 3,
        [right] * 3,
        [still, up, still],
    ]
