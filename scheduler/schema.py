"""Typed, bounded messages as frozen dataclasses: one decoder for everything that comes from outside.

A message class names its tag in a class variable `type` and its limits in its annotations:

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Prompt:
        type: ClassVar[str] = "prompt"
        text: Annotated[str, Chars(2_000)]

`decode` looks the tag up in an explicit table and checks every field; no class is resolved by name.
Unknown fields are ignored, so that an older process can read a newer one's messages.
"""

from __future__ import annotations

import math
import types
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from enum import Enum
from functools import cache
from typing import (
    Annotated,
    Any,
    ClassVar,
    Literal,
    Protocol,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

__all__ = ["Chars", "DecodeError", "Items", "Message", "Range", "decode", "decode_fields", "encode"]


class DecodeError(ValueError):
    """A message is not what the schema says. `str()` is a sentence for the sender."""

    def __init__(self, text: str, *, unknown_type: bool = False) -> None:
        super().__init__(text)
        self.unknown_type = unknown_type


@dataclass(frozen=True, slots=True)
class Chars:
    """Limit of a string, in characters."""

    high: int
    low: int = 0


@dataclass(frozen=True, slots=True)
class Range:
    """Limits of a number, both included."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Items:
    """Limit of a list or object, in entries."""

    high: int


Limit = Chars | Range | Items


class Message(Protocol):
    """A dataclass with a wire tag."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]
    type: ClassVar[str]


M = TypeVar("M")


def decode(table: Mapping[str, type[M]], data: object) -> M:
    """Turn a decoded JSON or msgpack object into the message class that its `type` names.

    Raises:
        DecodeError: not an object, unknown `type`, or a field that is missing, mistyped or out of its limits.
    """
    if not isinstance(data, dict):
        raise DecodeError("a message must be an object with a field 'type'")
    tag = data.get("type")
    if not isinstance(tag, str):
        raise DecodeError("field 'type' must be a string")
    message_class = table.get(tag)
    if message_class is None:
        known = ", ".join(sorted(table))
        raise DecodeError(f"unknown message type {tag[:32]!r}; known types: {known}", unknown_type=True)
    return decode_fields(message_class, data)


def decode_fields(cls: type[M], data: Mapping[str, object]) -> M:
    """Build dataclass `cls` from a mapping, checking types and limits. Raises DecodeError."""
    values: dict[str, object] = {}
    key: Any = cls  # a TypeVar is not Hashable to mypy
    for name, annotation, required in _plan(key):
        if name in data:
            values[name] = _check(name, annotation, data[name])
        elif required and type(None) in get_args(annotation):
            values[name] = None  # `encode` leaves None out
        elif required:
            raise DecodeError(f"field {name!r} is missing")
    return cls(**values)


def encode(message: Message) -> dict[str, object]:
    """The JSON-able form of a message, its tag first. None is left out, unless metadata say `nullable`."""
    return {"type": message.type, **_plain_fields(message)}


def _plain_fields(value: Any) -> dict[str, object]:
    items = ((f, getattr(value, f.name)) for f in fields(value))
    return {f.name: _plain(item) for f, item in items if item is not None or f.metadata.get("nullable")}


def _plain(value: object) -> object:
    match value:
        case Enum():
            return value.value
        case tuple() | list():
            return [_plain(item) for item in value]
        case Mapping():
            return {str(key): _plain(item) for key, item in value.items()}
        case _ if is_dataclass(value):
            return _plain_fields(value)
        case _:
            return value


@cache
def _plan(cls: type[Any]) -> tuple[tuple[str, Any, bool], ...]:
    """(name, annotation, is required) of each field; type hints are slow to resolve, so once per class."""
    hints = get_type_hints(cls, include_extras=True)
    return tuple(
        (f.name, hints[f.name], f.default is MISSING and f.default_factory is MISSING) for f in fields(cls)
    )


def _check(name: str, annotation: Any, value: object) -> object:
    limits: tuple[Limit, ...] = ()
    if get_origin(annotation) is Annotated:
        annotation, *limits_ = get_args(annotation)
        limits = tuple(limits_)
    checked = _check_type(name, annotation, value)
    for limit in limits:
        _check_limit(name, limit, checked)
    return checked


def _check_type(name: str, annotation: Any, value: object) -> object:  # noqa: C901 - one arm per kind of type
    annotation = getattr(annotation, "__supertype__", annotation)  # NewType
    origin, args = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _check(name, next(arg for arg in args if arg is not type(None)), value)
    if origin is Literal:
        if value in args and type(value) is type(args[0]):
            return value
        raise DecodeError(f"field {name!r} must be one of {', '.join(map(str, args))}")
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise DecodeError(f"field {name!r} must be a list")
        return tuple(_check(name, args[0], item) for item in value)
    if origin is dict:
        if not isinstance(value, dict):
            raise DecodeError(f"field {name!r} must be an object")
        return {_check(name, args[0], k): _check(name, args[1], v) for k, v in value.items()}
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        try:
            return annotation(value)
        except ValueError:
            known = ", ".join(str(member.value) for member in annotation)
            raise DecodeError(f"field {name!r} must be one of {known}") from None
    if is_dataclass(annotation) and isinstance(annotation, type):
        if not isinstance(value, dict):
            raise DecodeError(f"field {name!r} must be an object")
        return decode_fields(annotation, value)
    return _check_scalar(name, annotation, value)


def _check_scalar(name: str, annotation: Any, value: object) -> object:
    if annotation is float and isinstance(value, int | float) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:  # an integer of 400 digits
            number = math.inf
        if not math.isfinite(number):
            raise DecodeError(f"field {name!r} must be a finite number")
        # A `ping` of nanoseconds comes back to the last digit; every encoding of ours has 64-bit integers.
        return value if isinstance(value, int) and abs(value) < 2**63 else number
    if annotation is int and isinstance(value, float) and value.is_integer():
        return int(value)  # JavaScript has one number type
    if annotation is int and isinstance(value, bool) or not isinstance(value, annotation):
        wanted = {str: "a string", int: "an integer", float: "a number", bool: "true or false"}
        raise DecodeError(f"field {name!r} must be {wanted.get(annotation, annotation.__name__)}")
    if isinstance(value, str) and not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
        raise DecodeError(f"field {name!r} must be valid Unicode")  # half a surrogate pair can't be sent on
    return value


def _check_limit(name: str, limit: Limit, value: Any) -> None:
    match limit:
        case _ if value is None:
            return
        case Chars():
            if not limit.low <= len(value) <= limit.high:
                raise DecodeError(f"field {name!r} must have {limit.low} to {limit.high} characters")
        case Range():
            if not limit.low <= value <= limit.high:
                raise DecodeError(
                    f"field {name!r} must be between {_number(limit.low)} and {_number(limit.high)}"
                )
        case Items():
            if len(value) > limit.high:
                raise DecodeError(f"field {name!r} may have at most {limit.high} entries")


def _number(bound: float) -> str:
    """As a person writes it: no exponent, no `.0`."""
    return str(int(bound)) if float(bound).is_integer() else str(bound)
