"""Every Redis key and every bound on what they hold. Pure.

All keys of a cluster share the literal hash tag `ts:{<cluster>}:`, so that one Lua script may touch them all.
The Lua side gets this same table (`scheduler/store/scripts.py` renders it), so no key is spelled twice.

    key                          type     holds
    term                         string   newest term of the leader lease; never falls
    lease                        hash     owner, term; expires with the lease
    desired                      hash     term, engines (JSON list): what provisioners reconcile
    settled                      string   there since engines that outlived a loss of this data have had the
                                          time to say so; without it a missing record means nothing
    memory                       hash     term, data: the policy's memory (JSON, ≤ MAX_MEMORY_BYTES)
    cluster                      hash     policy, budget, release_interval_ms, start_ms: of the leader
    models                       hash     model name → JSON of its newest ModelInfo; outlives the engines
    usage                        stream   field m: one JSON Usage of each closed session; bounded by MAX_USAGE
    decisions                    stream   field text: what the leader did and why; bounded by MAX_DECISIONS
    events                       stream   field m: one JSON Event; bounded by MAX_EVENTS
    sessions                     zset     sessions that are not closed → created_ms
    subject:<name>               set      sessions of one subject (of a token) that are not closed
    controlled:<name>            set      those of them that somebody controls
    session:<id>                 hash     a SessionRecord, plus left_ms, flight_* (in_flight), move_to and
                                          move_until_ms (an order), landed ("migration_id epoch", the newest
                                          committed one), placed_ms and strikes (engines in a row that crashed
                                          by themselves soon after it came); kept `retain_s` after close.
                                          metered_ms, used_* and epoch_*: what becomes its Usage
    session:<id>:inputs          stream   field m: one JSON Input; at most MAX_INPUT_LOG
    session:<id>:applied         list     JSON AppliedRecord in log order, one per applied input
    session:<id>:ids             hash     message id → "entry", "entry rev seq" once applied, PAUSE_ANSWER,
                                          "@id" of the message that it is merged into
    session:<id>:id_order        list     the same ids, oldest first; at most MAX_REMEMBERED_IDS
    session:<id>:checkpoint      hash     a CheckpointPointer, the newest; gone when the session is closed
    checkpoint:<object>          string   bytes of one checkpoint, ≤ MAX_CHECKPOINT_BYTES; <object> is
                                          session:epoch:seq. Only what pointers name is kept; expires
    checkpoint_expiry            zset     sessions with bytes above → when they expire, ms
    checkpoint_sizes             hash     the same sessions → bytes
    checkpoint_total             string   their sum; at most MAX_CHECKPOINT_TOTAL_BYTES
    serial                       string   counter of queue places
    queue:<model>                zset     queued sessions → queue_order: returners below zero, starts above
    queued_models                set      models that ever had a queue
    engines                      zset     engines that are not gone → heartbeat_ms
    engine:<id>                  hash     an EngineRecord, plus claimed_by (who starts it) and suspects
                                          (JSON list of sessions: who may be why it is gone); kept
                                          GONE_TTL_S after it is gone
    engine:<id>:placed           set      sessions placed on it
    engine:<id>:away             set      those of them that hold no slot: offloaded or stored
    engine:<id>:arriving         hash     sessions that migrate to it → 1 if they take a slot there, else 0
    engine:<id>:commands         stream   field m: one JSON EngineCommand; bounded by MAX_COMMANDS
    gateways                     zset     gateways → heartbeat_ms
    gateway:<id>                 hash     what it says about itself; expires GATEWAY_TTL_S after a beat
    gateway:<id>:lost            set      sessions that were left because it was silent: if it is heard again
                                          within GONE_TTL_S, it gets those back that still are
"""

from __future__ import annotations

from collections.abc import Mapping

