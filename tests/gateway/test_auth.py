"""Tokens and API keys: what is accepted, and every way to be refused."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import jwt
import pytest

from gateway.auth import (
    LEEWAY_S,
    Identity,
    Scope,
    TokenRefused,
    check_token,
    derive_secret,
    find_api_key,
    mint_token,
    parse_api_key,
)

OLD, NEW, FOREIGN = "o" * 32, "n" * 32, "f" * 32
NOW_S = 1_000_000.0
GOOD: dict[str, Any] = {"sub": "alice", "exp": NOW_S + 60, "scope": "control view"}


def sign(secret: str = NEW, algorithm: str = "HS256", **claims: Any) -> str:
    whole = {name: value for name, value in (GOOD | claims).items() if value is not None}
    return jwt.encode(whole, secret, algorithm=algorithm)


def check(token: str, now_s: float = NOW_S) -> Identity:
    return check_token(token, (NEW, OLD), now_s)


def test_a_token_says_who_and_what() -> None:
    """Subject, scopes, quota and session; scopes of other services are left out."""
    identity = check(sign(scope="view openid control", max_sessions=3))
    assert identity == Identity(
        subject="alice",
        scopes=frozenset({Scope.CONTROL, Scope.VIEW}),
        max_sessions=3,
        expires_s=NOW_S + 60,
    )
    assert not identity.has_expired(NOW_S + 60) and identity.has_expired(NOW_S + 60 + LEEWAY_S)
    assert check(sign(scope=["admin"])).has(Scope.ADMIN)


def test_a_minted_token_says_what_it_was_minted_for() -> None:
    """Minting and checking are inverse, until it expires."""
    identity = Identity(subject="bob", scopes=frozenset({Scope.VIEW}), max_sessions=0, session="s_1")
    token = mint_token(identity, OLD, now_s=NOW_S, ttl_s=10)
    assert check(token) == replace(identity, expires_s=NOW_S + 10)
    with pytest.raises(TokenRefused, match="expired"):
        check(token, NOW_S + 10 + LEEWAY_S)


def test_secrets_are_rotated_by_having_several() -> None:
    """Each of them verifies; one that was taken away no longer does."""
    token = sign(OLD)
    assert check_token(token, (NEW, OLD), NOW_S).subject == "alice"
    with pytest.raises(TokenRefused, match="nobody known"):
        check_token(token, (NEW,), NOW_S)


@pytest.mark.parametrize(
    ("claims", "why"),
    [
        ({"exp": NOW_S - LEEWAY_S}, "expired"), ({"exp": None}, "exp"), ({"exp": "never"}, "exp"),
        ({"exp": True}, "numbers"), ({"exp": 10**400}, "numbers"), ({"exp": float("nan")}, "numbers"),
        ({"nbf": NOW_S + 60}, "not valid yet"), ({"sub": None}, "sub"),
        ({"sub": ""}, "sub"), ({"sub": "x" * 129}, "sub"), ({"sub": "a\nb"}, "sub"),
        ({"sub": 5}, "not a JWT"),
        ({"scope": None}, "scope"), ({"scope": 7}, "scope"), ({"max_sessions": -1}, "max_sessions"),
        ({"max_sessions": True}, "max_sessions"), ({"max_sessions": 1.5}, "max_sessions"),
        ({"session": 5}, "session"), ({"aud": "another-service"}, "audience"),
    ],
)  # fmt: skip
def test_bad_claims(claims: dict[str, Any], why: str) -> None:
    """Each is refused with a sentence that says why."""
    with pytest.raises(TokenRefused, match=why):
        check(sign(**claims))


def test_forged_tokens() -> None:
    """Another secret, no signature, another algorithm, a changed payload, and no token at all."""
    head, payload, signature = sign().split(".")
    other = sign(sub="root").split(".")[1]
    unsigned = jwt.encode(GOOD, None, algorithm="none")
    tokens = ["", "x", "a.b.c", "ä", sign(FOREIGN), unsigned, sign("n" * 64, "HS512")]
    tokens += [f"{head}.{other}.{signature}", f"{head}.{payload}.", f"{head}.{payload}.{signature[:-2]}"]
    for token in tokens:
        with pytest.raises(TokenRefused) as caught:
            check(token)
        assert not token or len(token) < 3 or token not in str(caught.value)


def test_what_a_token_for_one_session_may() -> None:
    """It watches that session, whoever's it is, and controls none. Others watch their own subject's."""
    bound = check(sign(session="s_1"))
    assert bound.may_watch("s_1", "bob") and not bound.may_watch("s_2", "alice") and not bound.may_control()
    free = check(sign())
    assert free.may_watch("s_2", "alice") and not free.may_watch("s_2", "bob") and free.may_control()
    controls = check(sign(scope="control"))
    assert not controls.may_watch("s_1", "alice") and controls.may_download("s_1", "alice")
    assert not controls.may_download("s_1", "bob")
    assert not check(sign(scope="view admin")).may_control()


def test_api_keys() -> None:
    """A key is known by its hash, whichever of several it is; others are not."""

    def line(name: str, key: str) -> str:
        return f"{name}:control+view:{hashlib.sha256(key.encode()).hexdigest()}"

    known = tuple(map(parse_api_key, (line("shop", "k1"), line("shop-next", "k2"))))
    assert find_api_key("k2", known) == known[1]
    assert known[0].scopes == {Scope.CONTROL, Scope.VIEW}
    for wrong in ("k3", "", hashlib.sha256(b"k1").hexdigest()):
        assert find_api_key(wrong, known) is None


@pytest.mark.parametrize(
    "text", ["", "shop", "shop:control", f"shop:root:{'a' * 64}", f"shop:view:{'A' * 64}"]
)
def test_malformed_api_keys(text: str) -> None:
    """They are refused without being repeated: somebody may have put the key itself there."""
    with pytest.raises(ValueError, match="NAME:SCOPES:SHA256"):
        parse_api_key(text)


def test_derived_secrets() -> None:
    """One per purpose, long enough to sign with, and not the first one."""
    first, second = derive_secret("s", "a"), derive_secret("s", "b")
    assert first != second and len(first) == 64 and first == derive_secret("s", "a")
