"""Requests that hand out tokens: `POST /v1/tokens` for servers, `POST /v1/sessions/{id}/watch` to share."""

from __future__ import annotations

import hmac
import json
import re

from gateway.access import Access, Grant, view_of
from gateway.auth import MAX_QUOTA, MAX_TTL_S, MIN_TTL_S, ApiKey, Identity, Scope, is_quota, is_subject
from gateway.http import Request, Response, error_response, json_response
from gateway.session_entry import SESSION_ID, hash_resume
from scheduler.messages import ErrorCode, Phase, SessionId
from scheduler.store import Store

WATCH_PATH = re.compile(rf"/v1/sessions/({SESSION_ID.pattern})/watch")
RECORDING_PATH = re.compile(rf"/v1/sessions/({SESSION_ID.pattern})/recording\.mp4")
UNAUTHORISED = ("WWW-Authenticate", "Bearer")


def mint_for(request: Request, access: Access) -> Response:
    """Answer `POST /v1/tokens`."""
    if access.is_open:
        text = "this gateway runs without authentication: no token is needed"
        return error_response(409, ErrorCode.BAD_STATE, text)
    key = access.find_key(request)
    if key is None:
        text = "send an API key: Authorization: Bearer <key>"
        return error_response(401, ErrorCode.UNAUTHORISED, text, UNAUTHORISED)
    body = parse_object(request.body)
    try:
        identity, ttl_s = read_wish(body, key)
    except ValueError as exc:
        return error_response(400, ErrorCode.BAD_MESSAGE, str(exc))
    except PermissionError as exc:
        return error_response(403, ErrorCode.NOT_ALLOWED, str(exc))
    return _granted(access.grant(identity, ttl_s), identity)


def read_wish(body: dict[str, object] | None, key: ApiKey) -> tuple[Identity, float | None]:
    """(what the token shall say, its life in seconds or None). Scopes default to those of the key but admin.

    Raises:
        ValueError: the body is not what docs/protocol.md says.
        PermissionError: the key may not give these scopes away.
    """
    if body is None:
        raise ValueError('the body must be a JSON object such as {"subject": "alice", "scopes": ["control"]}')
    subject, quota, session = body.get("subject"), body.get("max_sessions"), body.get("session")
    if not isinstance(subject, str) or not is_subject(subject):
        raise ValueError("subject must have 1 to 128 printable characters")
    if quota is not None and not (isinstance(quota, int) and is_quota(quota)):
        raise ValueError(f"max_sessions must be an integer from 0 to {MAX_QUOTA}")
    if session is not None and not (isinstance(session, str) and SESSION_ID.fullmatch(session)):
        raise ValueError("session must be the id of a session")
    scopes = _read_scopes(body.get("scopes"), key.scopes - {Scope.ADMIN})
    if not scopes <= key.scopes:
        raise PermissionError("this key may not give away all of these scopes")
    identity = Identity(subject=subject, scopes=scopes, max_sessions=quota, session=session)
    return identity, _read_ttl_s(body.get("ttl_s"))


async def let_watch(request: Request, store: Store, access: Access) -> Response:
    """Answer `POST /v1/sessions/{id}/watch`: who holds the session's resume token may let others watch it."""
    found = WATCH_PATH.fullmatch(request.path)
    assert found is not None, "only for paths that fit"
    session = SessionId(found[1])
    body = parse_object(request.body) or {}
    resume = body.get("resume")
    if not isinstance(resume, str) or not resume.isascii():
        return error_response(400, ErrorCode.BAD_MESSAGE, 'the body must be {"resume": "<the session\'s>"}')
    try:
        ttl_s = _read_ttl_s(body.get("ttl_s"))
    except ValueError as exc:
        return error_response(400, ErrorCode.BAD_MESSAGE, str(exc))
    record = await store.get_session(session)
    if (
        record is None
        or record.phase is Phase.CLOSED
        or not hmac.compare_digest(record.resume_hash, hash_resume(resume))
    ):
        text = "there is no such session, or the resume token is wrong"
        return error_response(404, ErrorCode.NO_SUCH_SESSION, text)
    identity = view_of(session)
    return _granted(access.grant(identity, ttl_s), identity)


def parse_object(body: bytes) -> dict[str, object] | None:
    """A JSON object, None when it is none."""
    try:
        parsed = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return parsed if isinstance(parsed, dict) else None


def _read_scopes(value: object, default: frozenset[Scope]) -> frozenset[Scope]:
    if value is None:
        return default
    known = {scope.value: scope for scope in Scope}
    if not isinstance(value, list) or not value or not all(isinstance(v, str) and v in known for v in value):
        raise ValueError(f"scopes must be a list of {', '.join(known)}")
    return frozenset(known[word] for word in value)


def _read_ttl_s(value: object) -> float | None:
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ValueError("ttl_s must be a number")
    if not MIN_TTL_S <= value <= MAX_TTL_S:
        raise ValueError(f"ttl_s must be from {MIN_TTL_S} to {MAX_TTL_S} seconds")
    return float(value)


def _granted(grant: Grant, identity: Identity) -> Response:
    answer: dict[str, object] = {
        "token": grant.token,
        "expires_in_s": grant.ttl_s,
        "subject": identity.subject,
        "scopes": sorted(scope.value for scope in identity.scopes),
    }
    response = json_response(answer)
    return Response(
        body=response.body, content_type=response.content_type, headers=(("Cache-Control", "no-store"),)
    )
