"""Make responses, and add the headers that all of them have."""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import time
from contextlib import suppress

from flask import Request, Response

from segment.settings import Settings
from segment.web.openapi import RESULT_HEADERS
from segment.web.pace import PIECE_BYTES

log = logging.getLogger(__name__)

PACKED = ("text/", "application/json")
"""Prefixes of the media types that are sent with gzip if the client accepts it."""
DRAIN_BYTES, DRAIN_SECONDS = 64 << 20, 5.0
"""Limits for reading and discarding a refused body, so that the client gets to read the response."""
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "media-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


def json_response(value: object) -> Response:
    """`value` as JSON, not to be cached."""
    return Response(json.dumps(value), content_type="application/json", headers={"Cache-Control": "no-store"})


def cacheable(body: bytes, content_type: str, request: Request) -> Response:
    """A response that caches revalidate each time: ETag (304 if unchanged), ranges, and gzip for text."""
    response = Response(body, content_type=content_type, headers={"Cache-Control": "no-cache"})
    if content_type.startswith("text/html"):
        response.headers["Content-Security-Policy"] = PAGE_POLICY
        response.headers["Permissions-Policy"] = "camera=(self), microphone=(), geolocation=()"
    packable = content_type.startswith(PACKED) and "Range" not in request.headers
    packed = packable and request.accept_encodings["gzip"] > 0
    response.set_etag(hashlib.sha256(body).hexdigest()[:16] + ("-gzip" if packed else ""))
    response.make_conditional(request, accept_ranges=True, complete_length=len(body))
    if content_type.startswith(PACKED):
        response.vary.add("Accept-Encoding")
    if packed and response.status_code == 200:
        response.set_data(gzip.compress(body, mtime=0))
        response.content_encoding = "gzip"
    return response


def finished(request: Request, response: Response, settings: Settings, seconds: float, *, quiet: bool) -> Response:
    """Complete and log a response to `request`, which took `seconds`. `quiet`: log it as DEBUG if it succeeded."""
    response.headers.update({k: v for k, v in SECURITY_HEADERS.items() if k not in response.headers})
    _allow_origin(request, response, settings)
    _log(request, response, seconds, quiet)
    return _after_the_body(request, response)


def _allow_origin(request: Request, response: Response, settings: Settings) -> None:
    """Allow the origins in the settings to read the response (CORS, https://fetch.spec.whatwg.org)."""
    allowed = settings.cors_origins
    if not allowed:
        return
    origin = request.headers.get("Origin")
    if "*" not in allowed:
        response.vary.add("Origin")
        if origin not in allowed:
            return
    headers = response.headers
    headers["Access-Control-Allow-Origin"] = "*" if "*" in allowed else str(origin)
    headers["Access-Control-Expose-Headers"] = ", ".join(RESULT_HEADERS)
    if request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers:
        headers["Access-Control-Allow-Methods"] = headers.get("Allow", "")
        headers["Access-Control-Allow-Headers"] = "Content-Type"
        headers["Access-Control-Max-Age"] = "86400"


def _log(request: Request, response: Response, seconds: float, quiet: bool) -> None:
    fields: dict[str, object] = {"status": response.status_code, "ms": round(seconds * 1000, 1)}
    for header in ("Segment-Instances", "Segment-Network-Size", "Segment-Photo-Size"):
        if header in response.headers:
            fields[header.removeprefix("Segment-").replace("-", "_").lower()] = response.headers[header]
    if response.mimetype == "application/problem+json":
        fields["problem"] = json.loads(response.get_data())["title"]
    level = logging.DEBUG if quiet and response.status_code < 400 else logging.INFO
    log.log(level, "%s %s %d", request.method, request.path, response.status_code, extra=fields)


def _after_the_body(request: Request, response: Response) -> Response:
    """Return the response as a stream, after discarding a limited part of the request's body.

    functions-framework reads the whole remaining body into memory before it responds, unless the response is a stream.
    If nothing was read, the client of a refused upload would see a broken connection instead of the response.
    `request.stream` ends at the Content-Length, also where the server's own stream does not (Werkzeug's).
    """
    left, until = DRAIN_BYTES, time.monotonic() + DRAIN_SECONDS
    with suppress(Exception):  # servers raise various types for a malformed or truncated body
        while left > 0 and time.monotonic() < until and (dropped := len(request.stream.read(PIECE_BYTES))):
            left -= dropped
    if not response.is_streamed:
        body = response.get_data()
        response.headers["Content-Length"] = str(len(body))
        response.response = iter([body])
    return response
