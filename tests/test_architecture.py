"""The rules of DESIGN.md section 2 and of the style guide that a machine can check, read from the source."""

from __future__ import annotations

import ast
import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("scheduler", "gateway", "engine", "launch", "web_demo")
SHARED = (
    "scheduler.logs",
    "scheduler.messages",
    "scheduler.store",
    "scheduler.store.errors",
    "scheduler.store.values",
)
"""The store's errors and values are its pure part: a pure module can't import the package itself."""
ARROWS = {
    "scheduler": ("scheduler",),
    "gateway": ("gateway", "web_demo", *SHARED),  # it serves the page's files
    "engine": ("engine", *SHARED),
    "launch": FOLDERS,
    "web_demo": ("web_demo",),
}
"""Folder → packages (with everything below) and modules (exactly) of ours that it may import."""

IMPURE = {"asyncio", "socket", "redis", "torch", "time", "random", "os"}
PURE = (
    "scheduler/address.py",
    "scheduler/config.py",
    "scheduler/domain.py",
    "scheduler/keys.py",
    "scheduler/lease.py",
    "scheduler/messages.py",
    "scheduler/schema.py",
    "scheduler/states.py",
    "scheduler/trace.py",
    "scheduler/view.py",
    "scheduler/policy/*.py",
    "scheduler/store/errors.py",
    "scheduler/store/records.py",
    "scheduler/store/values.py",
    "gateway/protocol.py",
    "gateway/session.py",
    "engine/cost_table.py",
    "engine/credit.py",
    "engine/planner.py",
    "engine/replay.py",
    "engine/ring.py",
)
"""Patterns; a module whose docstring says "Pure" in its first paragraph must be pure as well."""

MAX_FUNCTION_LINES = 60
MAX_FILE_LINES = 600
SOURCES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]


def relative(path: Path) -> str:
    """Path below the repository, for messages and test ids."""
    return path.relative_to(ROOT).as_posix()


def parse(text: str) -> ast.Module:
    """`ast.parse` without collections in between: on 3.11 a finalizer that formats a traceback breaks it."""
    gc.disable()
    try:
        return ast.parse(text)
    finally:
        gc.enable()


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """(dotted name, line) of everything a file imports, also inside functions."""
    package = list(path.relative_to(ROOT).parent.parts)
    for node in ast.walk(parse(path.read_text())):
        match node:
            case ast.Import():
                yield from ((alias.name, node.lineno) for alias in node.names)
            case ast.ImportFrom(level=0, module=str(module)):
                # `from scheduler import keys` imports a module, `from scheduler.keys import Keys` a name.
                is_folder = module in FOLDERS
                yield from ((f"{module}.{a.name}" if is_folder else module, node.lineno) for a in node.names)
            case ast.ImportFrom():
                base = package[: len(package) - node.level + 1]
                yield ".".join((*base, *filter(None, [node.module]))), node.lineno


def may_import(folder: str, name: str) -> bool:
    """Does an arrow lead there?"""
    if name.partition(".")[0] not in FOLDERS:
        return True
    return any(
        name == allowed or (allowed in FOLDERS and name.startswith(f"{allowed}."))
        for allowed in ARROWS[folder]
    )


def is_pure(path: Path) -> bool:
    """Is the file listed as pure, or does it say so?"""
    if any(path.match(str(ROOT / pattern)) for pattern in PURE):
        return True
    docstring = ast.get_docstring(parse(path.read_text())) or ""
    return "Pure" in docstring.partition("\n\n")[0]


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_imports_follow_the_arrows(path: Path) -> None:
    """A folder imports only what DESIGN.md section 2 allows."""
    folder = relative(path).partition("/")[0]
    wrong = [f"{name} (line {line})" for name, line in imports(path) if not may_import(folder, name)]
    assert not wrong, f"{relative(path)} may not import {', '.join(wrong)}"


@pytest.mark.parametrize("path", [path for path in SOURCES if is_pure(path)], ids=relative)
def test_pure_modules_stay_pure(path: Path) -> None:
    """Time, randomness, devices and I/O come in as arguments."""
    wrong = [f"{name} (line {line})" for name, line in imports(path) if name.partition(".")[0] in IMPURE]
    assert not wrong, f"{relative(path)} is pure but imports {', '.join(wrong)}"


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_sizes(path: Path) -> None:
    """Files and function bodies (without docstring) stay small."""
    text = path.read_text()
    assert text.count("\n") <= MAX_FILE_LINES
    for node in ast.walk(parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            lines = (node.end_lineno or 0) - body[0].lineno + 1 if body else 0
            assert lines <= MAX_FUNCTION_LINES, f"{node.name} has {lines} lines"


def test_the_listed_modules_exist() -> None:
    """A renamed pure module must be renamed here too."""
    missing = [pattern for pattern in PURE if not list(ROOT.glob(pattern))]
    assert not missing


@pytest.mark.parametrize(
    ("folder", "name", "allowed"),
    [
        ("gateway", "scheduler.messages", True),
        ("gateway", "scheduler.store", True),
        ("gateway", "scheduler.store.values", True),
        ("gateway", "scheduler.store.reader", False),
        ("gateway", "scheduler.keys", False),
        ("gateway", "engine.credit", False),
        ("engine", "gateway", False),
        ("scheduler", "gateway.protocol", False),
        ("launch", "engine.config", True),
        ("gateway", "asyncio", True),
    ],
)
def test_the_arrows_themselves(folder: str, name: str, allowed: bool) -> None:
    """The check would notice."""
    assert may_import(folder, name) == allowed
