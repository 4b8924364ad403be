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
from collections.abc import Callable, Mapping
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

Check = Callable[[str, object], object]
"""(field name, raw value) → checked value."""
_MISSING = object()
_SCALARS = frozenset((str, int, float, bool, type(None)))


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
    for name, check, required, nullable in _plan(key):
        value = data.get(name, _MISSING)
        if value is not _MISSING:
            values[name] = check(name, value)
        elif required and nullable:
            values[name] = None  # `encode` leaves None out
        elif required:
            raise DecodeError(f"field {name!r} is missing")
    return cls(**values)


def encode(message: Message) -> dict[str, object]:
    """The JSON-able form of a message, its tag first. None is left out, unless metadata say `nullable`."""
    return _plain_fields(message, {"type": message.type})


def _plain_fields(value: Any, into: dict[str, object]) -> dict[str, object]:
    cls: Any = type(value)
    for name, nullable in _names(cls):
        item = getattr(value, name)
        if item is not None or nullable:
            into[name] = item if type(item) in _SCALARS else _plain(item)
    return into


@cache
def _names(cls: type[Any]) -> tuple[tuple[str, bool], ...]:
    """(name, is written when None) of each field."""
    return tuple((f.name, bool(f.metadata.get("nullable"))) for f in fields(cls))


def _plain(value: object) -> object:
    if type(value) in _SCALARS:
        return value
    match value:
        case Enum():
            return value.value
        case tuple() | list():
            return [item if type(item) in _SCALARS else _plain(item) for item in value]
        case Mapping():
            return {str(key): _plain(item) for key, item in value.items()}
        case _ if is_dataclass(value):
            return _plain_fields(value, {})
        case _:
            return value


@cache
def _plan(cls: type[Any]) -> tuple[tuple[str, Check, bool, bool], ...]:
    """(name, check, is required, may be None) of each field: annotations are slow to read, so once per
    class."""
    hints = get_type_hints(cls, include_extras=True)
    return tuple(
        (
            f.name,
            _make_check(hints[f.name]),
            f.default is MISSING and f.default_factory is MISSING,
            type(None) in get_args(hints[f.name]),
        )
        for f in fields(cls)
    )


def _make_check(annotation: Any) -> Check:
    """What turns a field's raw value into a valid one, or raises DecodeError."""
    if get_origin(annotation) is not Annotated:
        return _make_type_check(annotation)
    annotation, *limits = get_args(annotation)
    check = _make_type_check(annotation)
    if annotation in (int, float) and len(limits) == 1 and isinstance(limits[0], Range):
        return _make_range_check(annotation, check, limits[0])

    def check_limited(name: str, value: object) -> object:
        checked = check(name, value)
        for limit in limits:
            _check_limit(name, limit, checked)
        return checked

    return check_limited


def _make_range_check(number: type[int] | type[float], check: Check, limit: Range) -> Check:
    """The common case first, as `_make_scalar_check` does; NaN is in no range."""
    low, high = limit.low, limit.high

    def check_in_range(name: str, value: object) -> object:
        if type(value) is number and low <= value <= high:
            return value
        checked = check(name, value)
        _check_limit(name, limit, checked)
        return checked

    return check_in_range


def _make_type_check(annotation: Any) -> Check:
    annotation = getattr(annotation, "__supertype__", annotation)  # NewType
    origin, args = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return _make_optional_check(args)
    if origin is Literal:
        return _make_literal_check(args)
    if origin is tuple:
        return _make_tuple_check(args[0])
    if origin is dict:
        return _make_dict_check(*args)
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return _make_enum_check(annotation)
    if is_dataclass(annotation) and isinstance(annotation, type):
        return _make_object_check(annotation)
    return _make_scalar_check(annotation)


def _make_optional_check(args: tuple[Any, ...]) -> Check:
    check = _make_check(next(arg for arg in args if arg is not type(None)))
    if type(None) not in args:
        return check
    return lambda name, value: None if value is None else check(name, value)


def _make_literal_check(args: tuple[Any, ...]) -> Check:
    def check(name: str, value: object) -> object:
        if value in args and type(value) is type(args[0]):
            return value
        raise DecodeError(f"field {name!r} must be one of {', '.join(map(str, args))}")

    return check


def _make_tuple_check(item: Any) -> Check:
    check_item = _make_check(item)

    def check(name: str, value: object) -> object:
        if not isinstance(value, (list, tuple)):
            raise DecodeError(f"field {name!r} must be a list")
        return tuple([check_item(name, item) for item in value])

    return check


def _make_dict_check(key: Any, item: Any) -> Check:
    check_key, check_item = _make_check(key), _make_check(item)

    def check(name: str, value: object) -> object:
        if not isinstance(value, dict):
            raise DecodeError(f"field {name!r} must be an object")
        return {check_key(name, k): check_item(name, v) for k, v in value.items()}

    return check


def _make_enum_check(enum: type[Enum]) -> Check:
    def check(name: str, value: object) -> object:
        try:
            return enum(value)
        except ValueError:
            known = ", ".join(str(member.value) for member in enum)
            raise DecodeError(f"field {name!r} must be one of {known}") from None

    return check


def _make_object_check(cls: type[Any]) -> Check:
    def check(name: str, value: object) -> object:
        if not isinstance(value, dict):
            raise DecodeError(f"field {name!r} must be an object")
        return decode_fields(cls, value)

    return check


def _make_scalar_check(annotation: Any) -> Check:
    """The common case first: exactly this type, and nothing about it that needs a closer look."""
    if annotation is bool:
        return lambda name, value: value if type(value) is bool else _check_scalar(name, bool, value)
    if annotation is int:
        return lambda name, value: (
            value if type(value) is int and -(2**63) <= value < 2**63 else _check_scalar(name, int, value)
        )
    if annotation is float:
        return lambda name, value: (
            value if type(value) is float and math.isfinite(value) else _check_scalar(name, annotation, value)
        )
    return lambda name, value: (
        value if type(value) is str and value.isascii() else _check_scalar(name, annotation, value)
    )


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
        value = int(value)  # JavaScript has one number type
    if annotation is int and isinstance(value, int) and abs(value) >= 2**63:  # orjson rounds them down to it
        raise DecodeError(f"field {name!r} must be an integer of 64 bits")
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
