"""An in-memory emulator of a Pub/Sub subscription for tests: the calls that segment/bucket/pubsub.py makes.

    with Server() as server:
        server.publish(message)
        os.environ["PUBSUB_EMULATOR_HOST"] = server.host

A pulled message is delivered again after its deadline, until it is acknowledged.
"""

from __future__ import annotations

import itertools
import json
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

ACK_SECONDS = 10.0
"""Default deadline of a pulled message: time after which it is delivered again."""


@dataclass
class _Kept:
    """A message. `until`: time of the next delivery (time.monotonic())."""

    message: Mapping[str, Any]
    until: float = 0.0


class Server:
    """The server with one subscription; a context manager that serves while it is entered."""

    def __init__(self, name: str = "projects/p/subscriptions/dead") -> None:
        self.name = name
        self.deadlines: list[int] = []
        self.failures: list[int] = []
        """Status codes of the next responses."""
        self._kept: dict[str, _Kept] = {}
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"server_of": self}))
        self.host = f"127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def publish(self, message: Mapping[str, Any]) -> None:
        """Add a message in the format of a push request."""
        with self._lock:
            number = str(next(self._numbers))
            self._kept[number] = _Kept({**message, "messageId": number})

    def expire(self) -> None:
        """Expire all deadlines."""
        with self._lock:
            for kept in self._kept.values():
                kept.until = 0.0

    @property
    def messages(self) -> list[Mapping[str, Any]]:
        """The messages that are not acknowledged."""
        with self._lock:
            return [kept.message for kept in self._kept.values()]

    def answer(self, path: str, body: Mapping[str, Any]) -> tuple[int, Mapping[str, Any]]:
        """The status and the JSON document of the response."""
        match = re.fullmatch(r"/v1/(.*):(\w+)", path)
        with self._lock:
            if self.failures:
                return _error(self.failures.pop(0), "A failure on demand.")
            if not match or match[1] != self.name:
                return _error(404, "Resource not found (resource=dead).")
            receipts = [receipt for receipt in body.get("ackIds", []) if receipt in self._kept]
            if match[2] == "pull":
                ready = [item for item in self._kept.items() if item[1].until <= time.monotonic()]
                for _, kept in ready[: body["maxMessages"]]:
                    kept.until = time.monotonic() + ACK_SECONDS
                found = [{"ackId": key, "message": kept.message} for key, kept in ready[: body["maxMessages"]]]
                return 200, {"receivedMessages": found} if found else {}
            if match[2] == "acknowledge":
                for receipt in receipts:
                    del self._kept[receipt]
                return 200, {}
            if match[2] == "modifyAckDeadline":
                self.deadlines.append(body["ackDeadlineSeconds"])
                for receipt in receipts:
                    self._kept[receipt].until = time.monotonic() + body["ackDeadlineSeconds"]
                return 200, {}
        return _error(501, f"{match[2]} is not served here.")


def _error(status: int, message: str) -> tuple[int, Mapping[str, Any]]:
    return status, {"error": {"code": status, "message": message}}


class _Handler(BaseHTTPRequestHandler):
    server_of: Server

    def log_message(self, format: str, *args: Any) -> None:
        """Do not log requests."""

    def do_POST(self) -> None:
        """Handle a call."""
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
        status, document = self.server_of.answer(self.path, body)
        data = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
