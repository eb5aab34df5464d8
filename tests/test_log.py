"""JsonFormatter writes log entries in the JSON format of Cloud Logging."""

from __future__ import annotations

import json
import logging

import flask
import pytest

from segment.log import JsonFormatter, current_trace

TRACE = "0af7651916cd43dd8448eb211c80319c"


def record(message: str, *arguments: object, **extra: object) -> logging.LogRecord:
    return logging.getLogger("test").makeRecord("test", logging.WARNING, "", 0, message, arguments, None, extra=extra)


def test_an_entry_is_one_line_with_the_fields_of_extra() -> None:
    line = JsonFormatter().format(record("Two\nlines %d", 5, status=200, path=object))
    assert "\n" not in line
    entry = json.loads(line)
    assert (entry["severity"], entry["message"], entry["logger"]) == ("WARNING", "Two\nlines 5", "test")
    assert (entry["status"], entry["path"]) == (200, "<class 'object'>")
    assert "logging.googleapis.com/trace" not in entry


def test_a_traceback_is_part_of_the_message() -> None:
    try:
        raise ValueError("why")
    except ValueError as error:
        told = logging.makeLogRecord({"msg": "Failed", "exc_info": (ValueError, error, error.__traceback__)})
    assert "ValueError: why" in json.loads(JsonFormatter().format(told))["message"]


@pytest.mark.parametrize(
    ("header", "value", "trace"),
    [
        ("traceparent", f"00-{TRACE}-b7ad6b7169203331-01", TRACE),
        ("X-Cloud-Trace-Context", f"{TRACE}/123;o=1", TRACE),
        ("X-Cloud-Trace-Context", TRACE, TRACE),
        ("X-Cloud-Trace-Context", "forged/../../", None),
        ("traceparent", "00-short-01", None),
    ],
)
def test_the_trace_of_the_request(header: str, value: str, trace: str | None) -> None:
    with flask.Flask("test").test_request_context(headers={header: value}):
        assert current_trace() == trace
        entry = json.loads(JsonFormatter("my-project").format(record("x")))
    assert entry.get("logging.googleapis.com/trace") == (trace and f"projects/my-project/traces/{trace}")
