"""`web_demo/` as an npm package: what it says of itself is so."""

from __future__ import annotations

import json
import re
import tomllib

import pytest

from tests.browser.stream_server import WEB

PACKAGE = json.loads((WEB / "package.json").read_text())
IMPORT = re.compile(r'^(?:import|export) [^"]*from "\./([\w.]+)"', re.MULTILINE)
MEMBER = re.compile(r"\bstream\.(\w+)(?:\.(current|underWay|drawn|chunkMs)\b)?")


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


def test_the_package_has_what_the_module_needs() -> None:
    """The module with its imports, the readme and the licence: no more, no less."""
    entry = PACKAGE["exports"].removeprefix("./")
    assert set(PACKAGE["files"]) == modules_behind(entry) | {"README.md", "LICENSE"}
    assert "private" not in PACKAGE


def test_the_package_is_of_this_release() -> None:
    """Same version and licence as the server's."""
    project = tomllib.loads((WEB.parent / "pyproject.toml").read_text())["project"]
    assert PACKAGE["version"] == project["version"]
    assert PACKAGE["license"] == "Apache-2.0"
    assert (WEB / "LICENSE").read_text() == (WEB.parent / "LICENSE").read_text()


@pytest.mark.parametrize("name", ["app.js", "view.js", "timeline.js", "example.js"])
def test_what_the_pages_use_is_described(name: str) -> None:
    """Every member of a `Stream` that a page of ours uses stands in the readme."""
    described = set(re.findall(r"`[^`\n]*`", (WEB / "README.md").read_text()))
    words = {word for text in described for word in re.findall(r"\w+", text)}
    used = {word for match in MEMBER.findall((WEB / name).read_text()) for word in match if word}
    assert used != set() and used <= words, used - words
