"""Hostile messages through the codec and the session machine: no crash, no hang, no flood.

Each message is made from a seed: a valid one, a valid one with something broken (a field of another type or
far out of its range, a key twice, bytes flipped, cut, doubled), or bytes of no meaning, in both flavours of
the wire. It goes through `decode_control` into a connection's session machine, as in `gateway/connection.py`;
what the machine asks the store is answered (or fails), and link messages and chunk parts, valid and not, come
in between. The link's own decoder gets the same treatment. A connection that is closed is replaced.

    crash    any exception but MessageError and DecodeError from a decoder
    hang     a message that takes longer than `--limit-ms` of CPU
    flood    more than one log record for 1,000 messages, or MAX_OUTPUTS outputs for one message

Run: .venv/bin/python -m bench.fuzz [--messages 1000000] [--seed 1]. Exit status 1 when it found something;
then the connection's number is printed, and `--from NUMBER` begins with it. `bench/fuzz_guided.py` is for
long runs.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgpack

from bench.stats import machine, print_json, print_table
from gateway import protocol as wire
from gateway.catalog import Catalog
from gateway.session import Draw, SessionMachine, Stage, hash_resume
from gateway.steps import (
    AppendInput,
    Call,
    Close,
    CreateSession,
    EndSession,
    Failure,
    FailureKind,
    LoadSession,
    Output,
    Send,
    SetPaused,
    TakeControl,
    Taken,
)
from scheduler.messages import (
    LINK_REPLIES,
    ChunkPart,
    DecodeError,
    EngineId,
    GatewayId,
    ModelInfo,
    Phase,
    SessionId,
    SessionRecord,
    decode_json,
    unframe_media,
)
from scheduler.store.values import InputReceipt

MAX_OUTPUTS = 200
"""One message may release a backlog of 64, each answered; more is a flood."""
MESSAGES_PER_LOG_RECORD = 1_000
CONNECTION_MESSAGES = 400
"""A connection that lives so long is hung up."""
SESSION = SessionId("s_0000000000000001")
ENGINE = EngineId("e_00000001")
MODEL = ModelInfo(
    name="shapes",
    weights_hash="00",
    state_version=1,
    width=96,
    height=96,
    fps=24,
    chunk_frames=12,
    controls=True,
)
RECORD = SessionRecord(
    id=SESSION,
    model="shapes",
    phase=Phase.QUEUED,
    epoch=0,
    engine=None,
    opened=False,
    active=True,
    paused=False,
    seed=1,
    lead_ms=1500,
    codec="h264",
    resume_hash=hash_resume("secret"),
    controller_epoch=1,
    gateway=GatewayId("g_00000001"),
    next_seq=0,
    next_frame=0,
    rev=0,
    last_applied="0-0",
    slack_ms=0,
    created_ms=0,
    active_ms=0,
    reason="",
)
CLIENT: tuple[dict[str, Any], ...] = (
    {"type": "start", "prompt": "a red ball", "seed": 7, "model": "shapes", "accept": ["h264"], "id": "a"},
    {"type": "start", "prompt": "a red ball", "lead_ms": 300},
    {"type": "prompt", "text": "a blue ball", "transition": "blend", "blend_chunks": 3, "id": "b"},
    {"type": "control", "keys": ["ArrowLeft", "x"], "axes": {"pan": 0.5, "zoom": -1}},
    {"type": "ack", "seq": 0, "buffer_ms": 481.25},
    {"type": "ack", "seq": -1, "buffer_ms": 0},
    {"type": "pause", "id": "c"},
    {"type": "resume", "id": "d"},
    {"type": "stop"},
    {"type": "reset", "seed": 3, "id": "e"},
    {"type": "attach", "session": SESSION, "resume": "secret", "next_seq": 2, "id": "f"},
    {"type": "watch", "session": SESSION, "token": "t"},
    {"type": "ping", "t": 12.5},
)
LINK: tuple[dict[str, Any], ...] = (
    {"type": "subscribed", "session": SESSION, "epoch": 1, "start_seq": 0, "state": "active", "reason": ""},
    {"type": "refused", "session": SESSION, "epoch": 1, "code": "bad_state", "message": "no", "id": "x"},
    {"type": "applied", "session": SESSION, "epoch": 1, "rev": 1, "seq": 3, "id": "b"},
    {"type": "accepted", "session": SESSION, "id": "c"},
    {"type": "state_changed", "session": SESSION, "epoch": 1, "state": "idle", "reason": "paused"},
    {
        "type": "stats",
        "session": SESSION,
        "epoch": 1,
        "seq": 1,
        "latency_ms": 9.5,
        "gen_ms": 8,
        "slack_ms": 7,
        "batch": 2,
    },
    {"type": "superseded", "session": SESSION, "controller_epoch": 9},
    {"type": "moved", "session": SESSION, "epoch": 2, "engine": "e_00000002", "next_seq": 4},
    {"type": "closed", "session": SESSION, "epoch": 1, "reason": "idle"},
    {
        "type": "chunk",
        "session": SESSION,
        "epoch": 1,
        "seq": 0,
        "part": 0,
        "parts": 1,
        "key": True,
        "frames": 2,
        "sizes": [4, 4],
        "pts_ms": 0.0,
        "duration_ms": 83.3,
        "codec": "h264",
        "rev": 0,
    },
)
ODD: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    2**31,
    2**63,
    2**64,
    -(2**63) - 1,
    10**400,
    1e308,
    -0.0,
    float("inf"),
    float("nan"),
    "",
    "x" * 65,
    "y" * 2_001,
    "\ud800",
    "\x00",
    "😀" * 40,
    [],
    [[]] * 20,
    ["h264"] * 300,
    {},
    {"a": {"b": {}}},
    b"\xff",
)


class Maker:
    """Messages from a seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def frame(self, table: tuple[dict[str, Any], ...], *, packed: bool) -> str | bytes:
        """A WebSocket message: text or binary."""
        r = self._random
        kind = r.random()
        if kind < 0.05:
            return self._noise()
        message = dict(r.choice(table))
        if kind > 0.45:
            self._break(message)
        data = self._pack(message) if packed else self._dump(message)
        return self._damage(data) if r.random() < 0.2 else data

    def part(self) -> bytes:
        """A media message of the link."""
        header = self.frame(LINK[-1:], packed=False)
        raw = header.encode("utf-8", "surrogatepass") if isinstance(header, str) else header
        r = self._random
        length = len(raw) if r.random() < 0.8 else r.choice((0, 1, len(raw) + 1, 2**31, 2**32 - 1))
        payload = b"x" * (8 if r.random() < 0.8 else r.choice((0, 7, 9, 1000)))
        return length.to_bytes(4, "big") + raw + payload

    def _break(self, message: dict[str, Any]) -> None:
        r = self._random
        for _ in range(r.randint(1, 3)):
            key = r.choice((*message, "type", "unknown", "id", "token"))
            match r.randrange(4):
                case 0:
                    message.pop(key, None)
                case 1:
                    message[key] = r.choice(ODD)
                case 2:
                    message[key] = self._nested(r.choice((1, 3, 40, 2_000)))
                case _:
                    message[key] = r.choice(tuple(message.values()) or (0,))

    def _nested(self, depth: int) -> Any:
        value: Any = 0
        for _ in range(min(depth, 900)):  # deeper ones are made as text: encoders of ours would not
            value = [value]
        return value

    def _dump(self, message: dict[str, Any]) -> str:
        r = self._random
        text = json.dumps(message, ensure_ascii=r.random() < 0.5, default=lambda value: str(value))
        match r.randrange(24):
            case 0:
                return text[:-1] + ',"type":"ping"}'
            case 1:
                return "[" * 5_000 + text
            case 2:
                return text.replace("}", ',"n":' + "9" * 5_000 + "}", 1)
            case _:
                return text

    def _pack(self, message: dict[str, Any]) -> bytes:
        try:
            packed = msgpack.packb(message, default=str, unicode_errors="surrogatepass")
        except (OverflowError, ValueError):  # what msgpack can't say
            packed = msgpack.packb(
                {"type": message.get("type") if isinstance(message.get("type"), str) else 0}
            )
        return self._random.choice((b"\x00", b"\x00", b"\x00", b"\x00", b"\x01", b"")) + bytes(packed)

    def _damage(self, data: str | bytes) -> str | bytes:
        r, at = self._random, self._random.randrange(len(data) + 1)
        match r.randrange(4):
            case 0:
                return data[:at]
            case 1:
                return data * 2
            case _ if isinstance(data, bytes):
                return data[:at] + r.randbytes(3) + data[at + 1 :]
            case _:
                return data[:at] + chr(r.randrange(1, 0xD7FF)) + data[at + 1 :]

    def _noise(self) -> str | bytes:
        raw = self._random.randbytes(self._random.choice((0, 1, 4, 60, 3_000)))
        return raw if self._random.random() < 0.5 else raw.decode("latin-1")

    def choose(self, choices: tuple[Any, ...]) -> Any:
        return self._random.choice(choices)


