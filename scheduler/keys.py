"""Every Redis key and every bound on what they hold. Pure.

All keys of a cluster share the literal hash tag `ts:{<cluster>}:`, so that one Lua script may touch them all.
The Lua side gets this same table (`scheduler/store/scripts.py` renders it), so no key is spelled twice.

    key                          type     holds
    term                         string   newest term of the leader lease; never falls
    lease                        hash     owner, term; expires with the lease
    desired                      hash     term, engines (JSON list): what provisioners reconcile
    memory                       hash     term, data: the policy's memory (JSON, ≤ MAX_MEMORY_BYTES)
    cluster                      hash     policy, budget, release_interval_ms: what the leader publishes
    models                       hash     model name → JSON of its newest ModelInfo; outlives the engines
    events                       stream   field m: one JSON Event; bounded by MAX_EVENTS
    sessions                     zset     sessions that are not closed → created_ms
    session:<id>                 hash     a SessionRecord, plus left_ms; kept CLOSED_TTL_S after close
    session:<id>:inputs          stream   field m: one JSON Input; at most MAX_INPUT_LOG
    session:<id>:applied         list     JSON AppliedRecord in log order, one per applied input
    session:<id>:ids             hash     message id → "entry", "entry rev seq" once applied, PAUSE_ANSWER
    session:<id>:id_order        list     the same ids, oldest first; at most MAX_REMEMBERED_IDS
    serial                       string   counter of queue places
    queue:<model>                zset     queued sessions → queue_order: returners below zero, starts above
    queued_models                set      models that ever had a queue
    engines                      zset     engines that are not gone → heartbeat_ms
    engine:<id>                  hash     an EngineRecord; kept GONE_TTL_S after it is gone
    engine:<id>:placed           set      sessions placed on it
    engine:<id>:commands         stream   field m: one JSON EngineCommand; bounded by MAX_COMMANDS
    gateways                     zset     gateways → heartbeat_ms
    gateway:<id>                 hash     what it says about itself; expires GATEWAY_TTL_S after a beat
"""

from __future__ import annotations

from collections.abc import Mapping

MAX_EVENTS = 20_000
"""Entries kept in the events stream (approximate trimming: never fewer)."""
MAX_COMMANDS = 4_096
"""Entries kept in an engine's command stream; with few sessions per engine, hours of them."""
MAX_INPUT_LOG = 50_000
"""Entries of one session's input log; beyond it inputs are refused. 40 minutes of 20 controls a second."""
MAX_MEMORY_BYTES = 256 * 1024
"""Largest single write to the control Redis."""
CLOSED_TTL_S = 600
"""How long a closed session's hash stays, so that a late attach learns why."""
GONE_TTL_S = 3_600
"""How long a gone engine's hash stays, so that a process that wakes up again learns that it must exit."""
GATEWAY_TTL_S = 10
PAUSE_ANSWER = "-"
"""Stands for a pause or resume among the remembered ids: it has no log entry and is only accepted again."""

PATTERNS: Mapping[str, str] = {
    "term": "term",
    "lease": "lease",
    "desired": "desired",
    "memory": "memory",
    "cluster": "cluster",
    "models": "models",
    "events": "events",
    "sessions": "sessions",
    "session": "session:%s",
    "inputs": "session:%s:inputs",
    "applied": "session:%s:applied",
    "ids": "session:%s:ids",
    "id_order": "session:%s:id_order",
    "serial": "serial",
    "queue": "queue:%s",
    "queued_models": "queued_models",
    "engines": "engines",
    "engine": "engine:%s",
    "placed": "engine:%s:placed",
    "commands": "engine:%s:commands",
    "gateways": "gateways",
    "gateway": "gateway:%s",
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
