"""How smooth is the cluster page with 64 engines and 500 sessions, some or all of which move every second?

A headless Chromium, which draws with the processor alone, on the real page, feed and listener; the cluster
behind them is scripted. First nothing moves, then 5 sessions go to another engine each second, then all of
them, so that each is under way all the time. What else a cluster does goes on all the while: each second
every engine has another load, every session a chunk more, a dozen sessions pause or go on, and the newest
moves are said. `render_ms`: what the page's script takes to show one state (lanes and chips, before the
browser's own layout and painting); `frame_gap_ms`: from one animation frame to the next, with all that the
page makes the browser do; 16.7 at 60 Hz. Bounded by the processor, which browser, server and this bench
share.

    .venv/bin/python -m bench.cluster_page --seconds 60
"""

from __future__ import annotations

import argparse
import asyncio
from dataclasses import replace

from playwright.async_api import Page

from bench.stats import machine, print_json, print_table
from scheduler.domain import EngineId
from scheduler.results import spread
from scheduler.store.values import Decision
from tests.browser.driver import chromium, tab, until
from tests.browser.scripted_cluster import ScriptedSource, served, url

ENGINES = 64
SESSIONS = 500
SIZE = (1600, 1000)
MOVING = (0, 5, SESSIONS)
PAUSES = 12
"""Sessions that pause or go on, each second."""
SAID = 40
"""Decisions that are listed."""
ROUND_S = 1.0
SHARES = ("p50", "p99", "max")

WATCH = """() => {
    let [newest, before] = [turboserve.cluster, null];
    window.seen = { renders: [], gaps: [] };
    const look = (now) => {
        if (before !== null) seen.gaps.push(now - before);
        if (turboserve.cluster !== newest) seen.renders.push(turboserve.renderMs);
        [newest, before] = [turboserve.cluster, now];
        requestAnimationFrame(look);
    };
    requestAnimationFrame(look);
}"""
"""Keeps what each state took to show, and the time between animation frames."""

TAKE = "() => { const taken = seen; window.seen = { renders: [], gaps: [] }; return taken }"


class Crowd:
    """A cluster whose sessions can all be moved at once."""

    def __init__(self) -> None:
        self.source = ScriptedSource()
        self._engines = [EngineId(f"e_{number:08x}") for number in range(ENGINES)]
        self._next = 0
        self._second = 0
        for engine in self._engines:
            self.source.engine(engine)
        self.move(SESSIONS)

    def move(self, count: int) -> None:
        """So many sessions to another engine, each in its turn; one in three is idle."""
        for turn in range(self._next, self._next + count):
            rounds, number = divmod(turn, SESSIONS)
            engine = self._engines[(number * 7 + rounds * 13) % ENGINES]
            id = f"s_{number:016x}"
            self.source.session(id, engine, active=number % 3 > 0)
            said = Decision(at_ms=self.source.clock_ms, text=f"move {id} to {engine}: less load there")
            self.source.said = [said, *self.source.said[:SAID]]
        self._next += count

    def go_on(self) -> None:
        """A second of everything but moves."""
        self._second += 1
        engines = self.source.engines
        for number, engine in enumerate(self._engines):
            wave = (number * 5 + self._second * 3) % 16
            took_ms = 200.0 + 10 * wave
            record = engines[engine]
            engines[engine] = replace(record, load=0.3 + wave / 32, chunk_ms=took_ms, worst_ms=took_ms)
        sessions = self.source.sessions
        for number, (id, outline) in enumerate(sessions.items()):
            turns = number % (SESSIONS // PAUSES) == self._second % (SESSIONS // PAUSES)
            active = outline.active != turns
            sessions[id] = replace(outline, active=active, next_seq=self._second, slack_ms=800 + number)


async def watch(page: Page, crowd: Crowd, seconds: float, moving: int) -> dict[str, object]:
    """So long, with so many moves a second."""
    moves = await page.evaluate("turboserve.moves")
    await page.evaluate(TAKE)
    for _ in range(round(seconds / ROUND_S)):
        crowd.go_on()
        crowd.move(moving)
        await asyncio.sleep(ROUND_S)
    seen = await page.evaluate(TAKE)
    return {
        "states": len(seen["renders"]),
        "moves": await page.evaluate("turboserve.moves") - moves,
        "frames": len(seen["gaps"]),
        "render_ms": spread(seen["renders"], *SHARES, digits=2),
        "frame_gap_ms": spread(seen["gaps"], *SHARES, digits=2),
    }


async def measure(seconds: float) -> dict[str, object]:
    """Each part, one after the other."""
    crowd = Crowd()
    async with chromium() as browser, served(crowd.source) as port:
        async with tab(browser, url(port), SIZE) as (page, complaints):
            await until(page, f"document.querySelectorAll('.chip').length === {SESSIONS}")
            await page.evaluate(WATCH)
            parts = {str(moving): await watch(page, crowd, seconds, moving) for moving in MOVING}
            if complaints:
                raise RuntimeError(f"the page complained: {complaints}")
            version = browser.version
    return {"browser": version, "engines": ENGINES, "sessions": SESSIONS, "moving": parts}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each part")
    result = asyncio.run(measure(parser.parse_args().seconds))
    print(f"{machine()}, Chromium {result['browser']}\n")
    rows = []
    assert isinstance(result["moving"], dict)
    for name, part in result["moving"].items():
        times = [part[what][share] for what in ("render_ms", "frame_gap_ms") for share in SHARES]
        rows.append([name, part["states"], part["moves"], part["frames"], *times])
    columns = ["moved a second", "states", "moves", "frames"]
    columns += [f"{what} ms {share}" for what in ("render", "frame gap") for share in SHARES]
    print_table(columns, rows)
    print_json(result)


if __name__ == "__main__":
    main()
