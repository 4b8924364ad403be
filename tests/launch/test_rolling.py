"""A rolling upgrade with a live session: old and new version serve it side by side, and back again."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import pytest
from redis.asyncio import Redis

from scheduler.keys import Keys
from scheduler.store import Store
from tests.cluster import SCALE, free_port, is_ready, order, until
from tests.launch.test_roles_alone import role
from tests.patience import PATIENCE_S
from tests.viewer import Viewer, watching

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
CLUSTER = "rolling"
SCHEDULER = ("--engines", "2", "--policy", "least_loaded")
"""One that moves no session of its own accord, unless its engine drains."""
NEW_WORD = "release_noted"
"""A message type that the next version alone knows."""
PATCHES = (
    # Each message between processes and to clients: one more field.
    ("scheduler/schema.py", '{"type": message.type}', '{"type": message.type, "release": "next"}'),
    ("scheduler/lua/prelude.lua", "'m', cjson.encode(message))", "'m', plus(message))"),
    ("scheduler/lua/prelude.lua", "'m', cjson.encode(event))", "'m', plus(event))"),
    (
        "scheduler/lua/prelude.lua",
        "local function emit(",
        "local function plus(message)\n  message.release = 'next'\n  return cjson.encode(message)\nend\n\n"
        "local function emit(",
    ),
    # Each record too, what a migration sends, and what a checkpoint says.
    ("scheduler/lua/register_engine.lua", "'transfer', ARGV[6],", "'transfer', ARGV[6], 'release', 'next',"),
    ("scheduler/lua/announce_session.lua", "'opened', 1,", "'opened', 1, 'release', 'next',"),
    ("scheduler/lua/record_applied.lua", "{entry = entry,", "{release = 'next', entry = entry,"),
    ("scheduler/store/records.py", "asdict(model)", '{**asdict(model), "release": "next"}'),
    ("scheduler/store/records.py", "asdict(costs)", '{**asdict(costs), "release": "next"}'),
    ("scheduler/store/records.py", "[asdict(engine)", '[{**asdict(engine), "release": "next"}'),
    ("scheduler/store/records.py", 'base = {"text"', 'base = {"release": "next", "text"'),
    ("scheduler/policy/base.py", "asdict(memory)", '{**asdict(memory), "release": "next"}'),
    ("engine/handover.py", "    ranks: int = 1\n", '    ranks: int = 1\n    release: str = "next"\n'),
    (
        "engine/state_format.py",
        "    scalars: StateScalars | None = None\n",
        '    scalars: StateScalars | None = None\n    release: str = "next"\n',
    ),
    # One more event, and a request that a gateway makes of each engine.
    (
        "scheduler/messages.py",
        "Event = (\n",
        "@dataclass(frozen=True, slots=True, kw_only=True)\nclass ReleaseNoted:\n"
        f'    type: ClassVar[str] = "{NEW_WORD}"\n    engine: EngineId\n\n\n'
        "Event = (\n    ReleaseNoted |\n",
    ),
    (
        "scheduler/lua/register_engine.lua",
        "emit({type = 'engine_changed'",
        f"emit({{type = '{NEW_WORD}', engine = engine}})\nemit({{type = 'engine_changed'",
    ),
    (
        "gateway/link.py",
        "            self._tell_all_up()\n",
        f'            await connection.send(\'{{"type":"{NEW_WORD}"}}\')\n            self._tell_all_up()\n',
    ),
)
"""(file, what stands there once, what stands there in the next version)."""


def build_next_version(into: Path) -> None:
    """Our packages as a later version might be: model, weights and state format are those of this one."""
    for package in ("scheduler", "gateway", "engine", "launch", "web_demo"):
        shutil.copytree(ROOT / package, into / package)
    for name, old, new in PATCHES:
        path = into / name
        text = path.read_text()
        assert text.count(old) == 1, f"{name} has {text.count(old)} times: {old}"
        path.write_text(text.replace(old, new))


@dataclass
class Roles:
    """The processes of one version, killed at the end."""

    stack: ExitStack
    logs: Path
    settings: dict[str, str]
    tree: Path | None = None
    """Where the version's packages are; None: those of this one."""

    def start(self, name: str, *arguments: str) -> Role:
        log = self.logs / f"{name}-{'old' if self.tree is None else 'next'}-{len(list(self.logs.iterdir()))}"
        with pytest.MonkeyPatch.context() as patch:
            if self.tree is not None:
                patch.setenv("PYTHONPATH", str(self.tree))
                patch.setenv("PYTHONSAFEPATH", "1")
            return Role(self.stack.enter_context(role(name, *arguments, log=log, **self.settings)), log)


@dataclass
class Role:
    """One process."""

    process: subprocess.Popen[bytes]
    log: Path

    async def says(self, words: str) -> None:
        """Return when it has."""
        await until(lambda: words in self.log.read_text(), 60 * SCALE)

    async def end(self) -> None:
        """Ask it to; it does in order."""
        self.process.send_signal(signal.SIGTERM)
        await self.ended()

    async def ended(self) -> None:
        """It was asked to, here or by the leader."""
        assert await asyncio.to_thread(self.process.wait, 30 * SCALE) == 0

    def engine(self) -> str:
        """The id of an engine that serves."""
        found = re.search("engine (e_[0-9a-f]+) serves", self.log.read_text())
        assert found is not None
        return found[1]


