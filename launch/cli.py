"""The command line: which commands there are, which settings each takes, and how errors end them."""

from __future__ import annotations

import argparse
import importlib
import os
import select
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from engine.config import EngineConfig
from gateway.config import GatewayConfig
from launch import commands as work
from launch.config import (
    ClientConfig,
    EngineStartConfig,
    ProfileConfig,
    ProvisionerConfig,
    StatusConfig,
    TokenConfig,
    UpConfig,
)
from launch.loadtest.config import CompareConfig, LoadtestConfig
from launch.settings import (
    FILE_VARIABLE,
    POSITIONAL,
    SECRETS,
    Setting,
    SettingsError,
    Value,
    catalogue,
    environment_values,
    file_values,
    flag_name,
    flag_values,
    merge,
)
from launch.supervisor import StartError
from scheduler.config import SchedulerConfig

__all__ = ["COMMANDS", "Command", "main", "parse"]

_SIGNALLED: Final = 128
_IDS: Final = frozenset({"engine_id", "gateway_id", "scheduler_id"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One word after `turboserve`."""

    run: Callable[[Mapping[str, Value]], int]
    help: str
    configs: tuple[type[Any], ...]
    without: frozenset[str] = frozenset()
    """Settings of the configs that this command decides itself."""


_WHOLE: Final = (UpConfig, GatewayConfig, SchedulerConfig, EngineConfig)
_NOT_WHOLE: Final = _IDS | {"link_port", "provisioner"}
"""What a whole cluster chooses by itself."""

COMMANDS: Final[Mapping[str, Command]] = {
    "up": Command(
        run=work.run_up,
        help="run a whole cluster on this machine",
        configs=_WHOLE,
        without=_NOT_WHOLE,
    ),
    "gateway": Command(run=work.run_gateway, help="run one gateway", configs=(GatewayConfig,)),
    "scheduler": Command(run=work.run_scheduler, help="run one scheduler", configs=(SchedulerConfig,)),
    "engine": Command(run=work.run_engine, help="run one engine", configs=(EngineConfig, EngineStartConfig)),
    "provisioner": Command(
        run=work.run_provisioner,
        help="keep a cluster's engines as Kubernetes pods",
        configs=(ProvisionerConfig,),
    ),
    "client": Command(
        run=work.run_client,
        help="record one session to a video file",
        configs=(ClientConfig,),
    ),
    "loadtest": Command(
        run=work.run_loadtest,
        help="play a load of real clients on a cluster, and judge what they saw",
        configs=(LoadtestConfig,),
    ),
    "compare": Command(
        run=work.run_compare,
        help="put the results of two load tests or simulations side by side",
        configs=(CompareConfig,),
    ),
    "profile": Command(
        run=work.run_profile, help="measure what a model costs on a device", configs=(ProfileConfig,)
    ),
    "status": Command(
        run=work.run_status, help="show what a cluster does, once or live", configs=(StatusConfig,)
    ),
    "token": Command(
        run=work.run_token,
        help="sign a token for a gateway with auth, e.g. for metrics or for turboserve status",
        configs=(TokenConfig,),
    ),
    "doctor": Command(
        run=work.run_doctor,
        help="check what `up` with the same settings needs",
        configs=_WHOLE,
        without=_NOT_WHOLE,
    ),
}

_ALONE: Final[Mapping[str, tuple[str, str]]] = {
    "simulate": ("launch.simulate_cmd", "run a policy over a trace without a cluster"),
    "trace": ("launch.trace_cmd", "look at traces, and make them"),
    "model": ("launch.model_cmd", "bring in published checkpoints, list and check models"),
    "evaluate": ("launch.evaluation.run", "compare all policies over traces, sizes and profiles"),
}
"""Commands that share no settings with a cluster: (module whose `main` parses the rest, help)."""


def main(arguments: Sequence[str] | None = None, *, commands: Mapping[str, Command] = COMMANDS) -> int:
    """Run `turboserve`. Exit status: 0 done, 1 it failed, 2 a wrong command line or setting; 130 after Ctrl-C
    and 141 where who read what was printed reads no more, as shells have it.
    """
    try:
        try:
            return _run(sys.argv[1:] if arguments is None else arguments, commands)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()  # at the interpreter's end it would be too late for us
    except BrokenPipeError:
        if not _is_unread():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _SIGNALLED + signal.SIGPIPE


def _run(arguments: Sequence[str], commands: Mapping[str, Command]) -> int:
    name = arguments[0] if arguments else ""
    try:
        if name in _ALONE:
            found: int = importlib.import_module(_ALONE[name][0]).main(arguments[1:])
            return found
        parsed = parse(arguments, commands)
        name = parsed.pop("command")
        command = commands[name]
        return command.run(_collect(command, parsed.pop("config"), parsed))
    except SettingsError as exc:
        return _fail(f"turboserve {name}: {exc}", 2)
    except StartError as exc:
        return _fail(f"turboserve {name}: {exc}", 1)
    except KeyboardInterrupt:
        return _SIGNALLED + signal.SIGINT


def _is_unread() -> bool:
    """Is our standard output a pipe that nobody reads any more?"""
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)
    return any(events & select.POLLERR for _, events in output.poll(0))


def parse(arguments: Sequence[str], commands: Mapping[str, Command] = COMMANDS) -> dict[str, Any]:
    """What a command line says, untyped as yet. Exits with status 2 where it can't be read."""
    return vars(_parser(commands).parse_args(arguments))


def _fail(sentence: str, status: int) -> int:
    print(sentence, file=sys.stderr)
    return status


def _collect(
    command: Command, file: str | None, flags: Mapping[str, str | bool | None]
) -> Mapping[str, Value]:
    """Everything that is set. File and environment may also hold settings of other commands."""
    configs = dict.fromkeys(config for each in COMMANDS.values() for config in each.configs)
    known = catalogue(*configs)
    path = file or os.environ.get(FILE_VARIABLE)
    layers = [
        file_values(known, Path(path)) if path else {},
        environment_values(known, os.environ),
        flag_values(_settings(command), flags),
    ]
    taken = _settings(command).keys() | SECRETS
    return {name: value for name, value in merge(*layers).items() if name in taken}


def _settings(command: Command) -> dict[str, Setting]:
    found = catalogue(*command.configs)
    return {name: setting for name, setting in found.items() if name not in command.without}


def _parser(commands: Mapping[str, Command]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="turboserve",
        description="Serve streaming video generation: many live, steerable sessions on few GPUs.",
        epilog="Every setting can also be TURBOSERVE_<NAME> in the environment or <name> in a TOML file.",
        allow_abbrev=False,
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in commands.items():
        sub = subparsers.add_parser(
            name, help=command.help, description=command.help + ".", allow_abbrev=False
        )
        sub.add_argument("--config", metavar="FILE", help="TOML file with settings")
        for setting in _settings(command).values():
            _add_setting(sub, setting)
    for name, (_, text) in _ALONE.items():
        subparsers.add_parser(name, help=text)  # for the list; it parses its own arguments
    return parser


def _add_setting(parser: argparse.ArgumentParser, setting: Setting) -> None:
    if setting.name in SECRETS:
        return
    text = setting.help.replace("%", "%%")
    if setting.name in POSITIONAL:
        parser.add_argument(setting.name, nargs="?", metavar=setting.name.upper(), help=text)
    elif setting.kind is bool:
        parser.add_argument(
            flag_name(setting.name), action=argparse.BooleanOptionalAction, default=None, help=text
        )
    else:
        short = ["-o"] if setting.name == "output" else []
        metavar = {int: "N", float: "X", tuple: "A,B,…"}.get(setting.kind, "TEXT")
        parser.add_argument(*short, flag_name(setting.name), metavar=metavar, help=text)
