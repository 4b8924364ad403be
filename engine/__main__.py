"""One rank of an engine:

torchrun --nproc-per-node 1 --max-restarts=0 --rdzv-backend=c10d --rdzv-endpoint=localhost:0 -m engine

The configuration is one JSON object in the environment variable TURBOSERVE_ENGINE_CONFIG, see `config.py`.
"""

import os

_PARENT = os.getppid()  # before the slow imports: a parent that dies during them must be noticed

import gc  # noqa: E402

gc.disable()  # the imports make no garbage, and looking for it in them takes a fifth of their time

import json  # noqa: E402
import sys  # noqa: E402
from dataclasses import replace  # noqa: E402
from datetime import timedelta  # noqa: E402

import torch  # noqa: E402
from torch import distributed  # noqa: E402

from engine.config import EngineConfig, visible_gpu  # noqa: E402
from engine.engine import EXIT_FAILED, EXIT_OK, run  # noqa: E402
from engine.follower import follow  # noqa: E402
from engine.loading import rank_device  # noqa: E402
from engine.process import die_with, take_name  # noqa: E402
from engine.ranks import RankGroup, RanksLost, leave  # noqa: E402
from scheduler.logs import configure_logging  # noqa: E402
from scheduler.messages import DecodeError, decode_fields  # noqa: E402
from scheduler.store import StoreError  # noqa: E402

CONFIG_VARIABLE = "TURBOSERVE_ENGINE_CONFIG"
EXIT_BAD_CONFIG = 2
START_TIMEOUT_S = 3_600.0
"""For ranks that load at different speeds. The leader ends a start that hangs (`start_timeout_ms`), and a
rank that dies closes its connections."""


def main() -> int:
    """Run this rank; returns the exit status."""
    gc.freeze()  # modules stay: a full collection would stop the event loop for a tenth of a second over them
    gc.enable()
    try:
        die_with(_PARENT)
        config = _on_its_gpu(read_config())
        configure_logging(config.log_format, engine=config.engine_id)
        _check_launcher(config.ranks)
        take_name(f"engine {os.environ['RANK']}/{config.ranks}")  # launch/engine_job.py looks for it
        distributed.init_process_group("gloo", timeout=timedelta(seconds=START_TIMEOUT_S))
        try:
            return _run_rank(config)
        finally:
            leave()
    except (DecodeError, ValueError) as exc:
        sys.stderr.write(f"engine: {exc}\n")
        return EXIT_BAD_CONFIG
    except (StoreError, OSError, MemoryError, RanksLost) as exc:  # Redis, the link's address, …
        sys.stderr.write(f"engine: {exc}\n")
        return EXIT_FAILED


def read_config() -> EngineConfig:
    """The configuration from the environment. Raises DecodeError and ValueError."""
    text = os.environ.get(CONFIG_VARIABLE)
    if text is None:
        raise ValueError(f"the environment variable {CONFIG_VARIABLE} is missing")
    try:
        data = json.loads(text)
    except json.JSONDecodeError as exc:
        raise ValueError(f"{CONFIG_VARIABLE} is not JSON: {exc}") from exc
    if not isinstance(data, dict):
        raise ValueError(f"{CONFIG_VARIABLE} must be a JSON object")
    return decode_fields(EngineConfig, data)


def _on_its_gpu(config: EngineConfig) -> EngineConfig:
    """Hide all GPUs but the one that the config names: before anything asks for one. Raises ValueError."""
    gpu = visible_gpu(config.device, os.environ.get("CUDA_VISIBLE_DEVICES"))
    if gpu is None:
        return config
    os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    return replace(config, device="cuda")


def _run_rank(config: EngineConfig) -> int:
    if config.ranks == 1:
        return run(config)
    device = rank_device(config, int(os.environ["LOCAL_RANK"]))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    ranks = RankGroup(device=device, timeout_s=config.collective_timeout_s)
    if ranks.rank == 0:
        return run(config, ranks)
    return EXIT_OK if follow(config, ranks) else EXIT_FAILED


def _check_launcher(ranks: int) -> None:
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        raise ValueError(
            "start an engine by torchrun: see `python -m pydoc engine.__main__`, or `turboserve engine`"
        )
    started = os.environ.get("WORLD_SIZE")
    if started != str(ranks):
        raise ValueError(f"torchrun has started {started} ranks, but the setting ranks is {ranks}")


if __name__ == "__main__":
    sys.exit(main())
