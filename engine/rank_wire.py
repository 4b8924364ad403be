"""Values between the ranks of an engine as bytes: JSON, each dataclass with its name. Pure.

Both ends run the same program, so this is about exactness, not about versions: what is read equals what was
written, floats included. Sequences become tuples.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from typing import Any, Final

__all__ = ["from_wire", "to_wire"]

_CLASS: Final = "__class__"


def to_wire(value: object) -> bytes:
    """Of dataclasses, sequences, objects with string keys, strings, numbers, booleans and None.

    Raises:
        TypeError: something else is in there.
    """
    return json.dumps(_plain(value), separators=(",", ":")).encode()


def from_wire(data: bytes, classes: Iterable[type]) -> object:
    """The inverse; only these dataclasses are made."""
    known = {cls.__name__: cls for cls in classes}

    def build(item: dict[str, Any]) -> object:
        item = {name: _frozen(value) for name, value in item.items()}
        name = item.pop(_CLASS, None)
        return item if name is None else known[name](**item)

    return _frozen(json.loads(data, object_hook=build))


def _plain(value: object) -> object:
    if is_dataclass(value) and not isinstance(value, type):
        return {
            _CLASS: type(value).__name__,
            **{field.name: _plain(getattr(value, field.name)) for field in fields(value)},
        }
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return value


def _frozen(value: object) -> object:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value
