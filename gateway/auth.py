"""Who somebody is and what they may do: tokens and API keys. Pure.

A token is a JWT signed with HS256. Its claims: `sub` (who pays and is limited), `exp`, `scope` (words
separated by spaces, or a list), and optionally `nbf`, `max_sessions` and `session` (good for watching that
session and nothing else). An API key lets a server mint such tokens for its clients; the gateway knows only
its SHA-256, which is enough for 32 random bytes.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import jwt

ALGORITHM = "HS256"
MIN_SECRET_BYTES = 32
"""As long as the hash, RFC 7518 section 3.2."""
MAX_SUBJECT_CHARS = 128
MIN_TTL_S = 1
MAX_TTL_S = 24 * 3600
"""Of minted tokens: they can't be called back."""
MAX_QUOTA = 10_000
MAX_TIME_S = 2**53
"""Of exp and nbf: beyond, numbers of JSON need not be any that can be reckoned with."""
LEEWAY_S = 5.0
"""How far the clocks of those who sign and those who check may be apart."""


class Scope(Enum):
    CONTROL = "control"
    """Start and attach."""
    VIEW = "view"
    """Watch the token's session, or those of its subject."""
    ADMIN = "admin"
    """See and change the whole cluster over HTTP."""


class TokenRefused(Exception):
    """The token is not valid. `str()` is a sentence for its sender; it never holds the token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What a valid token says."""

    subject: str
    scopes: frozenset[Scope]
    max_sessions: int | None = None
    """Sessions that the subject may have at once; None: as many as the gateway's setting says."""
    session: str | None = None
    """The only session that it is good for; None: any."""
    expires_s: float | None = None
    """Unix time; None: never."""

    def has(self, scope: Scope) -> bool:
        return scope in self.scopes

    def has_expired(self, now_s: float) -> bool:
        return self.expires_s is not None and now_s >= self.expires_s + LEEWAY_S

    def may_watch(self, session: str, owner: str) -> bool:
        """The session of subject `owner`. A token that names no session shows only its own subject's, unless
        it is an administrator's: ids alone grant nothing."""
        if self.session is not None:
            return self.has(Scope.VIEW) and self.session == session
        return self.has(Scope.VIEW) and (self.subject == owner or self.has(Scope.ADMIN))

    def may_control(self) -> bool:
        """Start and attach: a token for watching one session can't."""
        return self.has(Scope.CONTROL) and self.session is None

    def may_download(self, session: str, owner: str) -> bool:
        """The session's recording: who may see it, or could have started it."""
        return self.may_watch(session, owner) or (self.may_control() and self.subject == owner)


ANYONE = Identity(subject="", scopes=frozenset(Scope))
"""Everybody, where there is no authentication."""


def check_token(token: str, secrets: Sequence[str], now_s: float) -> Identity:
    """What a token says, if one of the secrets signed it and `now_s` (Unix time) is within its life.

    Raises:
        TokenRefused: it is malformed, signed by somebody else or otherwise, too old, or from the future.
    """
    claims = _verify(token, secrets)
    expires_s, begins_s = claims["exp"], claims.get("nbf", 0)
    if not (_is_number(expires_s) and _is_number(begins_s)):
        raise TokenRefused("exp and nbf of a token must be numbers")
    if now_s >= expires_s + LEEWAY_S:
        raise TokenRefused("the token has expired")
    if now_s < begins_s - LEEWAY_S:
        raise TokenRefused("the token is not valid yet")
    subject, session, quota = claims["sub"], claims.get("session"), claims.get("max_sessions")
    if not is_subject(subject):
        raise TokenRefused(f"sub must have 1 to {MAX_SUBJECT_CHARS} printable characters")
    if session is not None and not isinstance(session, str):
        raise TokenRefused("session must be the id of a session")
    if quota is not None and not is_quota(quota):
        raise TokenRefused(f"max_sessions must be an integer from 0 to {MAX_QUOTA}")
    scopes = _scopes(claims.get("scope"))
    return Identity(subject=subject, scopes=scopes, max_sessions=quota, session=session, expires_s=expires_s)


def mint_token(identity: Identity, secret: str, *, now_s: float, ttl_s: float) -> str:
    """A token that says so, valid for ttl_s from now on."""
    claims: dict[str, Any] = {
        "sub": identity.subject,
        "scope": " ".join(sorted(scope.value for scope in identity.scopes)),
        "iat": int(now_s),
        "exp": int(now_s + ttl_s),
        "max_sessions": identity.max_sessions,
        "session": identity.session,
    }
    present = {name: value for name, value in claims.items() if value is not None}
    return jwt.encode(present, secret, algorithm=ALGORITHM)


def is_subject(value: object) -> bool:
    return isinstance(value, str) and 1 <= len(value) <= MAX_SUBJECT_CHARS and value.isprintable()


def is_quota(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_QUOTA


def derive_secret(secret: str, purpose: str) -> str:
    """A secret for one purpose, from which the first one can't be found."""
    return hmac.new(secret.encode(), purpose.encode(), hashlib.sha256).hexdigest()


def _verify(token: str, secrets: Sequence[str]) -> dict[str, Any]:
    """The claims. Times are checked by the caller: PyJWT would ask a clock of its own."""
    options: Any = {
        "require": ["sub", "exp"],
        **dict.fromkeys(("verify_exp", "verify_nbf", "verify_iat"), False),
    }
    why = "it is signed by nobody known here"
    for secret in secrets:
        try:
            claims: dict[str, Any] = jwt.decode(token, secret, algorithms=[ALGORITHM], options=options)
        except jwt.InvalidSignatureError:
            continue
        except jwt.MissingRequiredClaimError as exc:
            why = f"the claim {exc.claim} is missing"
        except jwt.InvalidAudienceError:
            why = "it is for another audience"
        except jwt.PyJWTError:
            why = f"it is not a JWT signed with {ALGORITHM}"
        else:
            return claims
        break
    raise TokenRefused(f"the token is not valid: {why}")


def _scopes(claim: object) -> frozenset[Scope]:
    """Unknown words are left out: they are other services'."""
    words = claim.split() if isinstance(claim, str) else claim
    if not isinstance(words, list):
        raise TokenRefused("the token names no scope")
    return frozenset(scope for scope in Scope if scope.value in words)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MAX_TIME_S


# --- API keys ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """One line of the setting `api_keys`."""

    name: str
    scopes: frozenset[Scope]
    """What the tokens that it mints may have at most."""
    sha256: str
    """Of the key, in hexadecimal."""


_API_KEY = re.compile(r"([\w.-]{1,64}):((?:control|view|admin)(?:\+(?:control|view|admin))*):([0-9a-f]{64})")


def parse_api_key(text: str) -> ApiKey:
    """Raises ValueError, without the text."""
    found = _API_KEY.fullmatch(text)
    if found is None:
        raise ValueError("must be NAME:SCOPES:SHA256, e.g. shop:control+view: and 64 hexadecimal digits")
    name, scopes, sha256 = found.groups()
    return ApiKey(name=name, scopes=frozenset(map(Scope, scopes.split("+"))), sha256=sha256)


def find_api_key(key: str, known: Sequence[ApiKey]) -> ApiKey | None:
    """Whose key this is. Every known one is compared, each in constant time."""
    given, found = hashlib.sha256(key.encode()).hexdigest(), None
    for each in known:
        if hmac.compare_digest(given, each.sha256):
            found = each
    return found