class Fuzzed:
    """A connection under fire."""

    def __init__(self, maker: Maker, subprotocol: str) -> None:
        self._maker = maker
        self.codec = wire.CODECS[subprotocol]
        self.packed = subprotocol == wire.MSGPACK_SUBPROTOCOL
        catalog = Catalog(models={"shapes": MODEL})
        self.machine = SessionMachine(
            catalog=lambda: catalog, draw=lambda: Draw(session=SESSION, resume="secret", seed=7)
        )
        self.calls: list[Call] = []
        self.messages = 0

    def is_over(self) -> bool:
        return self.machine.stage is Stage.OVER or self.messages >= CONNECTION_MESSAGES

    def receive_client(self, now_ms: float) -> list[Output]:
        data = self._maker.frame(CLIENT, packed=self.packed)
        try:
            message = self.codec.decode_control(wire.CLIENT_MESSAGES, data)
        except wire.MessageError as exc:
            return self.machine.receive_bad(exc, now_ms)
        return self.machine.receive_message(message, now_ms)

    def receive_reply(self, now_ms: float) -> list[Output]:
        data = self._maker.frame(LINK, packed=False)
        try:
            reply = decode_json(LINK_REPLIES, data)
        except DecodeError:
            return []
        return self.machine.receive_link(reply, now_ms)

    def receive_part(self, _now_ms: float) -> list[Output]:
        data = self._maker.part()
        try:
            header, payload = unframe_media(data)
            part = decode_json(LINK_REPLIES, header)
            if not isinstance(part, ChunkPart) or sum(part.sizes) != len(payload):
                return []
        except DecodeError:
            return []
        if self.machine.is_watching():
            return self.machine.receive_viewed(part, payload, 0)
        return self.machine.receive_chunk(part, payload)

    def receive_answer(self, now_ms: float) -> list[Output]:
        """Of the store, to what was asked first."""
        if not self.calls:
            return self.machine.receive_link_up(ENGINE)
        call = self.calls.pop(0)
        if self._maker.choose((True, False, False, False, False)):
            kind = self._maker.choose(tuple(FailureKind))
            return self.machine.receive_result(call, Failure(kind=kind, message="no"), now_ms)
        return self.machine.receive_result(call, self._result(call), now_ms)

    def _result(self, call: Call) -> object:
        placed = replace(
            RECORD, id=call.session, phase=Phase.PLACED, epoch=1, engine=ENGINE, opened=True, next_seq=2
        )
        record = self._maker.choose((placed, placed, replace(RECORD, id=call.session)))
        match call:
            case CreateSession():
                return replace(RECORD, id=call.session)
            case TakeControl():
                return Taken(record=record)
            case AppendInput():
                return InputReceipt(entry="1-1", repeat=False, applied=None)
            case LoadSession():
                return self._maker.choose((record, record, None))
            case SetPaused() | EndSession():
                return None

    def take(self, outputs: list[Output]) -> None:
        """Keep the calls; encode what a client would be sent, as the shell does."""
        for output in outputs:
            match output:
                case Send(message=message):
                    self.codec.encode_control(message)
                case CreateSession() | TakeControl() | AppendInput() | SetPaused() | LoadSession():
                    self.calls.append(output)
                case EndSession():
                    self.calls.append(output)
                case Close(reason=reason):
                    reason.encode()
                case _:
                    pass


