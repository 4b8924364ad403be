"""Which results of simulations may be used again: a digest of the sources that decide them."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

__all__ = ["digest_of", "sources_of"]


def digest_of(root: Path, module: str) -> str:
    """Of a module of ours and all that it imports of ours, and of numpy's version, whose draws may change."""
    found = hashlib.sha256(f"numpy {np.__version__}\n".encode())
    for path in sources_of(root, module):
        found.update(f"{path.relative_to(root)}\n".encode())
        found.update(path.read_bytes())
    return found.hexdigest()[:16]


def sources_of(root: Path, module: str) -> list[Path]:
    """The files of a module below root and of what it imports there, directly or not, sorted."""
    found: set[Path] = set()
    waiting = [module]
    while waiting:
        for path in _files(root, waiting.pop()):
            if path not in found:
                found.add(path)
                waiting += _imports(ast.parse(path.read_bytes()))
    return sorted(found)


def _files(root: Path, name: str) -> Iterator[Path]:
    """A module's own file and those of the packages that it is in; none if it is not ours."""
    parts = name.split(".")
    packages = (root.joinpath(*parts[:depth], "__init__.py") for depth in range(1, len(parts) + 1))
    for path in (*packages, root.joinpath(*parts).with_suffix(".py")):
        if path.is_file():
            yield path


def _imports(tree: ast.AST) -> Iterator[str]:
    """Names that may be modules. Relative imports are not used here."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
