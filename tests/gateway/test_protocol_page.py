"""docs/protocol.md says what the code says: its tables are compared with the code."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path

from gateway import limits, protocol, session, websocket
from gateway.config import GatewayConfig
from gateway.protocol import CLIENT_MESSAGES, SERVER_MESSAGES, ChunkHeader, CloseCode
from gateway.routes import Routes
from scheduler.messages import (
    MAX_MESSAGE_ID_CHARS,
    MAX_PROMPT_CHARS,
    MAX_REMEMBERED_IDS,
    REPLAY_CHUNKS,
    ErrorCode,
)

PAGE = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()
CONFIG = GatewayConfig(redis="unix:///x", link_secret="s")


def table(first_column: str, number: int = 0) -> list[list[str]]:
    """Rows of the table whose header starts with this column; `number` counts tables with an equal one."""
    blocks = re.findall(rf"^\| {first_column} \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", PAGE, re.M)
    return [[c.strip() for c in row.strip("|").split(" | ")] for row in blocks[number].strip().split("\n")]


def words(cell: str) -> set[str]:
    return set(re.findall(r"`(\w+)`", cell))


def test_messages() -> None:
    """Every message of both directions has its row, and each row names every field."""
    for number, messages in enumerate((CLIENT_MESSAGES, SERVER_MESSAGES)):
        rows = {row[0].strip("`| "): row[1] for row in table("type", number)}
        assert set(rows) == set(messages)
        for tag, cls in messages.items():
            missing = {f.name for f in fields(cls)} - words(rows[tag])
            assert not missing, f"{tag}: {missing}"


def test_media_header() -> None:
    """The header's table has exactly its fields."""
    names = {row[0].strip("`| ") for row in table("field")}
    assert names == {f.name for f in fields(ChunkHeader)} | {"type"}


def test_error_codes() -> None:
    """Exactly the codes of the enum."""
    assert [row[0].strip("`| ") for row in table("code", 0)] == [code.value for code in ErrorCode]


def test_close_codes() -> None:
    """Exactly the codes of the enum, with their names."""
    rows = [(int(row[0].strip("| ")), row[1].strip("`")) for row in table("code", 1)]
    assert rows == [(code.value, code.name) for code in CloseCode]


def test_limits() -> None:
    """Every number of the limits' table is the code's."""
    found = {row[0].strip("| "): float(row[1].strip("| ")) for row in table("what")}
    assert found == {
        "client message, bytes": protocol.MAX_CLIENT_MESSAGE_BYTES,
        "server message, bytes": protocol.MAX_SERVER_MESSAGE_BYTES,
        "media header, bytes": protocol.MAX_MEDIA_HEADER_BYTES,
        "prompt, characters": MAX_PROMPT_CHARS,
        "message id, characters": MAX_MESSAGE_ID_CHARS,
        "name of a model or codec, session id, resume token, characters": protocol.MAX_NAME_CHARS,
        "codecs in `accept`": protocol.MAX_CODECS,
        "buffer_ms, either sign": protocol.MAX_BUFFER_MS,
        "seq, largest": protocol.MAX_SEQ,
        "entries of a list or object in msgpack": protocol.MAX_CONTAINER_ENTRIES,
        "token, characters": protocol.MAX_TOKEN_CHARS,
        "seed, largest": float(protocol.MAX_SEED),
        "lead_ms, smallest": protocol.MIN_LEAD_MS,
        "lead_ms, largest": protocol.MAX_LEAD_MS,
        "blend_chunks, largest": 16,
        "keys and axes, entries each": protocol.MAX_KEYS,
        "name of a key or axis, characters": 32,
        "messages per second": limits.MESSAGES_PER_S,
        "messages at once": limits.MESSAGE_BURST,
        "longer messages, bytes for each of which they count as one more": limits.MESSAGE_BYTES,
        "controls per second in the log": 1000 / limits.CONTROL_INTERVAL_MS,
        "inputs that wait for the cluster's records": session.MAX_HELD_INPUTS,
        "messages that wait behind start, attach or stop": session.MAX_BACKLOG,
        "bad messages in a row": protocol.MAX_BAD_MESSAGES,
        "remembered ids per session": MAX_REMEMBERED_IDS,
        "chunks kept for attach": REPLAY_CHUNKS,
        "silence after connecting, seconds": CONFIG.first_message_timeout_s,
        "without a session, seconds": CONFIG.no_session_timeout_s,
        "request on a new connection, seconds": CONFIG.start_timeout_s,
        "unfinished send, seconds": CONFIG.send_timeout_s,
        "message that waits to be sent, seconds": websocket.MAX_WAIT * CONFIG.send_timeout_s,
        "keepalive, seconds": CONFIG.ping_interval_s,
    }


def test_defaults() -> None:
    """The defaults that the page names are those of the schema."""
    assert f"`lead_ms` ({protocol.DEFAULT_LEAD_MS})" in PAGE
    assert f"`accept` (`{json.dumps(list(protocol.Start(prompt='').accept))}`)" in PAGE
    assert set(protocol.Start(prompt="").accept) <= set(CONFIG.codecs)


def test_subprotocols_and_paths() -> None:
    """The page names every subprotocol and every HTTP path that is served."""
    assert {row[0].strip("`| ") for row in table("subprotocol")} == set(protocol.CODECS)
    paths = {row[0].strip("`| ") for row in table("path")}
    assert Routes.PATHS <= paths


def test_json_examples_are_messages() -> None:
    """Every complete JSON example of a message decodes."""
    codec = protocol.CODECS[protocol.JSON_SUBPROTOCOL]
    joined = re.sub(r"\n   +", "", PAGE)
    examples = re.findall(r'^([<>]) (\{"type".*?\})(?:\s{2,}.*)?$', joined, re.M)
    complete = [(side, text) for side, text in examples if "…}" not in text]
    assert len(complete) > 10
    for side, text in complete:
        codec.decode_control(CLIENT_MESSAGES if side == ">" else SERVER_MESSAGES, text)
