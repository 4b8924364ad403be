"""Two-rank process groups between engines, over which session state moves.

Each engine hosts one TCPStore. The source of a migration calls: it names the group that it will use under
`migration/<wire version>/<id>` in the target's store, a cached one or `pair/<source>/<target>/<id>`. That was
never used before: a name used twice would hang when a peer has died in between. The target answers, in the
same store, whether it still has a cached one; if not, they meet afresh. Rank 0 calls.

Between engines of several ranks, every rank meets the same rank of the other engine, under the name of its
share (`share_of`), all of them in the TCPStores of the ranks 0. A source's rank says in that of its own
engine which steps its share has taken: rank 0 waits for each of them, and commits after the last.

A small message goes at once, into a receive that the other end posted ahead; between two that are computing,
each further turn costs milliseconds. Large tensors follow as messages of their own.

Everything here blocks and belongs on helper threads; every call has a time limit.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore, ProcessGroupGloo, TCPStore

from scheduler.messages import EngineId

__all__ = [
    "MAX_IDLE",
    "MAX_MESSAGE_BYTES",
    "DONE",
    "Pair",
    "PairLost",
    "Pairs",
    "Reports",
    "Step",
    "share_of",
]

WIRE_VERSION = 4
"""Raised by one whenever what engines send changes: engines of two versions do not find each other."""
MAX_MESSAGE_BYTES = 4 * 2**20
"""A receive of this size is posted before the peer sends, so that a message goes one way, without asking
first. gloo ends the process that gets more than it has posted: part of the wire version."""
Step = Literal["met", "ahead", "verified"]
"""Of a share: it has met its target, what can go ahead is there, all of it is there and verified."""
MAX_IDLE = 8
"""Groups that are kept for the next migration; beyond it the one unused for longest is closed."""
DONE = "done"
"""What a rank reports of a step; anything else is why it failed."""
POLL_S = 0.0002
"""Between looks at a GPU transfer, which no host call can wait for with a limit."""


class PairLost(Exception):
    """The other engine does not answer, or what it sends can't be right: this group is of no use any more."""


class Pair:
    """One end of a group. One thread at a time uses it; what one end sends, the other receives, in order."""

    def __init__(
        self, store: TCPStore, name: str, *, rank: int, host: str, device: torch.device, limit_s: float
    ) -> None:
        """Meet the other end. Raises PairLost."""
        self.name, self.device, self._store, self._peer = name, device, store, 1 - rank
        self._num_sent = self._num_received = 0
        self.outbox, self._inbox = (torch.empty(MAX_MESSAGE_BYTES, dtype=torch.uint8) for _ in range(2))
        """Of messages."""
        self._coming: Any = None
        """The posted receive of the next message."""
        try:
            prefixed, timeout = PrefixStore(name, store), timedelta(seconds=limit_s)
            gloo: Any = ProcessGroupGloo
            options = gloo._Options()
            options._devices = [gloo.create_device(hostname=host)]
            options._timeout = timeout
            self._control: Any = gloo(prefixed, rank, 2, options)
            self._bulk: Any = None
            if device.type == "cuda":
                self._bulk, self._stream = _nccl(prefixed, rank, timeout), torch.cuda.Stream(device)
        except (RuntimeError, ValueError) as exc:
            raise PairLost(f"no group with the other engine: {exc}") from exc

    @property
    def store(self) -> TCPStore:
        """A client of the target's store."""
        return self._store

    def send_message(self, num_bytes: int, *, limit_s: float) -> None:
        """Send the first bytes of `outbox`, all that is sent at once. Raises PairLost."""
        assert num_bytes <= MAX_MESSAGE_BYTES, f"a message of {num_bytes} bytes"
        self._post()
        self.send([self.outbox[:num_bytes]], limit_s=limit_s)

    def receive_message(self, *, limit_s: float) -> Tensor:
        """The next message, at the beginning of what is returned; valid until something is sent. Raises
        PairLost.
        """
        self._post()
        coming, self._coming = self._coming, None
        try:
            coming.wait(timedelta(seconds=limit_s))
        except RuntimeError as exc:
            raise PairLost(f"the transfer failed: {exc}") from exc
        return self._inbox

    def _post(self) -> None:
        if self._coming is not None:
            return
        tag, self._num_received = self._num_received, self._num_received + 1
        try:
            self._coming = self._control.recv([self._inbox], self._peer, tag)
        except (RuntimeError, AttributeError) as exc:  # AttributeError: it was closed by another thread
            raise PairLost(f"the transfer failed: {exc}") from exc

    def send(self, tensors: Sequence[Tensor], *, limit_s: float) -> None:
        """Send contiguous tensors. Raises PairLost."""
        first, self._num_sent = self._num_sent, self._num_sent + len(tensors)
        self._run(lambda group, at, tag: group.send([tensors[at]], self._peer, tag), tensors, first, limit_s)

    def receive(self, tensors: Sequence[Tensor], *, limit_s: float) -> None:
        """Fill contiguous tensors with what was sent, sizes and devices alike. Raises PairLost."""
        first, self._num_received = self._num_received, self._num_received + len(tensors)
        self._run(lambda group, at, tag: group.recv([tensors[at]], self._peer, tag), tensors, first, limit_s)

    def close(self) -> None:
        """Let the other end's calls fail."""
        for group in filter(None, (self._control, self._bulk)):
            group.abort()
        self._control = self._bulk = None

    def _run(
        self, start: Callable[[Any, int, int], Any], tensors: Sequence[Tensor], first: int, limit_s: float
    ) -> None:
        end_s = time.monotonic() + limit_s
        on_gpu = [at for at, tensor in enumerate(tensors) if tensor.numel() and tensor.is_cuda]
        on_host = [at for at, tensor in enumerate(tensors) if tensor.numel() and not tensor.is_cuda]
        try:
            works = [start(self._control, at, first + at) for at in on_host]
            if on_gpu:
                self._run_on_gpu(lambda at: start(self._bulk, at, first + at), on_gpu, end_s)
            for work in works:
                work.wait(timedelta(seconds=max(0.001, end_s - time.monotonic())))
        except (RuntimeError, AttributeError) as exc:  # AttributeError: it was closed by another thread
            raise PairLost(f"the transfer failed: {exc}") from exc

    def _run_on_gpu(self, start: Callable[[int], Any], places: Sequence[int], end_s: float) -> None:
        self._stream.wait_stream(torch.cuda.default_stream(self._stream.device))
        with torch.cuda.stream(self._stream):
            works = [start(at) for at in places]
            for work in works:
                work.wait()  # orders the stream; the host goes on
            done = torch.cuda.Event()
            done.record()
        while not done.query():
            if time.monotonic() > end_s:
                raise PairLost("the transfer between GPUs took too long")
            time.sleep(POLL_S)


