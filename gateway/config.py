"""Settings of one gateway."""

from __future__ import annotations

from dataclasses import dataclass, field

from gateway.auth import MIN_SECRET_BYTES, parse_api_key
from scheduler.logs import check_log_format
from scheduler.messages import CODECS

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayConfig:
    """Checked on construction; raises ValueError with a sentence that names the setting."""

    redis: str
    """URL of the control Redis: redis://, rediss:// (TLS), unix:// or redis+sentinel://."""
    link_secret: str
    """What engines expect from a gateway."""
    cluster: str = "main"
    """Name under which all keys live in Redis."""
    gateway_id: str | None = None
    """None: random at each start."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = 8080
    """TCP port; 0 lets the system choose."""
    allowed_hosts: tuple[str, ...] = ()
    """Names that a Host header may carry besides loopback ones, without port."""
    allowed_origins: tuple[str, ...] = ()
    """Origins of foreign pages that may use this gateway, e.g. https://example.org."""
    auth: str = "none"
    """Who may use this gateway: "none", everybody who reaches it, or "token", who has a valid token."""
    token_secrets: tuple[str, ...] = field(default=(), repr=False)
    """Secrets of at least 32 bytes that sign tokens (HS256); the first one also mints. Several: to rotate."""
    api_keys: tuple[str, ...] = ()
    """Servers that may mint tokens, each NAME:SCOPES:SHA256 of its key; scopes joined with +."""
    token_ttl_s: float = 600.0
    """Life of a minted token whose request names none."""
    subject_sessions: int = 8
    """Sessions that one subject may have at once, if its token does not say."""
    subject_starts_per_minute: int = 60
    """Starts that one subject may make, at each gateway."""
    address_requests_per_s: int = 100
    """Requests and connections from one address beyond loopback, ten times as many at once."""
    address_connections: int = 256
    """Open connections of one address beyond loopback; more are answered with 429, with TLS closed."""
    trust_proxy: bool = False
    """Behind a reverse proxy: take a client's address from the last entry of X-Forwarded-For."""
    tls_cert: str | None = None
    """PEM file with the certificate chain: serve https and wss. Needs tls_key."""
    tls_key: str | None = None
    """PEM file with the certificate's private key."""
    insecure: bool = False
    """Allow an address or allowed_hosts beyond loopback although there is no authentication."""
    prompt_hook: str | None = None
    """Asked about every prompt: an async callable "package.module:name", or an http(s) address."""
    prompt_hook_timeout_s: float = 2.0
    """Its deadline."""
    prompt_hook_fail_open: bool = False
    """Let prompts pass when it fails or is late; else they are refused with error unavailable."""
    trace_share: float = 0.0
    """Share of chunks whose way from due to drawn is told to OpenTelemetry. Needs turboserve[otel]."""
    model: str | None = None
    """Model that engines serve; of a gateway alone: of a `start` that names none, None being the first that
    the cluster serves."""
    codecs: tuple[str, ...] = ("h264", "vp9", "mjpeg")
    """What clients may have their video in; of h264, vp9, av1, mjpeg. The client's order decides."""
    low_rung: bool = True
    """Send clients that keep falling behind the video at a lower bitrate, which engines encode for them."""
    queue_limit: int = 64
    """Sessions of one model that may wait; more are refused with error capacity."""
    max_connections: int = 4096
    """Open connections, all kinds; more are answered with 503, with TLS closed."""
    start_timeout_s: float = 10.0
    """For a complete request on a new connection, before it for a TLS handshake; who is silent is closed."""
    first_message_timeout_s: float = 60.0
    """A WebSocket on which nothing ever arrives is closed with 4408."""
    no_session_timeout_s: float = 600.0
    """A WebSocket that has had no session for so long is closed with 4408."""
    send_timeout_s: float = 5.0
    """A message that a client does not take in this time aborts its connection."""
    ping_interval_s: float = 20.0
    """WebSocket keepalive."""
    recordings: str | None = None
    """Folder for recordings of sessions; gateways that share one serve each other's. Unset: none are made."""
    recording_mib: int = 256
    """Of one session, in MiB; beyond it its oldest video goes. 0: nothing is recorded."""
    recordings_mib: int = 4096
    """Of all sessions in that folder, in MiB; beyond it the oldest video of any of them goes."""
    web_root: str | None = None
    """Folder of the page; None: the installed web demo."""
    log_format: str = "text"
    """How each line is logged: text, or json, one object each."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port must be 0 to 65535, got {self.port}")
        if not self.link_secret:
            raise ValueError("link_secret must not be empty")
        check_log_format(self.log_format)
        self._check_auth()
        if not self.codecs or not set(self.codecs) <= set(CODECS):
            raise ValueError(f"codecs must be some of {', '.join(CODECS)}, got {', '.join(self.codecs)}")
        if not 0 <= self.recording_mib <= self.recordings_mib:
            raise ValueError(f"recording_mib must be 0 to recordings_mib, got {self.recording_mib}")
        if not 0 <= self.trace_share <= 1:
            raise ValueError(f"trace_share must be between 0 and 1, got {self.trace_share}")
        for name in (
            "queue_limit",
            "max_connections",
            "subject_sessions",
            "subject_starts_per_minute",
            "address_requests_per_s",
            "address_connections",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1")
        for name in (
            "start_timeout_s",
            "first_message_timeout_s",
            "no_session_timeout_s",
            "send_timeout_s",
            "ping_interval_s",
            "token_ttl_s",
            "prompt_hook_timeout_s",
        ):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be more than 0 seconds")

    @property
    def is_exposed(self) -> bool:
        """May everybody use it who reaches this machine, or a proxy before it?"""
        is_local = self.host in LOOPBACK and LOOPBACK.issuperset(self.allowed_hosts)
        return self.auth == "none" and not is_local

    def _check_auth(self) -> None:
        if self.auth not in ("none", "token"):
            raise ValueError(f"auth must be none or token, got {self.auth!r}")
        if self.is_exposed and not self.insecure:
            what, instead = f"host {self.host} is", "use 127.0.0.1"
            if self.host in LOOPBACK:
                what, instead = f"allowed_hosts {', '.join(self.allowed_hosts)} are", "leave them out"
            raise ValueError(
                f"{what} reachable from other machines and there is no authentication: "
                f"{instead}, set auth to token, or set insecure to allow it all the same"
            )
        if self.auth == "token" and not self.token_secrets:
            raise ValueError(
                "auth is token, but token_secrets is not set: openssl rand -hex 32 makes a secret"
            )
        if any(len(secret.encode()) < MIN_SECRET_BYTES for secret in self.token_secrets):
            raise ValueError(f"each of token_secrets must have at least {MIN_SECRET_BYTES} bytes")
        for text in self.api_keys:
            try:
                parse_api_key(text)
            except ValueError as exc:
                raise ValueError(f"each of api_keys {exc}") from None
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key must be set together")
