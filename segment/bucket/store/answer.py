"""What Cloud Storage answered to a call that failed: in one sentence, and whether the call was only refused for now."""

from __future__ import annotations

import re
from http.client import responses

from google.api_core.exceptions import RetryError
from requests import Response

_QUOTAS = frozenset({"rateLimitExceeded", "userRateLimitExceeded", "quotaExceeded", "dailyLimitExceeded"})
"""Reasons of a 403 that is not about permissions (https://cloud.google.com/storage/docs/json_api/v1/status-codes)."""
_QUOTA_WORDS = re.compile(r"quota|limit ?exceeded|rate ?limit", re.IGNORECASE)
"""The same in the plain text that a download is refused with."""
_MOST = 500
"""Maximum length of a quoted message."""


def explanation(error: Exception) -> str:
    """Status and message of the response, or the client's error if there was none. A sentence."""
    last = error.cause if isinstance(error, RetryError) else error
    response = _response(last)
    if response is None:
        words = f"{type(last).__name__}: {last}"
    else:
        phrase = responses.get(response.status_code) or response.reason
        words = f"{response.status_code} {phrase}: {_content(response)[0]}"
    prefix = "no success within the time limit. The last attempt: " if isinstance(error, RetryError) else ""
    return prefix + words.strip().rstrip(".: ") + "."


def is_quota(error: Exception) -> bool:
    """Whether a quota was exceeded, so that the same call may succeed later."""
    response = _response(error)
    if response is None:
        return False
    message, reasons = _content(response)
    return bool(_QUOTAS & reasons) or (not reasons and bool(_QUOTA_WORDS.search(message)))


def _response(error: BaseException | None) -> Response | None:
    found = getattr(error, "response", None)
    return found if isinstance(found, Response) else None


def _content(response: Response) -> tuple[str, frozenset[str]]:
    """Message and reasons of a response; of a download, the message alone."""
    try:
        problem = response.json()["error"]
        reasons = frozenset(str(detail.get("reason")) for detail in problem.get("errors", []))
        return str(problem["message"])[:_MOST], reasons
    except (ValueError, TypeError, KeyError, AttributeError):
        return " ".join(response.text[:_MOST].split()), frozenset()
