"""docs/settings.md, from the code: every setting of every command.

Run: .venv/bin/python -m launch.settings_page > docs/settings.md
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING

from launch.cli import COMMANDS
from launch.settings import POSITIONAL, SECRETS, Setting, catalogue

__all__ = ["render"]

_HEAD = """\
# Settings

Written by `python -m launch.settings_page`. A setting is `--its-name` on a command line,
`TURBOSERVE_ITS_NAME` in the environment, `its_name` in the TOML file (`operations.md`); secrets are no flags.
Without a default it must be given, or is chosen at the start. A file with what most people change:

    redis = "rediss://turbo:PASSWORD@redis.internal:6379/0"
    auth = "token"
    token_secrets = ["at least 32 random characters"]
    model = "shapes"
    capacity = 4
    engines = 1
    max_engines = 4
    queue_limit = 64
    idle_close_s = 600
"""


def render() -> str:
    """The page."""
    return _HEAD + "".join(_rows())


def _rows() -> Iterator[str]:
    of_whom: dict[str, list[str]] = {}
    settings: dict[str, Setting] = {}
    for name, command in COMMANDS.items():
        for setting in catalogue(*command.configs).values():
            if setting.name not in command.without | POSITIONAL:
                of_whom.setdefault(setting.name, []).append(name)
                settings.setdefault(setting.name, setting)
    yield "\n| setting | commands | default | is |\n|---|---|---|---|\n"
    for name in sorted(settings):
        commands = ", ".join(of_whom[name])
        yield f"| `{name}` | {commands} | {_default(settings[name])} | {_cell(settings[name].help)} |\n"


def _default(setting: Setting) -> str:
    match setting.default:
        case value if value is MISSING or value is None or value == ():
            return "secret" if setting.name in SECRETS else "–"
        case bool() as value:
            return "yes" if value else "no"
        case tuple() as value:
            return f"`{','.join(value)}`"
        case value:
            return f"`{value}`" if value != "" else "–"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    print(render(), end="")
