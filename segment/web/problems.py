"""Problem documents (RFC 9457): the responses for errors of this package and of Werkzeug.

`PROBLEMS` maps the errors of this package to HTTP status codes. The `type` of a problem is its section in /docs, or
about:blank if the status says everything, as for a 404 (RFC 9457, 4.2.1).
"""

from __future__ import annotations

import json
import logging

from flask import Response
from werkzeug.exceptions import HTTPException, NotAcceptable, UnsupportedMediaType

from segment import errors
from segment.errors import Busy, OptionError, SegmentError

log = logging.getLogger(__name__)

PROBLEMS: dict[type[SegmentError], tuple[int, str]] = {
    errors.OptionError: (400, "Bad option"),
    errors.UnsupportedImage: (415, "Unsupported image"),
    errors.CorruptImage: (422, "Corrupt image"),
    errors.TooLarge: (413, "Too large"),
    errors.RefusedURL: (400, "Refused URL"),
    errors.FetchError: (502, "URL not fetched"),
    errors.RequestError: (400, "Bad request"),
    errors.Busy: (503, "Busy"),
    errors.Starting: (503, "Starting"),
    errors.Cancelled: (499, "Cancelled"),
    errors.ModelError: (503, "Model unavailable"),
    errors.SegmentError: (500, "Failed"),
}
"""Error class -> status and title. A class that is not listed has those of its nearest ancestor."""
HTTP_PROBLEMS: dict[type[HTTPException], str] = {
    NotAcceptable: "None of the formats in the Accept header is available.",
    UnsupportedMediaType: "The Content-Type of the request is not supported.",
}
"""Werkzeug's errors that /segment responds with -> description."""


def problem_of(error: SegmentError) -> Response:
    """The problem document of an error, with the status and title in PROBLEMS."""
    status, title = next(PROBLEMS[kind] for kind in type(error).__mro__ if kind in PROBLEMS)
    if status >= 500 and not isinstance(error, (Busy, errors.FetchError)):
        log.error("%s: %s", title, error)
    extra = {"option": error.name} if isinstance(error, OptionError) else {}
    response = problem(status, title, str(error), **extra)
    if isinstance(error, Busy):
        response.headers["Retry-After"] = str(error.retry_after)
    return response


def http_problem(error: HTTPException) -> Response:
    """The problem document of an error of Werkzeug."""
    status = error.code or 500
    detail = error.description or ""
    response = problem(status, error.name, detail)
    response.headers.extend({k: v for k, v in error.get_headers() if k.lower() != "content-type"})
    return response


def problem(status: int, title: str, detail: str, **extra: str) -> Response:
    """A problem document. `extra`: further members."""
    documented = any(title == known for _, known, _ in problems())
    document = {
        "type": f"/docs#{anchor(title)}" if documented else "about:blank",
        "title": title,
        "status": status,
        "detail": detail,
        **extra,
    }
    headers = {"Cache-Control": "no-store"}
    return Response(json.dumps(document), status, headers, content_type="application/problem+json")


def anchor(title: str) -> str:
    """The anchor of the problem with this title in /docs."""
    return title.lower().replace(" ", "-")


def problems() -> list[tuple[int, str, str]]:
    """(status, title, description) of every problem document."""
    own = [(status, title, _first_line(kind)) for kind, (status, title) in PROBLEMS.items()]
    https = [(error.code or 500, error().name, about) for error, about in HTTP_PROBLEMS.items()]
    return own + https


def _first_line(kind: type[SegmentError]) -> str:
    """The description of a problem for users: the first line of the exception's docstring."""
    if kind is SegmentError:
        return "The service could not process the request; its log has the reason."
    return (kind.__doc__ or "").strip().splitlines()[0]
