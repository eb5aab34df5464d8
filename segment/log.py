"""Structured logging: one JSON object per line for Cloud Logging, plain lines on a terminal.

Use the standard library: `logging.getLogger(__name__).info("message", extra={"key": value})`. The keys of `extra`
become fields of the log entry. Entries written while a request is handled contain the request's trace, so that Cloud
Logging groups them with the request (https://cloud.google.com/logging/docs/structured-logging).
"""

from __future__ import annotations

import json
import logging
import re
import sys

import flask

_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
"""Attributes of every record; any other attribute comes from `extra`."""
_TRACE_HEADERS = {
    "traceparent": re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}"),
    "X-Cloud-Trace-Context": re.compile(r"([0-9a-f]{32})(?:/.*)?"),
}
"""Headers that contain the trace id: the W3C header and Google's older one."""


def configure(project: str = "") -> None:
    """Log records of level INFO and above to standard output. `project`: project id, for links to traces."""
    handler = logging.StreamHandler(sys.stdout)
    if sys.stdout.isatty():
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    else:
        handler.setFormatter(JsonFormatter(project))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


class JsonFormatter(logging.Formatter):
    """Format a record as one line of JSON: severity, message with traceback, the fields of `extra`, the trace."""

    def __init__(self, project: str = "") -> None:
        super().__init__()
        self.project = project

    def format(self, record: logging.LogRecord) -> str:
        """Format `record`. Values that are not JSON-serializable are converted to strings."""
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