class Reports:
    """How far the shares of sessions are that ranks above 0 of an engine move, for its rank 0."""

    def __init__(self, store: TCPStore) -> None:
        self._store = store

    def add(self, share: str, step: Step, word: str) -> None:
        """This rank's step is DONE, or why it failed. Raises PairLost."""
        try:
            self._store.set(_report_key(share, step), word)
        except (RuntimeError, ValueError) as exc:
            raise PairLost(f"rank 0 is gone: {exc}") from exc

    def wait(self, migration_id: str, ranks: int, step: Step, *, limit_s: float) -> None:
        """Until every rank above 0 has done this step. Raises PairLost."""
        for rank in range(1, ranks):
            key = _report_key(share_of(migration_id, rank), step)
            try:
                self._store.wait([key], timedelta(seconds=limit_s))
                word = self._store.get(key).decode()
                self._store.delete_key(key)
            except (RuntimeError, ValueError) as exc:
                raise PairLost(f"rank {rank} does not say that it has {step}: {exc}") from exc
            if word != DONE:
                raise PairLost(f"rank {rank}: {word}")

    def withdraw(self, share: str) -> None:
        """Take back what nobody has read of a share's."""
        with suppress(RuntimeError, ValueError):
            for step in get_args(Step):
                self._store.delete_key(_report_key(share, step))