class LogCounter(logging.Handler):
    """How much would be logged."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.records: Counter[str] = Counter()

    def emit(self, record: logging.LogRecord) -> None:
        self.records[f"{record.levelname} {record.msg}"] += 1


class Run:
    """The whole of it. What was found is in `findings`."""

    def __init__(self, seed: int, limit_ms: float) -> None:
        self._seed = seed
        self._limit_s = limit_ms / 1000
        self.findings: list[str] = []
        self.closes: Counter[str] = Counter()
        self.slowest_ms = 0.0
        self.connections = 0

    def go(self, first: int, messages: int) -> None:
        """Connections with numbers of their own, so that one can be made again alone."""
        done = first
        while done < first + messages and len(self.findings) < 10:
            done += self._connection(done, first + messages - done)

    def _connection(self, number: int, most: int) -> int:
        maker = Maker(self._seed * 1_000_003 + number)
        fuzzed = Fuzzed(maker, maker.choose(tuple(sorted(wire.CODECS))))
        now_ms = 0.0
        self.connections += 1
        while not fuzzed.is_over() and fuzzed.messages < most:
            fuzzed.messages += 1
            now_ms += maker.choose((0.0, 5.0, 5.0, 20.0, 600.0, 6_000.0))
            step: Callable[[float], list[Output]] = maker.choose(
                (
                    fuzzed.receive_client,
                    fuzzed.receive_client,
                    fuzzed.receive_client,
                    fuzzed.receive_answer,
                    fuzzed.receive_reply,
                    fuzzed.receive_part,
                    fuzzed.machine.receive_tick,
                )
            )
            self._step(fuzzed, step, now_ms, number)
        fuzzed.take(fuzzed.machine.receive_disconnect())
        self.closes[fuzzed.machine.stage.value] += 1
        return max(1, fuzzed.messages)

    def _step(
        self, fuzzed: Fuzzed, step: Callable[[float], list[Output]], now_ms: float, number: int
    ) -> None:
        where = f"connection {number}, message {fuzzed.messages}, {step.__name__}"
        began_s = time.process_time()
        try:
            outputs = step(now_ms)
            fuzzed.take(outputs)
        except Exception:
            self.findings.append(f"crash: {where}\n{traceback.format_exc()}")
            fuzzed.messages = CONNECTION_MESSAGES
            return
        took_s = time.process_time() - began_s
        self.slowest_ms = max(self.slowest_ms, took_s * 1000)
        if took_s > self._limit_s:
            self.findings.append(f"hang: {where} took {took_s * 1000:.0f} ms")
        if len(outputs) > MAX_OUTPUTS:
            self.findings.append(f"flood: {where} made {len(outputs)} outputs")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--from", dest="first", type=int, default=0)
    parser.add_argument("--limit-ms", type=float, default=250.0)
    options = parser.parse_args()
    counter = LogCounter()
    logging.getLogger().addHandler(counter)
    logging.getLogger().setLevel(logging.INFO)
    print(f"machine: {machine()}", flush=True)
    began_s = time.monotonic()
    run = Run(options.seed, options.limit_ms)
    run.go(options.first, options.messages)
    took_s = time.monotonic() - began_s
    logged = sum(counter.records.values())
    if logged > max(10, options.messages / MESSAGES_PER_LOG_RECORD):
        run.findings.append(f"flood: {logged} log records: {counter.records.most_common(5)}")
    print_table(["log record", "times"], counter.records.most_common(10))
    for finding in run.findings:
        print(finding, file=sys.stderr)
    print_json(
        {
            "bench": "fuzz",
            "messages": options.messages,
            "seed": options.seed,
            "connections": run.connections,
            "findings": len(run.findings),
            "slowest_ms": round(run.slowest_ms, 1),
            "log_records": logged,
            "seconds": round(took_s, 1),
        }
    )
    return 1 if run.findings else 0


if __name__ == "__main__":
    sys.exit(main())
