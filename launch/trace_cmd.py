"""`turboserve trace describe | import | generate | scale`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from launch.settings import SettingsError
from launch.supervisor import StartError
from launch.trace_file import load_trace
from scheduler.sim.generate import FAMILIES, describe, generate, resize
from scheduler.sim.importing import FORMATS, TOKENS_PER_S, import_trace
from scheduler.trace import MAX_T_S, Trace, write_trace

__all__ = ["main"]


def main(arguments: Sequence[str]) -> int:
    """Do what the first word says.

    Raises:
        SettingsError: an argument or a file can't be used.
        StartError: the trace can't be written.
    """
    options = _parser().parse_args(arguments)
    if options.what == "describe":
        for name, value in describe(load_trace(options.trace)).items():
            print(f"{name:16} {value:,}")
        return 0
    try:
        trace = _make(options)
    except ValueError as exc:
        raise SettingsError(str(exc)) from exc
    except OSError as exc:
        raise SettingsError(f"{options.trace} can't be read: {exc.strerror}") from exc
    if not trace.duration_s <= MAX_T_S:  # nobody could read it
        raise SettingsError(f"a trace may last {MAX_T_S:.0f} s, this one would last {trace.duration_s:g}")
    return _write(trace, options.output)


def _make(options: argparse.Namespace) -> Trace:
    match options.what:
        case "import":
            with open(options.trace, encoding="utf-8-sig", newline="") as lines:
                trace = import_trace(options.format, lines, tokens_per_s=options.tokens_per_s)
        case "generate":
            return generate(
                options.family,
                seed=options.seed,
                duration_s=options.duration_s,
                intensity=options.intensity,
            )
        case _:
            trace = load_trace(options.trace)
    if options.time_scale != 1.0:
        trace = trace.scaled(options.time_scale)
    return trace if options.factor == 1.0 else resize(trace, options.factor, seed=options.seed)


def _write(trace: Trace, path: str | None) -> int:
    lines = write_trace(trace)
    try:
        if path is None:
            sys.stdout.writelines(lines)
            sys.stdout.flush()
            return 0
        with open(path, "w", encoding="utf-8") as file:
            file.writelines(lines)
    except BrokenPipeError:
        raise  # whoever reads has seen enough
    except OSError as exc:
        raise StartError(f"the trace can't be written: {exc}") from exc
    print(f"{len(trace.events)} events written to {path}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="turboserve trace", description="Look at traces, and make them.", allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    describe_ = commands.add_parser("describe", help="counts, peaks and means of a trace")
    import_ = commands.add_parser("import", help="make one of a public trace of a language-model service")
    generate_ = commands.add_parser("generate", help="draw one")
    scale = commands.add_parser("scale", help="more or fewer sessions, faster or slower")
    for each in (describe_, import_, scale):
        each.add_argument("trace", metavar="FILE")
    import_.add_argument("--format", required=True, choices=list(FORMATS))
    import_.add_argument(
        "--tokens-per-s", type=float, default=TOKENS_PER_S, metavar="X", help="answer per second of video"
    )
    generate_.add_argument("--family", default="demo", choices=list(FAMILIES))
    generate_.add_argument("--duration-s", type=float, default=1_800.0, metavar="X")
    generate_.add_argument("--intensity", type=float, default=1.0, metavar="X", help="factor on arrivals")
    for each in (import_, scale):
        each.add_argument("--factor", type=float, default=1.0, metavar="X", help="of the number of sessions")
        each.add_argument("--time-scale", type=float, default=1.0, metavar="X", help="2: twice as fast")
    for each in (import_, generate_, scale):
        each.add_argument("--seed", type=int, default=0, metavar="N")
        each.add_argument("-o", "--output", metavar="FILE", help="unset: standard output")
    return parser
