"""Logging: one JSON object per line, as Cloud Logging reads it; plain lines on a terminal.

Use the standard library: `logging.getLogger(__name__).info("message", extra={"key": value})`; what is in `extra`
becomes a field of the entry. An entry written while a request is handled carries that request's trace, so that Google
Cloud shows it under the request (https://cloud.google.com/logging/docs/structured-logging).
"""

from __future__ import annotations

import json
import logging
import re
import sys

import flask

_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
"""What every record has; anything else came in `extra`."""
_TRACE_HEADERS = {
    "traceparent": re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}"),
    "X-Cloud-Trace-Context": re.compile(r"([0-9a-f]{32})(?:/.*)?"),
}
"""Where a request names its trace: W3C's header and Google's older one."""


def configure(project: str = "") -> None:
    """Send every record of INFO and above to standard output. `project` (its id) lets Cloud Logging find traces."""
    handler = logging.StreamHandler(sys.stdout)
    if sys.stdout.isatty():
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    else:
        handler.setFormatter(JsonFormatter(project))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON: severity, message with any traceback, the fields of `extra`, the trace."""

    def __init__(self, project: str = "") -> None:
        super().__init__()
        self.project = project

    def format(self, record: logging.LogRecord) -> str:
        """Render `record`; a value that JSON cannot hold is written as text."""
        message = record.getMessage()
        if record.exc_info:
            message += "\n" + self.formatException(record.exc_info)
        entry = {"severity": record.levelname, "message": message, "logger": record.name}
        entry |= {name: value for name, value in vars(record).items() if name not in _OWN}
        if trace := current_trace():
            entry["logging.googleapis.com/trace"] = f"projects/{self.project}/traces/{trace}" if self.project else trace
        return json.dumps(entry, default=str)


def current_trace() -> str | None:
    """The trace id of the request being handled, 32 hexadecimal digits, or None."""
    if not flask.has_request_context():
        return None
    for header, pattern in _TRACE_HEADERS.items():
        if match := pattern.fullmatch(flask.request.headers.get(header, "")):
            return match[1]
    return None
