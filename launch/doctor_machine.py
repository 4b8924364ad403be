"""What `turboserve doctor` looks at on the machine itself: size, GPUs, room for the model, ports."""

from __future__ import annotations

import os
import resource
import shutil
import ssl
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from launch.config import CheckedModel, UpConfig
from launch.cores import usable_cores
from launch.doctor_problem import Advice, Problem
from launch.gpus import visible_gpus, why_no_gpu
from launch.ports import PortRefused, try_port

if TYPE_CHECKING:
    from engine.models.base import CausalVideoModel

__all__ = [
    "check_device",
    "check_machine",
    "check_nccl",
    "check_port",
    "check_room",
    "check_tls",
    "room_of_a_rank",
    "trouble_explained",
]

_MIB: Final = 2**20
_MIN_DISK_BYTES: Final = 512 * _MIB
_MIN_FILES: Final = 4096
_MIN_SHARED_BYTES: Final = 512 * _MIB


def check_machine(config: UpConfig) -> str:
    """System, cores, load, `dir` and the disk under it, open files. Raises Problem, Advice."""
    if sys.platform != "linux":
        raise Problem(
            f"turboserve up needs Linux, this is {sys.platform}: use a container or another machine"
        )
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError as exc:
        raise Problem(
            f"Linux {os.uname().release} can't hold a process by a descriptor ({exc.strerror}): "
            "5.4 or newer is needed"
        ) from exc
    folder = _nearest(Path(config.dir))
    if not os.access(folder, os.W_OK | os.X_OK) or not folder.is_dir():
        raise Problem(f"{folder} is no folder that you may write to: choose another with --dir")
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < _MIN_DISK_BYTES:
        raise Problem(
            f"{free_bytes // _MIB} MiB are free at {folder}, where Redis and the logs write: "
            f"free {_MIN_DISK_BYTES // _MIB} MiB, or choose another folder with --dir"
        )
    num_files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if num_files < _MIN_FILES:
        raise Advice(
            f"a process may open {num_files} files, and each connection is one: "
            f"run `ulimit -n {2 * _MIN_FILES}` first, or set LimitNOFILE"
        )
    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    if load > 2 * cores:
        raise Advice(f"load {load:.1f} on {cores} cores: others use this machine, and players will notice")
    return f"{_cores()}, load {load:.1f}, {free_bytes // _MIB} MiB free at {folder}"


def _cores() -> str:
    """As many as engines can use."""
    bound, usable = len(os.sched_getaffinity(0)), usable_cores()
    return f"{bound} cores" if usable == bound else f"{usable:g} of {bound} cores (the limit of a cgroup)"


def _nearest(path: Path) -> Path:
    """The folder itself, or of those above it the first that exists as far as we may see."""
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if os.path.exists(folder))


def check_device(config: UpConfig, ranks: int) -> str:
    """The cores or GPUs that engines compute on. Raises Problem, Advice."""
    gpus = visible_gpus(os.environ)
    if config.device == "cpu":
        return f"cpu, {_cores()} (GPUs here: {len(gpus)})"
    import torch

    if not gpus:
        raise Problem(f"device cuda: no NVIDIA GPU here {why_no_gpu(os.environ)}: use --device cpu")
    if not torch.cuda.is_available():
        raise Problem(f"device cuda: torch {torch.__version__} can't use the GPU: {_advice_on_cuda()}")
    wanted = max(config.engines, config.max_engines or 0) * ranks
    if ranks > len(gpus):
        raise Problem(f"an engine of {ranks} ranks needs {ranks} GPUs, here are {len(gpus)}: lower --ranks")
    if wanted > len(gpus):
        raise Advice(f"{wanted} ranks share {len(gpus)} GPUs: each gets slower; lower --engines")
    with trouble_explained("device cuda can't be used", "cuda"):
        names = {torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())}
    return f"cuda, {len(gpus)} GPUs ({', '.join(sorted(names))})"


def _advice_on_cuda() -> str:
    import torch

    if torch.version.cuda is None:
        return "install a CUDA build of it"
    return f"does nvidia-smi show it well, and is its driver new enough for CUDA {torch.version.cuda}?"


def check_nccl(config: UpConfig) -> str:
    """What moves session state between engines, and joins the ranks of one. Raises Problem, Advice."""
    import torch.distributed as dist

    if config.device == "cpu":
        if not dist.is_gloo_available():
            raise Problem("this torch has no gloo, which engines on CPUs need: install the one from PyPI")
        return "gloo, for engines on CPUs"
    if not dist.is_nccl_available():
        raise Problem("this torch has no NCCL, which engines on GPUs need: install a CUDA build from PyPI")
    import torch.cuda.nccl

    shared = shutil.disk_usage("/dev/shm").total if Path("/dev/shm").exists() else 0
    if shared < _MIN_SHARED_BYTES:
        raise Advice(
            f"/dev/shm has {shared // _MIB} MiB, and NCCL moves data through it: "
            "docker run --shm-size=1g, or an emptyDir of medium Memory in Kubernetes"
        )
    return f"NCCL {'.'.join(map(str, torch.cuda.nccl.version()))}"


