"""Values between the ranks of an engine as bytes: JSON, each dataclass with its name. Pure.

Both ends run the same program, so this is about exactness, not about versions: what is read equals what was
written, floats included. Sequences become tuples.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Final

__all__ = ["Opaque", "from_wire", "to_wire"]

_CLASS: Final = "__class__"
_BYTES: Final = "bytes"
_OBJECT: Final = "object"
_ITEMS: Final = "items"


@dataclass(frozen=True, slots=True)
class Opaque:
    """How values of a class that is not plain data travel."""

    cls: type
    pack: Callable[[Any], bytes]
    unpack: Callable[[bytes], object]


def to_wire(value: object, opaque: Iterable[Opaque] = ()) -> bytes:
    """Of dataclasses, sequences, objects with string keys, strings, numbers, booleans and None.

    Raises:
        TypeError: something else is in there.
    """
    return json.dumps(_plain(value, tuple(opaque)), separators=(",", ":")).encode()


def from_wire(data: bytes, classes: Iterable[type], opaque: Iterable[Opaque] = ()) -> object:
    """The inverse; only these dataclasses are made."""
    known = {cls.__name__: cls for cls in classes}
    unpack = {kind.cls.__name__: kind.unpack for kind in opaque}

    def build(item: dict[str, Any]) -> object:
        item = {name: _frozen(value) for name, value in item.items()}
        name = item.pop(_CLASS)
        if name == _OBJECT:
            return dict(item[_ITEMS])
        return unpack[name](b64decode(item[_BYTES])) if name in unpack else known[name](**item)

    return _frozen(json.loads(data, object_hook=build))


def _plain(value: object, opaque: tuple[Opaque, ...]) -> object:
    for kind in opaque:
        if isinstance(value, kind.cls):
            return {_CLASS: kind.cls.__name__, _BYTES: b64encode(kind.pack(value)).decode()}
    if is_dataclass(value) and not isinstance(value, type):
        return {
            _CLASS: type(value).__name__,
            **{field.name: _plain(getattr(value, field.name), opaque) for field in fields(value)},
        }
    if isinstance(value, list | tuple):
        return [_plain(item, opaque) for item in value]
    if isinstance(value, dict):
        # Its keys are anybody's words: beside ours they could pass for ours.
        return {_CLASS: _OBJECT, _ITEMS: [[name, _plain(item, opaque)] for name, item in value.items()]}
    return value


def _frozen(value: object) -> object:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value
