"""`bench/fuzz.py` guided by coverage: for runs of hours, on the session machine and both codecs.

An input is a script of one connection: which flavour of the wire, then for each step how long it comes after
the one before, what happens (a client's frame, the store's answer, a link message, a chunk part, a tick), and
its bytes. libFuzzer changes scripts that reached new lines of `gateway/` and `scheduler/`, beginning with one
for each kind of message. What counts as found is as in `bench/fuzz.py`: a crash, a hang of 5 s, a flood of
outputs.

Run: .venv/bin/pip install -c constraints.txt -e '.[fuzz]', then
    .venv/bin/python -m bench.fuzz_guided [--seconds 60] [--corpus FOLDER]
A corpus that is kept is where the next run goes on. Exit status 1 when something was found: the script is in
`crash-…` or `timeout-…`, and `--again FILE` runs it alone.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import atheris

with atheris.instrument_imports(include=["gateway", "scheduler"], enable_loader_override=False):
    import msgpack

    from bench.fuzz import CLIENT, LINK, MAX_OUTPUTS, Fuzzed, Maker
    from bench.stats import machine, print_json, print_table
    from gateway import protocol as wire

FLAVOURS = tuple(sorted(wire.CODECS))
PAUSES_MS = (0.0, 5.0, 20.0, 600.0, 6_000.0)
CLIENT_STEP, ANSWER_STEP, REPLY_STEP, PART_STEP, TICK_STEP = range(5)
MAX_SCRIPT_BYTES = 4_096
STATUS = re.compile(r"#(\d+)\s+\w+\s+cov: (\d+) ft: (\d+) corp: (\d+)/.*exec/s: (\d+)")
"""What libFuzzer prints for each input that reached something new, and now and then."""


class Script(Maker):
    """Takes from an input what `Maker` draws. Beyond its end all is 0 and empty."""

    def __init__(self, data: bytes) -> None:
        super().__init__(0)
        self._left = memoryview(data)

    def is_over(self) -> bool:
        return not self._left

    def frame(self, table: tuple[dict[str, Any], ...], *, packed: bool) -> str | bytes:
        piece = self.part()
        return piece if packed else piece.decode(errors="replace")

    def part(self) -> bytes:
        size = int.from_bytes(self._take(2), "little")
        return self._take(size)

    def choose(self, choices: tuple[Any, ...]) -> Any:
        return choices[int.from_bytes(self._take(1), "little") % len(choices)]

    def _take(self, size: int) -> bytes:
        taken, self._left = self._left[:size], self._left[size:]
        return bytes(taken)


def run_script(data: bytes) -> None:
    """One connection. Raises whatever is wrong."""
    script = Script(data)
    fuzzed = Fuzzed(script, script.choose(FLAVOURS))
    steps = (
        fuzzed.receive_client,
        fuzzed.receive_answer,
        fuzzed.receive_reply,
        fuzzed.receive_part,
        fuzzed.machine.receive_tick,
    )
    now_ms = 0.0
    while not script.is_over() and not fuzzed.is_over():
        fuzzed.messages += 1
        now_ms += script.choose(PAUSES_MS)
        outputs = script.choose(steps)(now_ms)
        fuzzed.take(outputs)
        if len(outputs) > MAX_OUTPUTS:
            raise AssertionError(f"a flood of {len(outputs)} outputs")
    fuzzed.take(fuzzed.machine.receive_disconnect())


def seeds() -> Iterator[bytes]:
    """A session with one more message of each kind, in both flavours."""
    for flavour, name in enumerate(FLAVOURS):
        is_packed = name == wire.MSGPACK_SUBPROTOCOL
        begin = bytes((flavour,)) + _step(CLIENT_STEP, _encode(CLIENT[0], is_packed))
        begin += bytes((0, ANSWER_STEP, 1, 0))  # created, and on an engine
        begin += bytes((0, ANSWER_STEP)) + _step(REPLY_STEP, _encode(LINK[0], False))  # link up, subscribed
        for message in CLIENT:
            yield begin + _step(CLIENT_STEP, _encode(message, is_packed)) + bytes((1, ANSWER_STEP, 1, 0))
            yield bytes((flavour,)) + _step(CLIENT_STEP, _encode(message, is_packed)) + begin[1:]
        for message in LINK:
            yield begin + _step(REPLY_STEP, _encode(message, False)) + bytes((4, TICK_STEP))
        header = _encode(LINK[-1], False)
        yield begin + _step(PART_STEP, len(header).to_bytes(4, "big") + header + b"x" * 8)


def _step(kind: int, piece: bytes) -> bytes:
    return bytes((0, kind)) + len(piece).to_bytes(2, "little") + piece


def _encode(message: dict[str, Any], is_packed: bool) -> bytes:
    return b"\x00" + bytes(msgpack.packb(message)) if is_packed else json.dumps(message).encode()


def explore(corpus: Path, seconds: int) -> tuple[int, list[tuple[int, ...]]]:
    """Run libFuzzer, which ends its process, in one of its own.

    Returns its exit status and (executions, coverage, features, corpus, executions per s) as it went on.
    """
    for number, seed in enumerate(seeds()):
        (corpus / f"seed-{number:03}").write_bytes(seed)
    options = (f"-max_total_time={seconds}", f"-max_len={MAX_SCRIPT_BYTES}", "-timeout=5")
    command = [sys.executable, "-m", "bench.fuzz_guided", "--libfuzzer", str(corpus), *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, errors="replace")
    assert process.stderr is not None
    seen: list[tuple[int, ...]] = []
    others: list[str] = []
    for line in process.stderr:
        if status := STATUS.match(line):
            seen.append(tuple(map(int, status.groups())))
        else:
            others.append(line)
    if process.wait():
        sys.stderr.writelines(others)
    return process.returncode, seen


def main() -> int:
    if sys.argv[1:2] == ["--libfuzzer"]:
        atheris.Setup([sys.argv[0], *sys.argv[2:]], run_script)
        atheris.Fuzz()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--again", type=Path)
    options = parser.parse_args()
    if options.again is not None:
        run_script(options.again.read_bytes())
        return 0
    print(f"machine: {machine()}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        corpus = options.corpus or Path(folder)
        corpus.mkdir(parents=True, exist_ok=True)
        status, seen = explore(corpus, options.seconds)
    doublings = [s for a, s in itertools.pairwise(seen) if s[0].bit_length() > a[0].bit_length()]
    rows = [seen[0], *doublings, seen[-1]]
    print_table(["executions", "coverage", "features", "corpus", "executions/s"], rows)
    done, coverage, features, kept, rate = seen[-1]
    print_json(
        {
            "bench": "fuzz_guided",
            "seconds": options.seconds,
            "executions": done,
            "executions_per_s": rate,
            "coverage": [seen[0][1], coverage],
            "features": [seen[0][2], features],
            "corpus": kept,
            "found": status != 0,
        }
    )
    return 1 if status else 0


if __name__ == "__main__":
    sys.exit(main())
