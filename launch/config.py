"""What `up`, `client`, `profile` and `status` can be told beyond the settings of the roles. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import urlsplit, urlunsplit

from gateway.auth import (
    MAX_SUBJECT_CHARS,
    MIN_SECRET_BYTES,
    MIN_TTL_S,
    Identity,
    Scope,
    is_subject,
    mint_token,
)
from launch.pods import labels_of
from scheduler.address import parse_address
from scheduler.config import check_provisioner
from scheduler.logs import check_log_format

__all__ = [
    "CheckedModel",
    "ClientConfig",
    "EngineStartConfig",
    "ProfileConfig",
    "ProvisionerConfig",
    "StatusConfig",
    "TokenConfig",
    "UpConfig",
    "check_url",
    "http_address",
]

_MAX_ENGINES = 256
DEFAULT_URL = "http://127.0.0.1:8080"
MAX_SIGNED_TTL_S = 10 * 366 * 24 * 3600
"""Of tokens that whoever holds the secret signs, a scrape's for example."""
_SCHEMES = {"http": "http", "https": "https", "ws": "http", "wss": "https"}
_STREAM_PATH = "/v1/stream"


def http_address(url: str) -> str:
    """Where a gateway answers requests, without a slash at the end; `url` is any address of it that clients
    take. Raises ValueError.
    """
    parts = urlsplit(url if "://" in url else f"http://{url}")
    scheme = _SCHEMES.get(parts.scheme)
    if scheme is None or not parts.hostname or re.search(r"[\s\x00-\x1f]", url):
        raise ValueError("not the address of a server")
    _ = parts.port  # it may be none
    path = parts.path.removesuffix(_STREAM_PATH).rstrip("/")
    return urlunsplit((scheme, parts.netloc, path, "", ""))


def check_url(url: str) -> None:
    """Raises ValueError: the setting `url` is no address of a gateway."""
    try:
        http_address(url)
    except ValueError:
        raise ValueError(f"url must be an address like {DEFAULT_URL}, got {url!r}") from None


def _check_token(token: str | None) -> None:
    if token is not None and not re.fullmatch("[!-~]*", token):
        raise ValueError("token must be one word of ASCII, without spaces and line ends")


