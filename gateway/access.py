"""Who may do what at this gateway: its settings applied to tokens, API keys, addresses and rates.

The rules are pure (`gateway/auth.py`, `gateway/limits.py`); the clocks come in here.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from gateway.auth import (
    ANYONE,
    ApiKey,
    Identity,
    Scope,
    TokenRefused,
    check_token,
    derive_secret,
    find_api_key,
    mint_token,
    parse_api_key,
)
from gateway.config import LOOPBACK, GatewayConfig
from gateway.http import Request
from gateway.limits import RateBuckets, who_shares
from gateway.metrics import Metrics

FAILURE_COST = 20.0
"""What a refused token or key costs an address, in requests."""
BURST = 10.0
"""How many seconds' worth of requests an address may make at once."""
SECONDS_PER_MINUTE = 60
BEARER = "bearer "


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """A minted token and its life."""

    token: str
    ttl_s: float


class Access:
    """One per gateway."""

    def __init__(self, config: GatewayConfig, metrics: Metrics) -> None:
        self.is_open = config.auth == "none"
        """Is there no authentication?"""
        self._config = config
        self._metrics = metrics
        # Without authentication view tokens are still made, for links that are shared; all gateways of a
        # cluster have the same link secret.
        self._secrets = config.token_secrets or (derive_secret(config.link_secret, "view tokens"),)
        self._api_keys = tuple(map(parse_api_key, config.api_keys))
        rate_per_s = float(config.address_requests_per_s)
        self._addresses = RateBuckets(rate_per_s, BURST * rate_per_s)
        starts = float(config.subject_starts_per_minute)
        self._starts = RateBuckets(starts / SECONDS_PER_MINUTE, starts)

    # --- addresses -------------------------------------------------------------------------------------

    def address_of(self, request: Request) -> str:
        """Where a request comes from (`who_shares`), as far as settings say that it can be known."""
        forwarded = request.header("x-forwarded-for")
        if self._config.trust_proxy and forwarded:
            return who_shares(forwarded.rpartition(",")[2].strip())
        return who_shares(request.peer)

    def holder_of(self, peer: str, request: Request | None) -> str | None:
        """Whose a connection is that `peer` holds the other end of, before (None) and after a request's head.

        None: nobody's that is limited; of a trusted proxy, before it says for whom it comes.
        """
        if self._config.trust_proxy:
            address = self.address_of(request) if request is not None else None
        else:
            address = who_shares(peer)
        return None if address in LOOPBACK else address

    def count_request(self, address: str) -> int | None:
        """None: go on. Else this address asks too often, and shall wait so many ms."""
        return None if address in LOOPBACK else self._addresses.spend(address, _now_ms())

    def _count_failure(self, address: str) -> None:
        self._metrics.clients.auth_failures.inc()
        if address not in LOOPBACK:
            self._addresses.punish(address, _now_ms(), FAILURE_COST)

    # --- who -------------------------------------------------------------------------------------------

    def identify(self, token: str, address: str) -> Identity:
        """What a token says. Raises TokenRefused. Without authentication everybody may do everything."""
        if self.is_open:
            return ANYONE
        try:
            return check_token(token, self._secrets, time.time())
        except TokenRefused:
            self._count_failure(address)
            raise

    def identify_request(self, request: Request) -> Identity:
        """Who sends an HTTP request. Raises TokenRefused."""
        if self.is_open:
            return ANYONE
        token = bearer_of(request)
        if token is None:
            raise TokenRefused("send a token: Authorization: Bearer <jwt>")
        return self.identify(token, self.address_of(request))

    def find_key(self, request: Request) -> ApiKey | None:
        """The API key that a request carries."""
        key = bearer_of(request)
        found = find_api_key(key, self._api_keys) if key is not None else None
        if found is None:
            self._count_failure(self.address_of(request))
        return found

    # --- what ------------------------------------------------------------------------------------------

    def grant(self, identity: Identity, ttl_s: float | None = None) -> Grant:
        """A token for somebody else."""
        life_s = self._config.token_ttl_s if ttl_s is None else ttl_s
        return Grant(
            token=mint_token(identity, self._secrets[0], now_s=time.time(), ttl_s=life_s), ttl_s=life_s
        )

    def count_start(self, identity: Identity) -> int | None:
        """None: the subject may start a session now. Else after how many ms to try again."""
        return None if self.is_open else self._starts.spend(identity.subject, _now_ms())

    def quota(self, identity: Identity) -> int | None:
        """Sessions that the subject may have at once; None: any number."""
        if self.is_open:
            return None
        own = identity.max_sessions
        return self._config.subject_sessions if own is None else own


class Visitor:
    """A `gateway.session_core.Door` for whoever comes from one address."""

    def __init__(self, access: Access, address: str) -> None:
        self._access = access
        self._address = address

    def identify(self, token: str) -> Identity:
        return self._access.identify(token, self._address)

    def has_expired(self, identity: Identity) -> bool:
        return identity.has_expired(time.time())

    def count_start(self, identity: Identity) -> int | None:
        return self._access.count_start(identity)

    def quota(self, identity: Identity) -> int | None:
        return self._access.quota(identity)


def view_of(session: str) -> Identity:
    """Who may watch one session and do nothing else."""
    return Identity(subject=f"viewer of {session}", scopes=frozenset({Scope.VIEW}), session=session)


def bearer_of(request: Request) -> str | None:
    """What the Authorization header carries."""
    value = request.header("authorization") or ""
    return value[len(BEARER) :].strip() or None if value.lower().startswith(BEARER) else None


def _now_ms() -> float:
    return time.monotonic() * 1000
