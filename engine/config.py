"""Settings of one engine. `launch/` merges TOML, environment and flags into it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from engine.lifecycle import LifeLimits
from scheduler.logs import check_log_format

__all__ = ["EngineConfig", "visible_gpu"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """One engine; every rank of its job gets the same. Checked on construction."""

    engine_id: str
    """`e_` + 8 hex digits, never used before."""
    redis: str
    """URL of the control Redis: redis://, rediss:// (TLS), unix:// or redis+sentinel://."""
    cluster: str = "main"
    """Clusters of different names can share one Redis."""
    model: str = "shapes"
    """Name of the one model that this engine serves."""
    weights: str | None = None
    """Path of a weights file; None: the shipped or cached ones."""
    device: str = "cpu"
    """"cpu", "cuda" or "cuda:N"."""
    ranks: int = 1
    """Processes that share the model by splitting its passes, one GPU each; 1: it is not shared."""
    threads: int = 1
    """CPU threads of each rank's kernels."""
    capacity: int = 4
    """Sessions that are resident at once, at most: fewer where memory has room for fewer."""
    link_host: str = "127.0.0.1"
    """Address that the link for gateways binds to and is published with: where they find it, not 0.0.0.0."""
    link_port: int = 0
    """0: any free port."""
    link_secret: str
    """Shared by the cluster's processes; gateways present it on the link."""
    linger_s: float = 30.0
    """A session without subscriber stays active for so long."""
    retain_s: float = 600.0
    """A session without subscriber is closed after so long."""
    idle_close_s: float = 600.0
    """An idle session is closed after so long."""
    full_s: float = 30.0
    """A session whose player takes no more chunks becomes idle after so long."""
    offload_after_s: float = 30.0
    """An idle session gives its slot up after so long; its state goes to host memory."""
    offload_mib: int | None = None
    """Host memory for the state of idle sessions; beyond it, the longest idle ones keep their checkpoint
    only. Unset: 1024, or room for `capacity` of them, but then at most a quarter of what is free."""
    checkpoint_every: int = 1
    """Chunks of a session between two checkpoints; 0: none, and a lost engine's pictures start afresh."""
    checkpoints: str | None = None
    """Where checkpoints are kept: a directory that all engines share, or the URL of a Redis; unset: the
    control Redis, if they are small."""
    encoder_threads: int = 1
    """Threads that encode video."""
    crf: int = 23
    """x264 quality, 0 (lossless) to 51 (worst); other codecs follow it."""
    hardware_encoders: bool = True
    """With CUDA: encode with the GPU's own encoder where it has one that works for this size."""
    heartbeat_ms: int = 500
    """Between heartbeats."""
    publish_ms: int = 500
    """Between updates of the session records that changed."""
    record_wait_ms: int = 500
    """A chunk made with a new input waits at most so long for the record of it in Redis."""
    collective_timeout_s: float = 10.0
    """Limit of a collective operation among the ranks while serving."""
    log_format: str = "text"
    """How each line is logged: text, or json, one object each."""

    def __post_init__(self) -> None:
        if not self.link_secret:
            raise ValueError("link_secret must not be empty")
        self._check_names()
        check_log_format(self.log_format)
        at_least_one = ("ranks", "threads", "capacity", "encoder_threads", "heartbeat_ms", "publish_ms")
        for name in at_least_one:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        not_negative = ("linger_s", "retain_s", "idle_close_s", "full_s", "record_wait_ms")
        for name in (*not_negative, "offload_after_s", "offload_mib", "checkpoint_every"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.collective_timeout_s <= 0:
            raise ValueError(f"collective_timeout_s must be above 0, got {self.collective_timeout_s}")
        if not 0 <= self.crf <= 51:
            raise ValueError(f"crf must be between 0 and 51, got {self.crf}")
        if not 0 <= self.link_port <= 65_535:
            raise ValueError(f"link_port must be between 0 and 65535, got {self.link_port}")
        self._check_device()

    def _check_names(self) -> None:
        if not re.fullmatch(r"e_[0-9a-f]{8}", self.engine_id):
            raise ValueError(f"engine_id must be e_ and 8 hex digits, got {self.engine_id!r}")
        if self.link_host in ("", "0.0.0.0", "::", "[::]"):  # gateways would look for it on their machine
            raise ValueError(f"link_host must be where gateways find the engine, got {self.link_host!r}")

    def _check_device(self) -> None:
        if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", self.device):
            raise ValueError(f"device must be cpu, cuda or cuda:N, got {self.device!r}")
        if self.ranks > 1 and ":" in self.device:
            raise ValueError(f"device must be cuda for {self.ranks} ranks, one GPU each, got {self.device!r}")

    @property
    def life_limits(self) -> LifeLimits:
        """When a session becomes idle, leaves its slot and is closed."""
        return LifeLimits(
            linger_ms=self.linger_s * 1000.0,
            retain_ms=self.retain_s * 1000.0,
            idle_close_ms=self.idle_close_s * 1000.0,
            full_ms=self.full_s * 1000.0,
            offload_ms=self.offload_after_s * 1000.0,
        )

    @property
    def checkpoint_ttl_s(self) -> int:
        """How long a checkpoint is kept without a newer one: longer than any session lives without chunks."""
        return int(2 * max(self.retain_s, self.idle_close_s)) + 300


def visible_gpu(device: str, visible: str | None) -> str | None:
    """What CUDA_VISIBLE_DEVICES, so far `visible`, must be for "cuda:N" to be a process's only GPU.

    None: `device` names none. Every thread, and NVENC, begins on the first GPU that the process sees.

    Raises:
        ValueError: there is no N-th among those that it may see.
    """
    _, colon, number = device.partition(":")
    if not colon:
        return None
    if visible is None:
        return number
    names = [name.strip() for name in visible.split(",") if name.strip()]
    if int(number) >= len(names):
        raise ValueError(f"device is {device}, but CUDA_VISIBLE_DEVICES names {len(names)} GPUs: {visible!r}")
    return names[int(number)]
