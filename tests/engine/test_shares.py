"""What the other ranks of two engines hold of a migration that is called off; the rest is tested with real
ranks in `tests/faults/test_rank_migration.py`."""

from __future__ import annotations

import threading

import pytest

from engine.compute_messages import MoveShare, Reserved, Thaw, Unreserve
from engine.kv_pool import SlabPool
from engine.models.shapes.model import TINY, ShapesModel
from engine.pairs import PairLost, Pairs
from engine.shares import Shares
from scheduler.messages import EngineId, MigrateSession, ReceiveSession, SessionId
from tests.patience import PATIENCE_S

A, B = EngineId("e_0000000a"), EngineId("e_0000000b")
S1, ID, LIMIT_MS = SessionId("s_1"), "m_1", int(1000 * PATIENCE_S)


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("share ")]


@pytest.mark.parametrize("first", ["source", "target"])
def test_a_share_that_is_called_off_leaves_nothing(first: str) -> None:
    """No thread that waits and no report, whichever engine hears of it first."""
    model = ShapesModel.random(0, config=TINY)
    ends = [Pairs(engine, "127.0.0.1", model.device) for engine in (A, B)]
    pools = [SlabPool(model, slots=1, ranks=2) for _ in ends]
    source, target = (
        Shares(model, pool, engine=engine, host="127.0.0.1", rank=1)
        for pool, engine in zip(pools, (A, B), strict=True)
    )
    away = MigrateSession(
        session=S1, epoch=1, migration_id=ID, engine=B, address=ends[1].address, limit_ms=LIMIT_MS
    )
    here = ReceiveSession(session=S1, epoch=1, migration_id=ID, engine=A, takes_slot=True, limit_ms=LIMIT_MS)
    source.hear(MoveShare(order=away, meeting=ends[0].address))
    target.hear(MoveShare(order=here, meeting=ends[1].address))
    target.receive(Reserved(migration_id=ID, slot=pools[1].allocate()))
    reports = ends[0].reports(limit_s=PATIENCE_S)
    reports.wait(ID, 2, "met", limit_s=PATIENCE_S)
    assert len(threads()) == 2
    off = [(source, Thaw(session=S1, epoch=1)), (target, Unreserve(migration_id=ID))]
    for side, command in off if first == "source" else reversed(off):
        side.hear(command)
    for thread in threads():
        thread.join(PATIENCE_S)
    assert not threads()
    with pytest.raises(PairLost, match="does not say"):
        reports.wait(ID, 2, "ahead", limit_s=0.1)
    for pairs in ends:
        pairs.close()
