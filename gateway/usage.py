"""`GET /v1/usage?subject=&since=`: what closed sessions have used, page by page."""

from __future__ import annotations

import re

from gateway.http import Request, Response, error_response, json_response
from scheduler.messages import ErrorCode, encode
from scheduler.store import Store

SINCE = re.compile(r"[0-9]{1,15}(-[0-9]{1,15})?")
PAGE = 1_000


async def list_usage(request: Request, store: Store) -> Response:
    """Answer the request. The caller has checked who asks."""
    query = request.query
    since = query.get("since") or "0"
    if unknown := set(query) - {"subject", "since"}:
        text = f"there is no parameter {', '.join(sorted(unknown))}; there are subject and since"
        return error_response(400, ErrorCode.BAD_MESSAGE, text)
    if not SINCE.fullmatch(since):
        text = "since must be a Unix time in ms, or what the last answer had as next"
        return error_response(400, ErrorCode.BAD_MESSAGE, text)
    found, cursor = await store.read_usage(since, subject=query.get("subject"), count=PAGE)
    records = []
    for usage in found:
        fields = encode(usage)
        del fields["type"]
        records.append(fields)
    return json_response({"usage": records, "next": cursor})
