"""The web page's files, read from one folder."""

from __future__ import annotations

import hashlib
from pathlib import Path
from urllib.parse import unquote

from gateway.http import Request, Response, text_response

CONTENT_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
    ".webmanifest": "application/manifest+json",
}
"""Files with another ending are not served."""
SECURITY_HEADERS = (
    (
        "Content-Security-Policy",
        "default-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:; "
        "connect-src 'self' ws: wss:; worker-src 'self' blob:; "
        "object-src 'none'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'",
    ),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
)
NAMES = {"/": "index.html", "/cluster": "cluster.html"}
"""Pages that have an address of their own."""
CACHING = ("Cache-Control", "no-cache")
"""Browsers ask each time and get 304 while the file is the same."""


class Pages:
    """Answers GET and HEAD for files below `root`; nothing outside it can be named."""

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()

    def respond(self, request: Request) -> Response:
        """The file that the path names or stands for (`NAMES`); 404 for everything else."""
        path = self._find(unquote(request.path))
        if path is None:
            return text_response(404, "there is nothing here")
        body = path.read_bytes()
        etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
        headers = (*SECURITY_HEADERS, CACHING, ("ETag", etag))
        if etag in (request.header("if-none-match") or ""):
            return Response(status=304, content_type=CONTENT_TYPES[path.suffix], headers=headers)
        return Response(body=body, content_type=CONTENT_TYPES[path.suffix], headers=headers)

    def _find(self, url_path: str) -> Path | None:
        relative = NAMES.get(url_path, url_path.lstrip("/"))
        if "\0" in relative or "\\" in relative or any(p.startswith(".") for p in relative.split("/")):
            return None
        try:
            path = (self._root / relative).resolve()
            is_served = path.is_relative_to(self._root) and path.suffix in CONTENT_TYPES and path.is_file()
        except (OSError, ValueError):
            return None
        return path if is_served else None