@dataclass(frozen=True, slots=True, kw_only=True)
class UpConfig:
    """One cluster on one machine. Checked on construction.

    Raises:
        ValueError: a value is out of its range; the text says which and why.
    """

    dir: str = "run"
    """Folder for run.json, logs and Redis data; one cluster per folder."""
    redis: str | None = None
    """URL of a Redis to use: redis://, rediss:// (TLS), unix:// or redis+sentinel://; unset: a private one
    is started."""
    engines: int = 2
    """Engines to run."""
    max_engines: int | None = None
    """Most engines to run at once; unset: as many as `engines`."""
    host: str = "127.0.0.1"
    """Address that the gateway listens on."""
    port: int = 8080
    """TCP port that the gateway listens on."""
    device: str = "cpu"
    """Where engines compute: cpu or cuda (one GPU each)."""
    ready_timeout_s: float = 150.0
    """The first engine must be ready after so long."""
    stop_timeout_s: float = 10.0
    """A process that is asked to stop is killed after so long."""

    def __post_init__(self) -> None:
        if not self.dir:
            raise ValueError("dir must not be empty")
        if not 1 <= self.engines <= _MAX_ENGINES:
            raise ValueError(f"engines must be between 1 and {_MAX_ENGINES}, got {self.engines}")
        if self.max_engines is not None and not self.engines <= self.max_engines <= _MAX_ENGINES:
            raise ValueError(
                f"max_engines must be between engines ({self.engines}) and {_MAX_ENGINES}, "
                f"got {self.max_engines}"
            )
        if not 1 <= self.port <= 65_535:
            raise ValueError(f"port must be between 1 and 65535, got {self.port}")
        if self.device not in ("cpu", "cuda"):
            raise ValueError(f"device must be cpu or cuda, got {self.device!r}")
        for name in ("ready_timeout_s", "stop_timeout_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProvisionerConfig:
    """Engines as Kubernetes pods. Checked on construction.

    Raises:
        ValueError: a value is out of its range; the text says which and why.
    """

    redis: str
    """URL of the control Redis: redis://, rediss:// (TLS), unix:// or redis+sentinel://."""
    pod_template: str
    """YAML file with one Pod whose container `engine` runs `turboserve engine`; each engine gets a copy."""
    cluster: str = "main"
    """Name of the cluster, also a label of its pods."""
    namespace: str | None = None
    """Where the pods are; unset: the namespace that this process runs in, else "default"."""
    kubeconfig: str | None = None
    """File that says how to reach the Kubernetes API; unset: as a pod does."""
    log_format: str = "text"
    """How each line is logged: text, or json, one object each."""

    def __post_init__(self) -> None:
        parse_address(self.redis)
        labels_of(self.cluster)
        check_log_format(self.log_format)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStartConfig:
    """How `turboserve engine` gets its id. Checked on construction."""

    provisioner: str = "local"
    """Who decides how many engines there are: "static", whoever starts them; else the scheduler, and an
    engine without an id takes one that is wanted."""

    def __post_init__(self) -> None:
        check_provisioner(self.provisioner)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenConfig:
    """A token to sign. Checked on construction.

    Raises:
        ValueError: a value is out of its range; the text says which and why.
    """

    token_secrets: tuple[str, ...] = field(default=(), repr=False)
    """Those of the gateways; the first one signs."""
    subject: str
    """Whom the token speaks for: who is limited, and whose sessions it may see."""
    scopes: tuple[str, ...] = ("control",)
    """What it may do: control, view, admin."""
    session: str | None = None
    """The only session that it is good for, to watch it; unset: any."""
    ttl_s: float = 3_600.0
    """For so long. It can't be called back, but with its secret."""

    def __post_init__(self) -> None:
        if not self.token_secrets:
            raise ValueError("token_secrets is not set: a token is signed with the secret of the gateways")
        if len(self.token_secrets[0].encode()) < MIN_SECRET_BYTES:
            raise ValueError(f"each of token_secrets must have at least {MIN_SECRET_BYTES} bytes")
        if not is_subject(self.subject):
            raise ValueError(f"subject must have 1 to {MAX_SUBJECT_CHARS} printable characters")
        known = [scope.value for scope in Scope]
        if not self.scopes or not set(self.scopes) <= set(known):
            raise ValueError(f"scopes must be some of {', '.join(known)}, got {', '.join(self.scopes)}")
        if not MIN_TTL_S <= self.ttl_s <= MAX_SIGNED_TTL_S:
            raise ValueError(f"ttl_s must be between {MIN_TTL_S} and {MAX_SIGNED_TTL_S}, got {self.ttl_s:g}")

    def sign(self, now_s: float) -> str:
        """The token, from `now_s` (Unix time) on."""
        scopes = frozenset(Scope(scope) for scope in self.scopes)
        identity = Identity(subject=self.subject, scopes=scopes, session=self.session)
        return mint_token(identity, self.token_secrets[0], now_s=now_s, ttl_s=self.ttl_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusConfig:
    """What to look at. Checked on construction.

    Raises:
        ValueError: a value is out of its range; the text says which and why.
    """

    url: str = DEFAULT_URL
    """Address of the cluster's gateway: http://, https://, ws:// or wss://."""
    token: str | None = field(default=None, repr=False)
    """Where the cluster asks for one: a token with the scope admin."""
    every_s: float = 0.0
    """Show it again and again, in place, so often; 0: once."""

    def __post_init__(self) -> None:
        check_url(self.url)
        _check_token(self.token)
        if not 0 <= self.every_s <= 3_600:
            raise ValueError(f"every_s must be between 0 and 3600, got {self.every_s}")


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedModel:
    """The model that `turboserve doctor` looks at, as engines would be told to serve it."""

    ranks: int = 1
    """Processes of an engine, one GPU each."""
    model: str = "shapes"
    """Name of the model."""
    weights: str | None = None
    """Path of a weights file; unset: the shipped or cached ones."""
    capacity: int = 4
    """Sessions that an engine may hold."""
    offload_mib: int | None = None
    """Host memory of an engine for the state of idle sessions; unset: what engines take by themselves."""

    def __post_init__(self) -> None:
        if self.ranks < 1:
            raise ValueError(f"ranks must be at least 1, got {self.ranks}")
        if self.capacity < 1:
            raise ValueError(f"capacity must be at least 1, got {self.capacity}")
        if self.offload_mib is not None and self.offload_mib < 0:
            raise ValueError(f"offload_mib must not be negative, got {self.offload_mib}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileConfig:
    """One model to measure on one device. Checked on construction.

    Raises:
        ValueError: a value is out of its range; the text says which and why.
    """

    json: str
    """The file to write."""
    model: str = "shapes"
    """Name of the model."""
    weights: str | None = None
    """Path of a weights file; unset: the shipped or cached ones."""
    device: str = "cpu"
    """Where to measure: cpu, cuda or cuda:N."""
    threads: int = 1
    """CPU threads of the kernels."""
    sessions: int = 16
    """Largest batch to measure."""

    def __post_init__(self) -> None:
        if self.device != "cpu" and self.device.partition(":")[0] != "cuda":
            raise ValueError(f"device must be cpu, cuda or cuda:N, got {self.device!r}")
        for name in ("threads", "sessions"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientConfig:
    """One session to record. Checked on construction.

    Raises:
        ValueError: a value is out of its range; the text says which and why.
    """

    prompt: str
    """What to show."""
    url: str = DEFAULT_URL
    """Address of the cluster's gateway: http://, https://, ws:// or wss://."""
    token: str | None = field(default=None, repr=False)
    """Where the cluster asks for one: a token with the scope control, for `status` admin."""
    seconds: float = 5.0
    """Length of the video: the fewest chunks that reach it, all their frames kept."""
    seed: int | None = None
    """The same seed and prompt give the same video; unset: a random one."""
    output: str = "out.mp4"
    """The file to write."""

    def __post_init__(self) -> None:
        if not self.prompt:
            raise ValueError("prompt must not be empty")
        check_url(self.url)
        _check_token(self.token)
        if not 0 < self.seconds <= 3_600:
            raise ValueError(f"seconds must be above 0 and at most 3600, got {self.seconds:g}")
        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be between 0 and 2^63 - 1, got {self.seed}")
        if not self.output.endswith(".mp4"):
            raise ValueError(f"output must name an .mp4 file, got {self.output!r}")
