"""Where settings come from: flags win over the environment, that over the file, that over the defaults.

A setting's name is the name of a field of a configuration dataclass. It is spelled the same everywhere:
`queue_limit = 64` in the TOML file, `TURBOSERVE_QUEUE_LIMIT=64`, `--queue-limit 64`. A name that several
roles have (redis, cluster, model, retain_s, …) is one setting for all of them.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import itertools
import math
import re
import tomllib
import types
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar, Union, get_args, get_origin, get_type_hints

from scheduler.messages import DecodeError, decode_fields

__all__ = [
    "ENVIRONMENT_PREFIX",
    "FILE_VARIABLE",
    "POSITIONAL",
    "SECRETS",
    "Setting",
    "SettingsError",
    "Value",
    "build",
    "catalogue",
    "environment_values",
    "file_values",
    "flag_name",
    "flag_values",
    "merge",
]

ENVIRONMENT_PREFIX: Final = "TURBOSERVE_"
FILE_VARIABLE: Final = "TURBOSERVE_CONFIG"
SECRETS: Final = frozenset({"link_secret", "token", "token_secrets"})
"""Never a flag: everybody on the machine can read a command line. Never shown either."""
POSITIONAL: Final = frozenset({"after", "before", "prompt"})
"""Given on the command line as they are, without a flag."""
_RESERVED: Final = re.compile(r"TURBOSERVE_((GATEWAY|SCHEDULER|ENGINE)_CONFIG|CONFIG|TEST_\w+)")

C = TypeVar("C")


class SettingsError(ValueError):
    """A setting can't be used. `str()` is a sentence that says which and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One name that can be set, and what it takes."""

    name: str
    kind: type
    """str, int, float, bool or tuple (of strings)."""
    optional: bool
    """May it be None, so unset?"""
    default: object
    help: str


@dataclass(frozen=True, slots=True)
class Value:
    """A typed value and the place it was set at, in words."""

    value: object
    source: str


def catalogue(*configs: type[Any]) -> dict[str, Setting]:
    """Every setting of these dataclasses by name; the first class that has a name describes it.

    Where one class wants an integer and another any number, any number can be set: `build` checks the rest.
    """
    settings: dict[str, Setting] = {}
    for config in configs:
        hints, docs = get_type_hints(config), _field_docs(config)
        for field in fields(config):
            kind, optional = _kind(hints[field.name])
            known = settings.get(field.name)
            if known is not None and known.kind is not kind:
                assert {known.kind, kind} == {int, float}, f"setting {field.name!r} has two types"
                settings[field.name] = replace(known, kind=float)
            if known is None:
                settings[field.name] = Setting(
                    name=field.name,
                    kind=kind,
                    optional=optional,
                    default=field.default,
                    help=docs.get(field.name, ""),
                )
    return settings


def _kind(annotation: Any) -> tuple[type, bool]:
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    annotation = getattr(annotation, "__supertype__", annotation)  # NewType
    if get_origin(annotation) in (Union, types.UnionType):
        (inner,) = (arg for arg in get_args(annotation) if arg is not type(None))
        return _kind(inner)[0], True
    kind = get_origin(annotation) or annotation
    assert kind in (str, int, float, bool, tuple), f"no setting can be of type {annotation}"
    return kind, False


def _field_docs(config: type[Any]) -> dict[str, str]:
    """The string below each field, for `--help`."""
    (class_node,) = ast.parse(inspect.getsource(config)).body
    assert isinstance(class_node, ast.ClassDef)
    docs: dict[str, str] = {}
    for field, text in itertools.pairwise(class_node.body):
        match field, text:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(doc))):
                docs[name] = " ".join(doc.split())
            case _:
                pass
    return docs


def flag_name(name: str) -> str:
    """`queue_limit` as it is spelled on a command line."""
    return "--" + name.replace("_", "-")


def flag_values(settings: Mapping[str, Setting], flags: Mapping[str, str | bool | None]) -> dict[str, Value]:
    """What the command line sets; None is not given. Raises SettingsError."""
    given = {name: text for name, text in flags.items() if text is not None}
    return {name: _read(settings[name], text, f"flag {flag_name(name)}") for name, text in given.items()}


