"""`turboserve token`: what whoever holds the secret may sign."""

from __future__ import annotations

import time

import pytest

from gateway.auth import Scope, check_token
from launch.cli import main

SECRET, OLDER = "n" * 32, "o" * 32


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str, secrets: str | None = f"{SECRET},{OLDER}") -> int:
    monkeypatch.delenv("TURBOSERVE_TOKEN_SECRETS", raising=False)
    if secrets is not None:
        monkeypatch.setenv("TURBOSERVE_TOKEN_SECRETS", secrets)
    return main(["token", *arguments])


def test_a_token_that_a_gateway_takes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Alone on its line, signed with the newest secret, and for longer than gateways mint."""
    year_s = 365 * 24 * 3600
    asked = ("--subject", "prometheus", "--scopes", "admin,view", "--ttl-s", str(year_s))
    assert run(monkeypatch, *asked) == 0
    (token,) = capsys.readouterr().out.splitlines()
    found = check_token(token, (SECRET,), time.time())
    assert (found.subject, found.scopes) == ("prometheus", {Scope.ADMIN, Scope.VIEW})
    assert found.expires_s is not None and abs(found.expires_s - time.time() - year_s) < 60


@pytest.mark.parametrize(
    ("arguments", "secrets", "sentence"),
    [
        ((), SECRET, "subject"),
        (("--subject", ""), SECRET, "subject must have 1 to 128 printable characters"),
        (
            ("--subject", "a", "--scopes", "root"),
            SECRET,
            "scopes must be some of control, view, admin, got root",
        ),
        (("--subject", "a", "--ttl-s", "0"), SECRET, "ttl_s must be between 1 and"),
        (("--subject", "a"), "short", "must have at least 32 bytes"),
        (("--subject", "a"), None, "token_secrets is not set"),
    ],
)
def test_what_is_refused(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    secrets: str | None,
    sentence: str,
) -> None:
    """With a sentence, never with the secret."""
    assert run(monkeypatch, *arguments, secrets=secrets) == 2
    printed = capsys.readouterr()
    assert sentence in printed.err and printed.out == "" and (secrets or "-") not in printed.err
