"""Loads the Lua scripts and maps their errors. One file in `scheduler/lua/` is one atomic operation.

Each script is: constants and tables rendered from Python (keys, bounds, moves), `prelude.lua`, its file.
So keys and legal moves have one source, and a script can't disagree with `keys.py` or `states.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from functools import cache
from importlib.resources import files
from typing import TypeVar

from scheduler import keys
from scheduler.messages import MAX_REMEMBERED_IDS, REPLAY_CHUNKS
from scheduler.states import ENGINE_TRANSITIONS, SESSION_TRANSITIONS
from scheduler.store import errors

S = TypeVar("S", bound=Enum)
M = TypeVar("M", bound=Enum)

PRELUDE = "prelude"


class ScriptError(Enum):
    """First word of every error reply of our scripts."""

    STALE_EPOCH = "STALE_EPOCH"
    STALE_TERM = "STALE_TERM"
    STALE_CONTROLLER = "STALE_CONTROLLER"
    ENGINE_GONE = "ENGINE_GONE"
    ENGINE_UNKNOWN = "ENGINE_UNKNOWN"
    NO_SUCH_ENGINE = "NO_SUCH_ENGINE"
    NO_SUCH_SESSION = "NO_SUCH_SESSION"
    SESSION_CLOSED = "SESSION_CLOSED"
    QUEUE_FULL = "QUEUE_FULL"
    QUOTA = "QUOTA"
    INPUT_LOG_FULL = "INPUT_LOG_FULL"
    BEYOND = "BEYOND"
    REFUSED = "REFUSED"
    CHECKPOINTS_FULL = "CHECKPOINTS_FULL"


_EXCEPTIONS: Mapping[ScriptError, Callable[[str], errors.StoreError]] = {
    ScriptError.STALE_EPOCH: errors.StaleEpoch,
    ScriptError.STALE_TERM: errors.StaleTerm,
    ScriptError.STALE_CONTROLLER: errors.StaleController,
    ScriptError.ENGINE_GONE: errors.EngineGone,
    ScriptError.ENGINE_UNKNOWN: errors.EngineUnknown,
    ScriptError.NO_SUCH_ENGINE: errors.NoSuchEngine,
    ScriptError.NO_SUCH_SESSION: errors.NoSuchSession,
    ScriptError.SESSION_CLOSED: errors.SessionIsClosed,
    ScriptError.QUEUE_FULL: lambda _: errors.QueueFull(),
    ScriptError.QUOTA: errors.QuotaReached,
    ScriptError.INPUT_LOG_FULL: errors.InputLogFull,
    ScriptError.BEYOND: errors.BeyondGenerated,
    ScriptError.REFUSED: errors.PlacementRefused,
    ScriptError.CHECKPOINTS_FULL: errors.CheckpointRefused,
}


def script_error(reply: str) -> errors.StoreError | None:
    """The StoreError that a script's error reply names; None if it is not one of ours."""
    code, _, detail = reply.partition(" ")
    try:
        return _EXCEPTIONS[ScriptError(code)](detail)
    except ValueError:
        return None


@cache
def scripts() -> Mapping[str, str]:
    """Script name → complete text."""
    folder = files("scheduler") / "lua"
    texts = {path.name.removesuffix(".lua"): path.read_text() for path in folder.iterdir()}
    head = _constants() + texts.pop(PRELUDE)
    return {name: f"{head}\n{text}" for name, text in texts.items()}


def _constants() -> str:
    tables: dict[str, object] = {
        "KEY": keys.PATTERNS,
        "SESSION_MOVES": _moves(SESSION_TRANSITIONS),
        "ENGINE_MOVES": _moves(ENGINE_TRANSITIONS),
        "MAX_EVENTS": keys.MAX_EVENTS,
        "MAX_FAILED_MOVES": keys.MAX_FAILED_MOVES,
        "POISON_STRIKES": keys.POISON_STRIKES,
        "SHARED_POISON_STRIKES": keys.SHARED_POISON_STRIKES,
        "POISON_MS": keys.POISON_MS,
        "MAX_USAGE": keys.MAX_USAGE,
        "MAX_DECISIONS": keys.MAX_DECISIONS,
        "MAX_COMMANDS": keys.MAX_COMMANDS,
        "MAX_INPUT_LOG": keys.MAX_INPUT_LOG,
        "MAX_REMEMBERED_IDS": MAX_REMEMBERED_IDS,
        "REPLAY_CHUNKS": REPLAY_CHUNKS,
        "MAX_CHECKPOINT_BYTES": keys.MAX_CHECKPOINT_BYTES,
        "MAX_CHECKPOINT_TOTAL_BYTES": keys.MAX_CHECKPOINT_TOTAL_BYTES,
        "MIN_APPLIED_KEPT": keys.MIN_APPLIED_KEPT,
        "CLOSED_TTL_S": keys.CLOSED_TTL_S,
        "MIN_CLOSED_TTL_S": keys.MIN_CLOSED_TTL_S,
        "GONE_TTL_S": keys.GONE_TTL_S,
        "GATEWAY_TTL_S": keys.GATEWAY_TTL_S,
        "PAUSE_ANSWER": keys.PAUSE_ANSWER,
    }
    return "".join(f"local {name} = {_lua(value)}\n" for name, value in tables.items())


def _moves(table: Mapping[S, Mapping[M, S]]) -> dict[str, dict[str, str]]:
    return {
        state.value: {move.value: target.value for move, target in moves.items()}
        for state, moves in table.items()
    }


def _lua(value: object) -> str:
    match value:
        case Mapping():
            return "{" + ", ".join(f"[{_lua(k)}] = {_lua(v)}" for k, v in value.items()) + "}"
        case str() if "'" not in value and "\\" not in value:
            return f"'{value}'"
        case int():
            return str(value)
        case _:
            raise AssertionError(f"no Lua form for {value!r}")
