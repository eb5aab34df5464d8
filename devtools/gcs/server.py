"""HTTP on localhost, with injected faults."""

from __future__ import annotations

import socket
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol
from urllib.parse import parse_qsl, unquote, urlsplit

from devtools.gcs.faults import Cut, Fault, Faults
from devtools.gcs.messages import Answer, Refused, Request, refusal


class Backend(Protocol):
    """What answers the requests. `latency`: minimum time of a request in seconds. `requests`: filled in here."""

    faults: Faults
    latency: float
    requests: list[tuple[str, str]]

    def answer(self, request: Request) -> Answer:
        """Handle a request. Raises Refused."""


class Server(ThreadingHTTPServer):
    """The server of `backend` on a port of localhost, any free one if it is 0."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, backend: Backend, port: int) -> None:
        self.backend = backend
        super().__init__(("127.0.0.1", port), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore errors from closed connections; other errors are bugs and are printed."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    disable_nagle_algorithm = True
    server: Server

    def log_message(self, format: str, *args: Any) -> None:
        """Do not log requests."""

    def do_GET(self) -> None:
        """Handle any method, with injected faults."""
        backend, url = self.server.backend, urlsplit(self.path)
        backend.requests.append((self.command, unquote(self.path)))
        time.sleep(backend.latency)
        fault = backend.faults.draw(self.command, unquote(self.path))
        media = url.path.startswith("/download/")
        self._unread = int(self.headers.get("Content-Length") or 0)
        try:
            try:
                self._strike(fault, "before")
                has_body = self._unread > 0
                body = self._read(fault)
                query = dict(parse_qsl(url.query, keep_blank_values=True))
                headers = {name.lower(): value for name, value in self.headers.items()}
                answer = backend.answer(Request(self.command, unquote(url.path), query, headers, body))
                self._strike(fault, "after")
            except Refused as error:
                answer, has_body = refusal(error, media), True
            self._send(answer, None if has_body else fault)
        except Cut:
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

    do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_GET  # noqa: N815

    def _strike(self, fault: Fault | None, when: str) -> None:
        if fault:
            fault.strike(when)

    def _read(self, fault: Fault | None) -> bytes:
        half = self._unread // 2
        body = self._receive(half)
        if self._unread:
            self._strike(fault, "half")
        return body + self._receive(self._unread)

    def _receive(self, size: int) -> bytes:
        data = self.rfile.read(size) if size else b""
        self._unread -= len(data)
        if len(data) < size:
            raise Cut  # the client disconnected: an incomplete body is not written
        return data

    def _send(self, answer: Answer, fault: Fault | None) -> None:
        self._receive(self._unread)  # an unread body would be parsed as the next request
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        empty = answer.status in (204, 304)
        if not empty:
            self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if not empty and self.command != "HEAD":
            half = len(answer.body) // 2
            self.wfile.write(answer.body[:half])
            if fault:
                self.wfile.flush()
            try:
                self._strike(fault, "half")
            except Refused:
                raise Cut from None  # too late for another status
            self.wfile.write(answer.body[half:])
        self.wfile.flush()
