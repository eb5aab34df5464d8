"""A request, its response, and a refusal in Google's format."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_REASONS = {
    400: "invalid",
    403: "forbidden",
    404: "notFound",
    409: "conflict",
    412: "conditionNotMet",
    416: "requestedRangeNotSatisfiable",
    429: "rateLimitExceeded",
    501: "notImplemented",
    503: "backendError",
}


class Refused(Exception):
    """A request that is answered with an error status."""

    def __init__(self, status: int, message: str = "", reason: str = "") -> None:
        self.status, self.reason = status, reason or _REASONS.get(status, "backendError")
        super().__init__(message or self.reason)


@dataclass(frozen=True)
class Request:
    """One request; `path` is unquoted and has no query."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes = b""


@dataclass(frozen=True)
class Answer:
    """A response."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


def json_answer(document: Mapping[str, Any], status: int = 200) -> Answer:
    """A response with a JSON document."""
    return Answer(status, json.dumps(document).encode(), {"Content-Type": "application/json; charset=UTF-8"})


def refusal(error: Refused, media: bool) -> Answer:
    """Google's error document; the media endpoint returns plain text."""
    if media:
        return Answer(error.status, str(error).encode(), {"Content-Type": "text/html; charset=UTF-8"})
    detail = {"message": str(error), "domain": "global", "reason": error.reason}
    return json_answer({"error": {"code": error.status, "message": str(error), "errors": [detail]}}, error.status)