MAX_FAILED_MOVES = 2
"""After as many migrations that were called off, a session is placed elsewhere from its checkpoint."""
POISON_STRIKES = 2
"""So many engines in a row that crash close a session, if to all but the first it came soon before, and no
other session was with it each time: it is the cause."""
SHARED_POISON_STRIKES = 3
"""As many close each of several sessions that were together each time: any of them may be the cause."""
POISON_MS = 10_000
"""What soon means."""
MAX_EVENTS = 20_000
"""Entries kept in the events stream (approximate trimming: never fewer)."""
MAX_USAGE = 50_000
"""Entries kept in the usage stream (approximate trimming: never fewer); about 20 MB."""
MAX_DECISIONS = 1_000
"""Entries kept in the decisions stream (approximate trimming: never fewer)."""
MAX_DECISION_CHARS = 1_000
"""Longer ones, which name hundreds of engines, are cut."""
MAX_COMMANDS = 4_096
"""Entries kept in an engine's command stream; with few sessions per engine, hours of them."""
MAX_INPUT_LOG = 50_000
"""Entries of one session's input log; beyond it inputs are refused. 40 minutes of 20 controls a second."""
MAX_MEMORY_BYTES = 256 * 1024
"""Largest single write to the control Redis."""
MAX_CHECKPOINT_BYTES = 256 * 1024
"""Largest checkpoint in the control Redis; larger ones go to a directory or a second Redis."""
MAX_CHECKPOINT_TOTAL_BYTES = 256 * 1024 * 1024
"""Of all checkpoints in the control Redis; beyond it they are refused, and sessions go on without."""
MIN_APPLIED_KEPT = 256
"""Newest applied records of a session that stay when a checkpoint makes older ones unneeded."""
CLOSED_TTL_S = 600
"""How long a closed session's hash stays, so that a late attach learns why, and its recording: as long as no
leader has published its `retain_s`, which counts then."""
MIN_CLOSED_TTL_S = 60
"""The least, for those who have still to hear of the end."""
GONE_TTL_S = 3_600
"""How long a gone engine's hash stays, so that a process that wakes up again learns that it must exit."""
GATEWAY_TTL_S = 10
PAUSE_ANSWER = "-"
"""Stands for a pause or resume among the remembered ids: it has no log entry and is only accepted again."""

PATTERNS: Mapping[str, str] = {
    "term": "term",
    "lease": "lease",
    "desired": "desired",
    "settled": "settled",
    "memory": "memory",
    "cluster": "cluster",
    "models": "models",
    "events": "events",
    "decisions": "decisions",
    "usage": "usage",
    "sessions": "sessions",
    "subject": "subject:%s",
    "controlled": "controlled:%s",
    "session": "session:%s",
    "inputs": "session:%s:inputs",
    "applied": "session:%s:applied",
    "ids": "session:%s:ids",
    "id_order": "session:%s:id_order",
    "checkpoint": "session:%s:checkpoint",
    "checkpoint_data": "checkpoint:%s",
    "checkpoint_expiry": "checkpoint_expiry",
    "checkpoint_sizes": "checkpoint_sizes",
    "checkpoint_total": "checkpoint_total",
    "serial": "serial",
    "queue": "queue:%s",
    "queued_models": "queued_models",
    "engines": "engines",
    "engine": "engine:%s",
    "placed": "engine:%s:placed",
    "away": "engine:%s:away",
    "arriving": "engine:%s:arriving",
    "commands": "engine:%s:commands",
    "gateways": "gateways",
    "gateway": "gateway:%s",
    "lost": "gateway:%s:lost",
}
"""Name → key below the prefix; `%s` is the id."""


class Keys:
    """The keys of one cluster.

    Raises:
        ValueError: the name is empty, too long, or has a brace, which would break the hash tag.
    """

    def __init__(self, cluster: str) -> None:
        if not 1 <= len(cluster) <= 64 or not cluster.isprintable() or set("{} ") & set(cluster):
            raise ValueError("cluster must have 1 to 64 printable characters without spaces and braces")
        self.prefix = f"ts:{{{cluster}}}:"

    def key(self, name: str, id: str | None = None) -> str:
        """The key called `name` in PATTERNS, of the session, engine, gateway or model `id` if it has one."""
        pattern = PATTERNS[name]
        assert ("%s" in pattern) == (id is not None), f"key {name!r}: id given {id!r}"
        return self.prefix + (pattern % id if id is not None else pattern)