def check_room(config: UpConfig, chosen: CheckedModel, model: CausalVideoModel) -> str:
    """Do the sessions of an engine fit beside the model, which is loaded? Raises Problem, Advice.

    What passes take for themselves is not known here: engines measure it when they start.
    """
    from engine.memory import slot_bytes
    from engine.offload import default_budget

    if config.device == "cpu":
        free_bytes = _left_on_host() // config.engines
        mib = chosen.offload_mib
        if mib is None:
            mib = default_budget(model, sessions=chosen.capacity, free_bytes=free_bytes) // _MIB
        left_bytes = free_bytes - mib * _MIB
        per_slot, advice = slot_bytes(model), f"lower --offload-mib ({mib}) or --engines"
    else:
        left_bytes = _left_on_gpus(config.engines * chosen.ranks)
        per_slot = slot_bytes(model, ranks=chosen.ranks)
        advice = "end what else uses the GPU (nvidia-smi shows it), lower --engines or use a larger one"
    num_slots = max(0, left_bytes // per_slot)
    what = f"{chosen.model}: {per_slot / _MIB:.1f} MiB a session, {max(0, left_bytes) // _MIB} MiB for them"
    if num_slots < 1:
        raise Problem(f"{what}: no session fits; {advice}")
    if num_slots < chosen.capacity:
        raise Advice(f"{what}: {num_slots} fit in an engine, less than --capacity {chosen.capacity}")
    return f"{what}, {chosen.capacity} wanted in each of {config.engines} engines"


def _left_on_host() -> int:
    import torch

    from engine.memory import make_meter

    room = make_meter(torch.device("cpu")).room(0)
    return room.free_bytes - room.margin_bytes


def _left_on_gpus(num_ranks: int) -> int:
    """For sessions of the rank that has the least. The model is on the first GPU already. Raises Problem."""
    import torch

    from engine.memory import make_meter

    if not torch.cuda.is_available():
        raise Problem("device cuda: without a GPU that torch can use nobody knows what fits, see device")
    with trouble_explained("the memory of the GPUs can't be looked at", "cuda"):
        model_bytes = torch.cuda.memory_allocated(0)
        rooms = [make_meter(torch.device("cuda", i)).room(0) for i in range(torch.cuda.device_count())]
    left_bytes = [room.free_bytes - room.margin_bytes for room in rooms]
    return room_of_a_rank(left_bytes, num_ranks=num_ranks, model_bytes=model_bytes)


def room_of_a_rank(left_bytes: Sequence[int], *, num_ranks: int, model_bytes: int) -> int:
    """What the rank that has the least has for its sessions; negative where not even the models fit.

    left_bytes: of each GPU, the first of which holds one model already. Ranks are spread evenly, beginning
    with the first GPU, and each has a model of its own.
    """
    shares = []
    for index, left in enumerate(left_bytes[:num_ranks]):
        on_it = len(range(index, num_ranks, len(left_bytes)))
        to_load = on_it - 1 if index == 0 else on_it
        shares.append((left - to_load * model_bytes) // on_it)
    return min(shares)


@contextmanager
def trouble_explained(what: str, device: str) -> Iterator[None]:
    """What torch raises where a device or memory fails it, as a Problem: `what`, why, and what to do."""
    import torch

    try:
        yield
    except (MemoryError, RuntimeError) as exc:  # torch.OutOfMemoryError and CUDA's errors are RuntimeErrors
        why = (str(exc) or type(exc).__name__).splitlines()[0]
        is_full = isinstance(exc, MemoryError | torch.OutOfMemoryError) or "allocate memory" in why
        if device == "cpu":
            advice = "`turboserve model check` says more"
            if is_full:
                advice = "end other programs, or use a machine with more memory"
        elif is_full:
            advice = "end what else uses the GPU (nvidia-smi shows it), or use a larger one"
        else:
            advice = "does nvidia-smi show it well and free, and is its driver new enough for this torch?"
        raise Problem(f"{what} ({why}): {advice}") from exc


def check_port(config: UpConfig) -> str:
    """The gateway's. Engines take free ones. Raises Problem."""
    try:
        try_port(config.host, config.port)
    except PortRefused as exc:
        raise Problem(str(exc)) from exc
    return f"{config.port} on {config.host} is free"


def check_tls(certificate: str, key: str) -> str:
    """What the gateway would serve https with. Raises Problem."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certificate, key, password=lambda: "")  # nobody could type one for a gateway
    except (OSError, ValueError) as exc:  # ssl.SSLError is an OSError
        why = exc.strerror if isinstance(exc, OSError) and exc.strerror else exc
        raise Problem(
            f"{certificate} and {key} can't be used ({why}): --tls-cert needs a PEM file with the chain, "
            "--tls-key one with its key, without a passphrase"
        ) from exc
    return f"{certificate} and its key can be used"