class Pairs:
    """The meeting point of one engine and the idle groups of one of its ranks. Thread-safe."""

    def __init__(
        self, engine: EngineId, host: str, device: torch.device, *, meeting: str | None = None
    ) -> None:
        """Listen at `host`, any free port; with the address of rank 0's `meeting` point, use that instead.
        Raises OSError."""
        self._engine, self._host, self._device = engine, host, device
        self._idle: OrderedDict[str, tuple[EngineId | None, Pair]] = OrderedDict()
        """Name → (target if this engine is the source, group), the one unused for longest first."""
        self._lock = threading.Lock()
        self.address = meeting or self._listen(host)
        """host:port for `call`."""

    def _listen(self, host: str) -> str:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.socket(family)
        listener.bind((host, 0))
        listener.listen(128)
        port: int = listener.getsockname()[1]
        # Of an own socket: a TCPStore would listen at every address of the machine.
        self._server = TCPStore(
            *(host, port, None, True, timedelta(seconds=5), False),
            master_listen_fd=listener.detach(),
        )
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    @property
    def num_idle(self) -> int:
        return len(self._idle)

    def call(self, target: EngineId, address: str, migration_id: str, *, limit_s: float) -> Pair:
        """A group with a target that answers. Raises PairLost."""
        pair = self._take(lambda name, kept: kept == target)
        afresh = f"pair/{self._engine}/{target}/{migration_id}"
        try:
            if pair is None:
                store = _client(address, limit_s)
                store.set(_key(migration_id), afresh)
            elif self._is_kept(pair, migration_id):
                return pair
            else:
                store = pair.store
                pair.close()
            return self._build(store, afresh, rank=0, limit_s=limit_s)
        except (RuntimeError, ValueError) as exc:
            if pair is not None:
                pair.close()
            raise PairLost(f"{target} can't be reached at {address}: {exc}") from exc

    def _is_kept(self, pair: Pair, migration_id: str) -> bool:
        """Ask the target for this group, and whether it has it still."""
        pair.store.set(_key(migration_id), pair.name)
        answer = pair.store.get(_answer_key(migration_id)).decode()
        pair.store.delete_key(_answer_key(migration_id))
        return answer == pair.name

    def answer(self, migration_id: str, *, limit_s: float) -> Pair:
        """The group that the source of this migration wants, or a new one. Raises PairLost."""
        key = _key(migration_id)
        try:
            store = _client(self.address, limit_s)
            wanted = store.get(key).decode()
            store.delete_key(key)
            _, source, target, rest = wanted.split("/", 3)
            if rest == migration_id:
                return self._build(store, wanted, rank=1, limit_s=limit_s)
            pair = self._take(lambda name, _: name == wanted)
            store.set(_answer_key(migration_id), wanted if pair is not None else "")
        except (RuntimeError, ValueError) as exc:
            raise PairLost(f"the source does not call: {exc}") from exc
        return pair or self._build(store, f"pair/{source}/{target}/{migration_id}", rank=1, limit_s=limit_s)

    def reports(self, *, limit_s: float) -> Reports:
        """A connection of one thread's own to where this engine's ranks report. Raises PairLost."""
        try:
            return Reports(_client(self.address, limit_s))
        except (RuntimeError, ValueError) as exc:
            raise PairLost(f"the meeting point of rank 0 can't be reached: {exc}") from exc

    def keep(self, pair: Pair, target: EngineId | None) -> None:
        """For the next migration between the same engines; `target` is None if this engine was it."""
        with self._lock:
            self._idle[pair.name] = (target, pair)
            surplus = [self._idle.popitem(last=False)[1][1]] if len(self._idle) > MAX_IDLE else []
        for old in surplus:
            old.close()

    def close(self) -> None:
        """Close the idle groups."""
        while (pair := self._take(lambda name, kept: True)) is not None:
            pair.close()

    def _build(self, store: TCPStore, name: str, *, rank: int, limit_s: float) -> Pair:
        return Pair(store, name, rank=rank, host=self._host, device=self._device, limit_s=limit_s)

    def _take(self, fits: Callable[[str, EngineId | None], bool]) -> Pair | None:
        with self._lock:
            for name, (kept, pair) in self._idle.items():
                if fits(name, kept):
                    del self._idle[name]
                    return pair
        return None


def share_of(migration_id: str, rank: int) -> str:
    """Under what name a rank above 0 moves its share."""
    return f"{migration_id}/{rank}"


def _report_key(share: str, step: Step) -> str:
    return f"share/{WIRE_VERSION}/{share}/{step}"


def _key(migration_id: str) -> str:
    return f"migration/{WIRE_VERSION}/{migration_id}"


def _answer_key(migration_id: str) -> str:
    return f"{_key(migration_id)}/answer"


def _client(address: str, limit_s: float) -> TCPStore:
    host, _, port = address.rpartition(":")
    return TCPStore(host.strip("[]"), int(port), None, False, timedelta(seconds=limit_s), False)


def _nccl(store: PrefixStore, rank: int, timeout: timedelta) -> Any:
    """A group whose errors never end the process, and whose set-up does not block the host."""
    from torch.distributed import ProcessGroupNCCL

    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")
    options = ProcessGroupNCCL.Options()
    options.config.blocking = 0
    options._timeout = timeout
    return ProcessGroupNCCL(store, rank, 2, options)