def environment_values(settings: Mapping[str, Setting], environment: Mapping[str, str]) -> dict[str, Value]:
    """What TURBOSERVE_* variables set. Raises SettingsError, also for a name that nothing knows."""
    values: dict[str, Value] = {}
    for variable, text in environment.items():
        if not variable.startswith(ENVIRONMENT_PREFIX) or _RESERVED.fullmatch(variable):
            continue
        name = variable.removeprefix(ENVIRONMENT_PREFIX).lower()
        source = f"environment variable {variable}"
        values[name] = _read(_known(settings, name, source), text, source)
    return values


def file_values(settings: Mapping[str, Setting], path: Path) -> dict[str, Value]:
    """What a TOML file sets. Raises SettingsError: unreadable, not TOML, an unknown name or a wrong type."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise SettingsError(f"cannot read the configuration file {path}: {exc.strerror}") from exc
    except ValueError as exc:
        raise SettingsError(f"the configuration file {path} is not valid TOML: {exc}") from exc
    source = f"file {path}"
    return {name: _typed(_known(settings, name, source), item, source) for name, item in table.items()}


def merge(*layers: Mapping[str, Value]) -> dict[str, Value]:
    """One table of several, the weakest first."""
    return {name: value for layer in layers for name, value in layer.items()}


def build(config: type[C], values: Mapping[str, Value], **fixed: object) -> C:
    """Construct a configuration from what was set and what the caller fixes (None: not fixed).

    Raises:
        SettingsError: a value is missing or out of its range.
    """
    names = [field.name for field in fields(config)]  # type: ignore[arg-type]
    chosen = {name: values[name].value for name in names if name in values}
    chosen |= {name: item for name, item in fixed.items() if item is not None}
    try:
        return decode_fields(config, chosen)
    except DecodeError as exc:
        missing = re.fullmatch(r"field '(\w+)' is missing", str(exc))
        if missing is None:
            raise SettingsError(_with_sources(str(exc), values)) from exc
        name = missing[1]
        raise SettingsError(
            f"{name} is not set: give {_ways(name)}, or set it in the configuration file"
        ) from exc
    except ValueError as exc:
        raise SettingsError(_with_sources(str(exc), values)) from exc


def _ways(name: str) -> str:
    variable = ENVIRONMENT_PREFIX + name.upper()
    if name in SECRETS:
        return variable
    return f"{f'{name.upper()} after the command' if name in POSITIONAL else flag_name(name)} or {variable}"


def _with_sources(text: str, values: Mapping[str, Value]) -> str:
    """The message, and where each value that it names was set."""
    named = [name for name in values if re.search(rf"\b{name}\b", text)]
    sources = ", ".join(f"{name} is set by {values[name].source}" for name in named)
    return f"{text} ({sources})" if sources else text


def _known(settings: Mapping[str, Setting], name: str, source: str) -> Setting:
    setting = settings.get(name)
    if setting is None:
        close = difflib.get_close_matches(name, settings, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise SettingsError(f"{source}: there is no setting called {name}{hint}")
    return setting


def _typed(setting: Setting, item: object, source: str) -> Value:
    """A value from TOML, which has types of its own."""
    if setting.kind is float and type(item) is int:
        item = float(item)
    if setting.kind is tuple and isinstance(item, list) and all(isinstance(part, str) for part in item):
        return Value(tuple(item), source)
    if type(item) is not setting.kind:
        shown = "what it is" if setting.name in SECRETS else repr(item)
        raise SettingsError(f"{source}: {setting.name} must be {_WANTED[setting.kind]}, not {shown}")
    return Value(item, source)


def _read(setting: Setting, text: str | bool, source: str) -> Value:
    """A value from a flag or a variable, which are text."""
    if isinstance(text, bool):
        return Value(text, source)
    try:
        return Value(_parse(setting.kind, text), source)
    except (ValueError, KeyError):
        wanted = _WANTED[setting.kind]
        raise SettingsError(f"{source}: {setting.name} must be {wanted}, not {text!r}") from None


def _parse(kind: type, text: str) -> object:
    if kind is bool:
        return _TRUTH[text.lower()]
    if kind is tuple:
        return tuple(part.strip() for part in text.split(",") if part.strip())
    value = kind(text)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("not finite")
    return value


_TRUTH: Final[Mapping[str, bool]] = {
    "1": True,
    "true": True,
    "yes": True,
    "0": False,
    "false": False,
    "no": False,
}
_WANTED: Final[Mapping[type, str]] = {
    str: "a string",
    int: "an integer",
    float: "a number",
    bool: "true or false",
    tuple: "a list of strings (separated by commas outside the file)",
}
