"""`web_demo/` as an npm package: what it says of itself is so, its types too."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, Route

from tests.browser.driver import until
from tests.browser.stream_server import WEB, StreamServer
from tests.browser.test_stream import START, WATCH, own_page

PACKAGE = json.loads((WEB / "package.json").read_text())
MODULE = (WEB / "turboserve.js").read_text()
README = (WEB / "README.md").read_text()
TYPES = re.sub(r"/\*\*.*?\*/", "", (WEB / "turboserve.d.ts").read_text(), flags=re.DOTALL)
"""Without what it says in words."""
IMPORT = re.compile(r'^(?:import|export) [^"]*from "\./([\w.]+)"', re.MULTILINE)
MEMBER = re.compile(r"\bstream\.(\w+)(?:\.(current|underWay|drawn|chunkMs)\b)?")

TSC = ("--strict", "--noEmit", "--target", "es2022", "--module", "nodenext", "--lib", "es2022,dom")
needs_tsc = pytest.mark.skipif(shutil.which("tsc") is None, reason="TypeScript's compiler is not on PATH")
WRONG = """
// @ts-expect-error there is no such event
stream.on("phases", () => {});
// @ts-expect-error a phase is a word
stream.on("phase", ({ phase }) => phase.toFixed());
// @ts-expect-error an error has no phase
stream.on("refused", ({ phase }) => phase);
// @ts-expect-error there is nothing to be told
stream.on("gone", ({ id }) => id);
// @ts-expect-error it may be none
stream.recording.bytes;
// @ts-expect-error the stream's own to set
stream.rev = 1;
"""
CONFORM = """import * as actual from "./turboserve.js";
import * as declared from "./declared.js";
export const conforming: typeof declared = actual;
"""

LOOK = """async () => {
    const module = await import("/turboserve.js");
    const read = new Set();
    const options = { canvas: document.querySelector("canvas") };
    const stream = new module.Stream(new Proxy(options, { get: (of, name) => (read.add(name), of[name]) }));
    const members = Object.fromEntries(Object.keys(stream).map((name) => [name, "property"]));
    const described = Object.getOwnPropertyDescriptors(module.Stream.prototype);
    for (const [name, { value }] of Object.entries(described)) {
        members[name] = typeof value === "function" ? "method" : "property";
    }
    const { history } = stream;
    return {
        exports: Object.fromEntries(Object.entries(module).map(([name, value]) => [name, typeof value])),
        options: [...read],
        members,
        stats: Object.keys(stream.stats),
        history: [...Object.keys(history), ...Object.getOwnPropertyNames(Object.getPrototypeOf(history))],
    };
}"""
LISTEN = """(names) => {
    window.told = {};
    for (const name of names) {
        stream.on(name, (detail) => (told[name] = detail === undefined ? null : Object.keys(detail)));
    }
    stream.on("prompt", ({ entry }) => (told.entry = Object.keys(entry)));
    stream.prompt("nobody hears this"); // refused
}"""


def modules_behind(entry: str) -> set[str]:
    """A module and all that it imports."""
    found: set[str] = set()
    waiting = [entry]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += IMPORT.findall((WEB / name).read_text())
    return found


def declared(name: str) -> dict[str, str]:
    """The members of a declared class or interface: "name" or "name?" → what is said of it."""
    block = re.search(rf"^export (?:class|interface) {name} {{\n(.*?)^}}", TYPES, re.DOTALL | re.MULTILINE)
    assert block is not None, name
    return dict(re.findall(r"^  (?:readonly )?(\w+\??)((?:<.*?>)?[(:].*);$", block[1], re.MULTILINE))


def required(type_text: str) -> set[str]:
    """The fields that an object of this type has for certain."""
    if type_text.startswith("{"):
        return set(re.findall(r"readonly (\w+):", type_text))
    return {name for name in declared(type_text) if not name.endswith("?")}


def words_of(type_text: str) -> set[str]:
    return set(re.findall(r'"(\w+)"', type_text))


def tsc(folder: Path, *arguments: str) -> str:
    """What TypeScript's compiler has to say; nothing, if all is well."""
    done = subprocess.run(["tsc", *TSC, *arguments], cwd=folder, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr + (f"status {done.returncode}" if done.returncode != 0 else "")


def test_the_package_has_what_the_module_needs() -> None:
    """The module with its imports and types, the readme and the licence: no more, no less."""
    entry = PACKAGE["exports"].removeprefix("./")
    types = PACKAGE["types"].removeprefix("./")
    assert types == entry.replace(".js", ".d.ts")  # or `exports` would have to name it too
    assert set(PACKAGE["files"]) == modules_behind(entry) | {types, "README.md", "LICENSE"}
    assert "private" not in PACKAGE


def test_the_package_is_of_this_release() -> None:
    """Same version and licence as the server's."""
    project = tomllib.loads((WEB.parent / "pyproject.toml").read_text())["project"]
    assert PACKAGE["version"] == project["version"]
    assert PACKAGE["license"] == "Apache-2.0"
    assert (WEB / "LICENSE").read_text() == (WEB.parent / "LICENSE").read_text()


@pytest.mark.parametrize("name", ["app.js", "view.js", "timeline.js", "example.js"])
def test_what_the_pages_use_is_described(name: str) -> None:
    """Every member of a `Stream` that a page of ours uses stands in the readme and in the types."""
    words = {word for text in re.findall(r"`[^`\n]*`", README) for word in re.findall(r"\w+", text)}
    used = {word for match in MEMBER.findall((WEB / name).read_text()) for word in match if word}
    typed = {*declared("Stream"), *declared("PromptHistory"), *declared("Player")}
    assert used != set() and used <= words and used <= typed, used - (words & typed)


def test_the_events_and_words_that_are_declared_are_those_of_the_module() -> None:
    """Names of events, phases, marks: in the types, in the readme, in the source."""
    events = set(declared("StreamEvents"))
    assert events == set(re.findall(r'#emit\("(\w+)"', MODULE))
    said = re.search(r"^Events, by .*?\. An error", README, re.DOTALL | re.MULTILINE)
    assert said is not None
    assert events == set(re.findall(r"`(\w+)(?: \{[^`]*)?`", said[0].partition("ends it:")[2]))
    phases = re.search(r"^export type Phase =(.*?);", TYPES, re.DOTALL | re.MULTILINE)
    row = re.search(r"^\| `phase` \| `(.*?)` \|$", README, re.MULTILINE)
    assert phases is not None and row is not None
    assert words_of(phases[1]) == set(row[1].split())
    assert words_of(declared("Mark")["kind"]) == set(re.findall(r'#mark\("(\w+)"', MODULE))
    history = (WEB / "history.js").read_text()
    assert words_of(declared("PromptEntry")["state"]) == words_of(history)


@pytest.mark.browser
@pytest.mark.asyncio(loop_scope="module")
async def test_what_is_declared_is_there(browser: Browser, server: StreamServer) -> None:
    """Exports, members of a `Stream`, its options, `stats` and `history`: no more, no less."""
    async with own_page(browser, server) as (page, _):
        seen: dict[str, Any] = await page.evaluate(LOOK)
    exports = re.findall(r"^export (class|function|const) (\w+)", TYPES, re.MULTILINE)
    assert seen["exports"] == {name: "number" if kind == "const" else "function" for kind, name in exports}
    members = {name: "method" if text[0] in "(<" else "property" for name, text in declared("Stream").items()}
    assert seen["members"] == members
    assert set(seen["options"]) == {name.rstrip("?") for name in declared("StreamOptions")}
    assert set(seen["stats"]) == set(declared("Stats"))
    assert set(seen["history"]) >= set(declared("PromptHistory"))


@pytest.mark.browser
@pytest.mark.asyncio(loop_scope="module")
async def test_handlers_get_what_is_declared(browser: Browser, server: StreamServer) -> None:
    """A session's events have the fields that their types have."""
    types = {name: text.removeprefix(": ") for name, text in declared("StreamEvents").items()}
    async with own_page(browser, server) as (page, _):
        await page.evaluate(LISTEN, list(types))
        await page.evaluate(START)
        await until(page, "told.chunk !== undefined && told.frame !== undefined")
        await page.evaluate("stream.setPaused(true)")
        await page.evaluate("stream.reset()")
        told: dict[str, list[str] | None] = await page.evaluate("told")
        drawn = await page.evaluate("Object.keys(stream.player.drawn)")
    assert set(told) >= {"change", "phase", "prompt", "frame", "chunk", "size", "mark", "refused"}
    types["entry"] = "PromptEntry"
    for name, fields in told.items():
        assert (fields is None) == (types[name] == "undefined"), name
        assert fields is None or set(fields) >= required(types[name]), name
    assert set(drawn) >= required("Picture")


@pytest.mark.browser
@pytest.mark.asyncio(loop_scope="module")
async def test_a_link_is_of_the_session_that_was_asked_for(browser: Browser, server: StreamServer) -> None:
    """Also where it has been left by the time of the answer."""

    async def grant(route: Route) -> None:
        await page.evaluate("stream.leave()")
        await route.fulfill(json={"token": "view.er", "expires_in_s": 60})

    async with own_page(browser, server) as (page, _):
        await page.route(WATCH, grant)
        await page.evaluate(START)
        await until(page, "stream.id !== null")
        assert (await page.evaluate("stream.share()"))["session"] == server.only.id


@needs_tsc
def test_the_modules_pass_the_strict_check() -> None:
    """As the readme says how."""
    (command,) = re.findall(
        r"^    npx -p typescript tsc --checkJs (.*) turboserve\.js$", README, re.MULTILINE
    )
    assert tuple(command.split()) == TSC
    assert tsc(WEB, "--checkJs", "turboserve.js") == ""


@needs_tsc
def test_the_module_is_of_the_types_that_are_declared(tmp_path: Path) -> None:
    """Beside its declarations a compiler never looks at the module's own types: it lies elsewhere here."""
    for name in modules_behind("turboserve.js"):
        lines = (WEB / name).read_text().splitlines(keepends=True)
        moved = [re.sub(r'((?:import\(|from )"\./)turboserve\.js', r"\1declared.js", line) for line in lines]
        (tmp_path / name).write_text("".join(moved))
    shutil.copy(WEB / "turboserve.d.ts", tmp_path / "declared.d.ts")
    (tmp_path / "package.json").write_text('{"type": "module"}')
    (tmp_path / "conform.ts").write_text(CONFORM)
    assert tsc(tmp_path, "--checkJs", "conform.ts") == ""


@needs_tsc
def test_the_readme_s_typescript_is_right_and_mistakes_are_seen(tmp_path: Path) -> None:
    """In a project that has the package, of which it gets the files that the package lists."""
    (example,) = re.findall(r"^```ts\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    assert example.count("\n") <= 12
    package = tmp_path / "node_modules" / "turboserve"
    package.mkdir(parents=True)
    for name in [*PACKAGE["files"], "package.json"]:
        shutil.copy(WEB / name, package)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    (tmp_path / "page.ts").write_text(example + WRONG)
    assert tsc(tmp_path, "page.ts") == ""
