"""Host memory for the state of idle sessions, and the thread that copies there and back.

A session's state is copied in few large pieces, K/V in one, on a stream of its own (CUDA) or on a helper
thread (CPU), so that passes of other sessions run meanwhile. The compute thread decides and keeps the books.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from engine.models.base import CausalVideoModel, ModelSpec
from engine.ring import live_chunks
from engine.state_format import ALIGNMENT, ExportedState

__all__ = ["MAX_SLABS", "Copier", "HostPool", "HostSlab", "default_budget", "slab_bytes", "state_bytes"]


_log = logging.getLogger("turboserve.engine.offload")

MAX_SLABS = 1_024
"""More idle sessions than an engine will have; with a tiny model, a budget would be cut into many more."""
_USUAL_BYTES = 2**30
_SHARE_OF_FREE = 4
"""Of what is free in host memory, one part in so many may go to idle sessions: neighbours take theirs too."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HostSlab:
    """Room for one session's state."""

    number: int
    data: Tensor
    """[state_bytes] uint8, pinned when the model is on a GPU."""

    def place(self, state: ExportedState) -> ExportedState:
        """The same export with buffers that lie here; nothing is copied yet."""
        buffers: dict[str, Tensor] = {}
        offset = 0
        for info in state.header.buffers:
            source = state.buffers[info.name]
            offset += -offset % ALIGNMENT
            place = self.data[offset : offset + info.num_bytes]
            assert len(place) == info.num_bytes, "an export is larger than a host slab"
            buffers[info.name] = place.view(source.dtype).view(source.shape)
            offset += info.num_bytes
        return replace(state, buffers=buffers)


def state_bytes(model: CausalVideoModel, *, ranks: int = 1) -> int:
    """Bytes that hold any state of one session on one rank, whatever its window."""
    spec, decoder = model.spec, model.initial_decoder_state()
    chunks = _most_chunks(spec)
    embeds = chunks + 3  # in force, and both ends of a blend
    latents = chunks * spec.chunk_latent_frames * _numel(spec.latent_shape)
    sizes = (
        _numel(spec.kv_slab_shape) // ranks * model.dtype.itemsize,
        _numel(spec.prompt_kv_shape) * model.dtype.itemsize,
        decoder.nbytes,
        4 * latents,
        4 * embeds * _numel(spec.text_shape),
        4 * chunks * spec.chunk_latent_frames * spec.action_dim,
    )
    return sum(size + -size % ALIGNMENT for size in sizes)


def slab_bytes(model: CausalVideoModel, *, ranks: int = 1) -> int:
    """Host memory that such a slab takes: torch gives pinned memory in powers of two."""
    size = state_bytes(model, ranks=ranks)
    return 1 << (size - 1).bit_length() if _is_pinned(model) else size


def default_budget(model: CausalVideoModel, *, sessions: int, free_bytes: int, ranks: int = 1) -> int:
    """Bytes for idle sessions where nobody has said how many: 1 GiB, or as many states as there are resident
    sessions if those are larger, but then no more than a share of the free host memory."""
    wanted = sessions * slab_bytes(model, ranks=ranks)
    return max(_USUAL_BYTES, min(wanted, free_bytes // _SHARE_OF_FREE))


def _is_pinned(model: CausalVideoModel) -> bool:
    return model.device.type == "cuda"


def _most_chunks(spec: ModelSpec) -> int:
    chunk, window, sink = spec.chunk_latent_frames, spec.window_frames, spec.sink_frames
    return max(
        len(live_chunks(index, chunk=chunk, window=window, sink=sink)) for index in range(2 * window + 1)
    )


def _numel(shape: tuple[int, ...]) -> int:
    return int(torch.Size(shape).numel())


class HostPool:
    """As many host slabs as fit a budget, at most MAX_SLABS. Belongs to the compute thread."""

    def __init__(self, model: CausalVideoModel, *, budget_bytes: int, ranks: int = 1) -> None:
        """Takes the memory at once: seconds where it is pinned."""
        size, taken = state_bytes(model, ranks=ranks), slab_bytes(model, ranks=ranks)
        self.num_slabs = min(MAX_SLABS, budget_bytes // taken)
        if budget_bytes and not self.num_slabs:
            _log.warning(
                "idle sessions keep only their checkpoint: %d MiB are for them, a session's state takes %d; "
                "set offload_mib",
                budget_bytes // 2**20,
                -(-taken // 2**20),
            )
        self._free = [
            HostSlab(number=number, data=torch.empty(size, dtype=torch.uint8, pin_memory=_is_pinned(model)))
            for number in range(self.num_slabs)
        ]
        self._held: set[int] = set()

    @property
    def num_held(self) -> int:
        return len(self._held)

    def allocate(self) -> HostSlab | None:
        """A slab; None: all are held."""
        if not self._free:
            return None
        slab = self._free.pop()
        self._held.add(slab.number)
        return slab

    def free(self, slab: HostSlab) -> None:
        self._held.remove(slab.number)
        self._free.append(slab)

    def check_integrity(self) -> None:
        """Assert that every slab is either free or held, and only once."""
        free = {slab.number for slab in self._free}
        assert len(free) == len(self._free) and not free & self._held, "host slabs freed twice"
        assert len(free) + len(self._held) == self.num_slabs, "host slabs lost"


class Copier:
    """One thread for copies between slots and host slabs, in order; on CUDA with a stream of its own."""

    def __init__(self, device: torch.device) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="offload")
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def submit(self, copy: Callable[[], object], on_done: Callable[[], None]) -> Future[None]:
        """Do the copy after everything that the calling thread has given the device so far.

        `on_done` is called on the copier's thread when the bytes are there, or the copy failed: ask the
        future. What the copy reads and writes must not be touched before.
        """
        ready = None
        if self._stream is not None:
            ready = torch.cuda.Event()
            ready.record()
        future = self._thread.submit(self._run, copy, ready)
        future.add_done_callback(lambda _: on_done())
        return future

    def close(self) -> None:
        """Finish what was submitted, then end the thread. Blocks."""
        self._thread.shutdown(wait=True)

    @torch.inference_mode()
    def _run(self, copy: Callable[[], object], ready: torch.cuda.Event | None) -> None:
        if self._stream is None or ready is None:
            copy()
            return
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(ready)
            copy()
            self._stream.synchronize()