@asynccontextmanager
async def service(ports: list[int]) -> AsyncIterator[int]:
    """A port that passes connections on to the first of these that takes them, as a balancer does."""
    joined: set[asyncio.Task[None]] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def join(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for port in ports:
            with contextlib.suppress(OSError):
                inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)
                for one, other in ((reader, inner_writer), (inner_reader, writer)):
                    joined.add(asyncio.create_task(pump(one, other)))
                return
        writer.close()

    server = await asyncio.start_server(join, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in joined:
            task.cancel()
        await asyncio.gather(*joined, return_exceptions=True)


async def test_two_versions_serve_one_session(redis_url: str, tmp_path: Path) -> None:
    """Every role is replaced by the next version, the scheduler by the old one again. Meanwhile the session
    moves between engines of both, with a gateway of either: no chunk is missing, repeated or out of order,
    prompts apply once, the old processes end in order, and nothing ends over what another version says.
    """
    settings = {"redis": redis_url, "cluster": CLUSTER, "link_secret": "hush", "capacity": "2"}
    settings["heartbeat_timeout_ms"] = str(round(1000 * PATIENCE_S))  # no engine is to be found silent
    await mark_new(redis_url)
    (logs := tmp_path / "logs").mkdir()
    build_next_version(tmp_path / "next")
    ports = [free_port(), free_port()]
    with ExitStack() as stack:
        old, new = Roles(stack, logs, settings), Roles(stack, logs, settings, tmp_path / "next")
        leader = old.start("scheduler", *SCHEDULER)
        gateway = old.start("gateway", "--port", str(ports[0]))
        await leader.says(" desired engines are ")
        engine, new_engine = old.start("engine"), new.start("engine")
        new_leader = new.start("scheduler", *SCHEDULER)
        for started in (engine, new_engine):
            await started.says(" serves shapes ")
        await until(lambda: is_ready(ports[0]))
        here, there = engine.engine(), new_engine.engine()
        async with service(ports) as port, watching(f"http://127.0.0.1:{port}") as viewer:
            await viewer.take(1)
            await leader.end()
            new.start("gateway", "--port", str(ports[1]))
            await new_leader.says(" leads, ")
            await move(viewer, ports[0], here)
            await move(viewer, ports[0], there)
            await until(lambda: is_ready(ports[1]))
            await gateway.end()
            await prompt(viewer, rev=1)
            await move(viewer, ports[1], here)
            last_leader = old.start("scheduler", *SCHEDULER)
            await prompt(viewer, rev=2)
            await new_leader.end()
            await last_leader.says(" leads, ")
            order_there(ports[1], "drain", engine=here)
            await viewer.take_until_engine(there)
            await engine.ended()
            await prompt(viewer, rev=3)
    owners = [owner for owner, _ in groupby(chunk.engine for chunk in viewer.taken)]
    assert owners[-4:] == [here, there, here, there]
    await assert_both_wrote(redis_url, here, there)
    for reader in (leader, gateway, engine):
        assert NEW_WORD in reader.log.read_text()
    for log in logs.iterdir():
        assert_harmless(log)


async def mark_new(redis_url: str) -> None:
    """As `up` does: no scheduler waits for engines that might have outlived a loss of data."""
    store = await Store.connect(redis_url, cluster=CLUSTER)
    await store.mark_new()
    await store.close()


async def assert_both_wrote(redis_url: str, here: str, there: str) -> None:
    """The engine here, and the one there and the second gateway, of the next version, as the events tell."""
    async with Redis.from_url(redis_url, decode_responses=True) as redis:
        entries = await redis.xrange(Keys(CLUSTER).key("events"))
    events = [json.loads(fields["m"]) for _, fields in entries]
    registered = {
        event["engine"]: "release" in event for event in events if event.get("reason") == "registered"
    }
    assert registered == {here: False, there: True}
    assert ["release" in event for event in events if event["type"] == "controller_changed"] == [True]


def order_there(port: int, what: str, **fields: str) -> None:
    """As an operator does it."""
    assert order(f"http://127.0.0.1:{port}", what, **fields) in (200, 202)


async def move(viewer: Viewer, port: int, engine: str) -> None:
    """By order; watch until it is there."""
    if viewer.taken[-1].engine != engine:
        order_there(port, "migrate", session=viewer.session.id, engine=engine)
        await viewer.take_until_engine(engine)


async def prompt(viewer: Viewer, *, rev: int) -> None:
    """Edit the prompt, and watch until it shows."""
    applied = asyncio.create_task(viewer.session.prompt(f"a blue square, {rev}"))
    while not applied.done():
        await viewer.take(1)
    assert (await applied).rev == rev
    await viewer.take(1)


def assert_harmless(log: Path) -> None:
    """Of what a process could not read it says that it was left out."""
    for line in log.read_text().splitlines():
        is_left_out = "left out" in line and NEW_WORD in line
        bad = ("Traceback", " ERROR ", "bad message", "be read", "unknown")
        assert is_left_out or not any(word in line for word in bad), f"{log.name}: {line}"
