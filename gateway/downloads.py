"""`GET /v1/sessions/{id}/recording.mp4`: what was recorded of a session up to now, for who may see it."""

from __future__ import annotations

import hmac
import logging

from gateway.access import Access, bearer_of
from gateway.admission import RECORDING_PATH, UNAUTHORISED
from gateway.auth import TokenRefused
from gateway.http import Request, Response, error_response
from gateway.recorder import Recorder
from gateway.session_entry import hash_resume
from scheduler.messages import ErrorCode, SessionId, SessionRecord
from scheduler.store import Store

logger = logging.getLogger("gateway.recorder")

MP4 = "video/mp4"
RETRY_AFTER = ("Retry-After", "5")


async def send_recording(
    request: Request, store: Store, access: Access, recorder: Recorder | None
) -> Response:
    """Answer the request. The bearer is a token that may see the session, or the session's resume token."""
    found = RECORDING_PATH.fullmatch(request.path)
    assert found is not None, "only for paths that fit"
    session = SessionId(found[1])
    if recorder is None:
        text = "this gateway records nothing: set recordings to a folder"
        return error_response(404, ErrorCode.UNSUPPORTED, text)
    record = await store.get_session(session)
    if (refusal := _refuse(request, access, session, record)) is not None:
        return refusal
    assert record is not None, "else it was refused"
    owner = record.subject or session
    if recorder.is_busy(owner):
        text = "too many recordings are being fetched; try again in a moment"
        return error_response(503, ErrorCode.UNAVAILABLE, text, RETRY_AFTER)
    try:
        download = await recorder.open(session, owner)
    except OSError as exc:  # the disk is full, most likely
        logger.warning("%s: its recording can't be sent: %s", session, exc)
        text = "the recording can't be read right now; try again in a moment"
        return error_response(503, ErrorCode.UNAVAILABLE, text, RETRY_AFTER)
    if download is None:
        text = "nothing of this session is recorded here: it has no chunk yet, or its video lies elsewhere"
        return error_response(409, ErrorCode.BAD_STATE, text)
    return Response(
        body=download.read(),
        content_type=MP4,
        headers=(
            ("Content-Disposition", f'attachment; filename="{session}.mp4"'),
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
        ),
        length=download.length,
    )


def _refuse(
    request: Request, access: Access, session: SessionId, record: SessionRecord | None
) -> Response | None:
    """Who asks? None: somebody who may have it."""
    bearer = bearer_of(request)
    if (
        bearer is not None
        and record is not None
        and bearer.isascii()
        and hmac.compare_digest(record.resume_hash, hash_resume(bearer))
    ):
        return None
    try:
        identity = access.identify_request(request)
    except TokenRefused as exc:
        return error_response(401, ErrorCode.UNAUTHORISED, str(exc), UNAUTHORISED)
    if record is None:
        return error_response(404, ErrorCode.NO_SUCH_SESSION, "there is no such session, or no longer")
    if not identity.may_download(session, record.subject):
        text = "this token may not see that session"
        return error_response(403, ErrorCode.NOT_ALLOWED, text)
    return None
