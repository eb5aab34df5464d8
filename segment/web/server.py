"""The web server: uvicorn, with limits for connections whose requests are incomplete.

uvicorn parses HTTP with h11, which limits the size of a request's head (request line and headers). This module adds a
deadline for the head and a limit for the number of connections. gateway.py handles the body. There is one process with
one event loop, because each further process would load the model again.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Container, Sequence
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from segment.errors import ModelError, SettingsError
from segment.service import Service
from segment.web import labelling
from segment.web.app import upload_paths
from segment.web.gateway import INSTANT, Gateway
from segment.web.pace import WINDOW_BYTES, WINDOW_SECONDS
from segment.web.parser import Parser
from segment.web.problems import problem
from segment.web.responses import SECURITY_HEADERS
from segment.web.startup import NEEDS_MODEL, Startup

log = logging.getLogger(__name__)

MAIN = Path(__file__).parent.parent / "main.py"
"""The package's own function targets."""
FAILURE_SECONDS = 3.0
"""Time between a failed preparation of the model and the server's exit, in which the page can show the reason."""
HEAD_SECONDS = 10.0
"""Time limit for receiving a request's head."""
KEEP_ALIVE_SECONDS = 5
GONE_SECONDS = 0.5
"""How often it is checked whether a client that has ended its data is still there."""
ENDED = getattr(select, "POLLRDHUP", 0)
"""State of a socket whose client has ended its data; only Linux has it."""
LINGER_SECONDS = 2.0
"""Time in which the rest of a malformed request is discarded. If the connection were closed before, the client might
not see the response."""
MAX_REASON = 200
"""Maximum number of characters of the reason why a request is malformed. It may contain a part of the request."""
FRAMING_BYTES, FRAMING_SHARE = 64 << 10, 1 / 16
"""The framing of a chunked body (sizes of chunks, line ends) may be this share of its content, and these bytes more in
any part of the body. Each chunk takes CPU time, however small it is."""
MAX_CONNECTIONS = 128
"""If there are more connections, one is closed, see `Protocol._rank`."""
NEW_SECONDS = 1.0
"""Time in which a connection that has sent little is not closed in favour of slow ones."""
BACKLOG = 128
"""Connections that the kernel accepts before the server does."""
READ_BYTES = 16 << 10
"""The most that is read from a connection at once, and the kernel's receive buffer of a connection in the backlog."""
SOCKET_BYTES = 64 << 10
"""The kernel's send buffer of each connection, and the receive buffer of FAST_CONNECTIONS. By default they grow to
several MiB. (The kernel doubles the values, for its own data structures.)"""
FAST_CONNECTIONS = 32
"""Further connections keep the receive buffer of the backlog, so they take less memory, but receive more slowly."""
FETCHING_SHARE = 0.75
"""Share of the threads for requests that may fetch a URL, so that slow URLs leave some for photos that are uploaded."""
STOP_SECONDS = 8
"""Time limit for running requests after SIGTERM; Cloud Run kills the process after 10 s."""


class Protocol(H11Protocol, asyncio.BufferedProtocol):
    """A connection with a deadline for the head of each request.

    Reading is paused after each piece of a body until the application asks for the next one. uvicorn alone would read
    up to 320 KiB ahead, for which no memory is reserved.
    """

    _deadline: asyncio.TimerHandle | None = None
    _since = 0.0  # when the wait for the current request's head began
    _received = 0  # bytes since then
    _last = 0.0  # when the last of them arrived
    _refused = False  # the request is malformed; the rest is discarded
    _ended = False  # the client has sent all of its data
    _framing = 0.0  # bytes of the current body's framing beyond FRAMING_SHARE, since they were last within it
    _buffer = memoryview(bytearray(READ_BYTES))  # of all connections: the event loop uses it for one at a time

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.conn: Parser = Parser()

    def get_buffer(self, sizehint: int) -> memoryview:
        """The buffer into which the event loop reads."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Handle `nbytes` bytes in the buffer."""
        self.data_received(bytes(self._buffer[:nbytes]))

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the deadline of the first head; close another connection if there are too many."""
        super().connection_made(transport)
        self.app_state = {**self.app_state, "abort": transport.abort, "gone": self._is_gone}
        if len(self.connections) <= FAST_CONNECTIONS:
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BYTES)
        self._start_deadline()
        self._limit_connections()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the deadline."""
        self._stop_deadline()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse `data`. The deadline of a further head starts with its first byte."""
        if self._refused:
            return
        in_body = self.conn.their_state is h11.SEND_BODY
        before = len(self.cycle.body) if in_body else 0
        self._received += len(data)
        self._last = self.loop.time()
        super().data_received(data)
        if in_body:
            self._count_framing(len(data), len(self.cycle.body) - before)
        else:
            self._framing = 0.0
        if self.cycle is not None and self.cycle.body:
            self.flow.pause_reading()
        if self._refused:
            self.flow.resume_reading()
        elif self.conn.their_state is not h11.IDLE:
            self._stop_deadline()
        elif not self._deadline and not self.transport.is_closing():
            self._start_deadline()

    def _count_framing(self, received: int, content: int) -> None:
        """Refuse a body whose chunks are so small that parsing them takes much time per byte.

        Large chunks do not make up for small ones that follow.
        """
        self._framing = max(self._framing + received - content - FRAMING_SHARE * content, 0.0)
        if self._framing > FRAMING_BYTES and not self.transport.is_closing():
            self.send_400_response("The chunks of the body are too small.")

    def send_400_response(self, msg: str) -> None:
        """Respond to a malformed request, and close the connection once the client has read that.

        If there is a response already, it is cut off.
        """
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.close()
            return
        status, detail = self.conn.refusal, self.conn.reason[:MAX_REASON] or msg
        phrase = HTTPStatus(status).phrase
        refusal = problem(status, phrase, detail)
        refusal.headers.update(SECURITY_HEADERS | {"Connection": "close"})
        headers = [(name.encode(), value.encode()) for name, value in refusal.headers]
        response = h11.Response(
            status_code=status, headers=[*self.server_state.default_headers, *headers], reason=phrase
        )
        body = b"" if self.conn.is_head else refusal.data
        for event in (response, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.write_eof()
        self._refused = True
        if self.cycle is not None:  # a body that was being received
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self._stop_deadline()
        self._deadline = self.loop.call_later(LINGER_SECONDS, self.transport.abort)

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """Handle the end of the client's data. It may have closed the connection, or only its sending side.

        Within a body, the request is answered with an error; after it, as usual, if the client is still there.
        """
        if self.cycle is None or self.cycle.response_complete:
            return None
        if self.conn.their_state is h11.SEND_BODY:
            self.scope["state"]["truncated"] = True
            self.cycle.more_body = False
            self.cycle.message_event.set()
        elif not self._ended:
            self._ended = True
            self.loop.call_later(GONE_SECONDS, self._close_when_gone)
        return True

    def on_response_complete(self) -> None:
        """Go on with the next request, or close the connection if the client sends no more."""
        super().on_response_complete()
        if self._ended and self.cycle.response_complete:
            self.transport.close()

    def _close_when_gone(self) -> None:
        """The event loop does not notice it after the end of the client's data."""
        if self.transport.is_closing():
            return
        if self._is_gone():
            self.transport.abort()
        self.loop.call_later(GONE_SECONDS, self._close_when_gone)

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection; abort it if the client does not read the rest of a response."""
        self.transport.abort() if self.transport.get_write_buffer_size() else super().timeout_keep_alive_handler()

    def _is_gone(self) -> bool:
        """Whether the client has closed the connection. The event loop does not notice it while reading is paused.

        A client that has closed the connection looks like one that has only ended its data. Therefore such a client is
        sent the beginning of the response. If it has closed the connection, TCP answers that with a reset.
        """
        state = 0 if self.transport.is_closing() else self._poll()
        if state & ENDED and (beginning := self.conn.begin_response()):
            self.transport.write(beginning)
        return self.transport.is_closing() or bool(self._poll() & (select.POLLHUP | select.POLLERR))

    def _poll(self) -> int:
        poll = select.poll()
        poll.register(self.transport.get_extra_info("socket"), ENDED)
        return sum(state for _, state in poll.poll(0))

    def _limit_connections(self) -> None:
        # A connection that is being closed stays in self.connections until the event loop's next turn.
        connections = [c for c in self.connections if isinstance(c, Protocol) and not c.transport.is_closing()]
        if len(connections) > MAX_CONNECTIONS:
            others = [c for c in connections if c is not self and c._waits_for_client()]
            min(others, key=Protocol._rank, default=self).transport.abort()

    def _waits_for_client(self) -> bool:
        receives = self._refused or self.conn.their_state in (h11.IDLE, h11.SEND_BODY)
        return receives or self.transport.get_write_buffer_size() > 0

    def _rank(self) -> tuple[int, float]:
        """Among the connections that wait for their client, those with a lower rank are closed first.

        These are idle ones, and those whose client has gone, whose head is late or whose body was refused; then bodies
        that are slower than is allowed; then clients that do not read their response; then bodies that wait for
        memory; then new connections; then the slowest body.
        """
        now, state = self.loop.time(), self.conn.their_state
        age, is_paused = now - self._since, self.flow.read_paused
        if self._refused or self._is_gone():
            return 0, self._since
        if state is h11.SEND_BODY and self.conn.our_state is not h11.SEND_BODY:
            rate = self._received / max(age, NEW_SECONDS)
            if is_paused and now - self._last >= NEW_SECONDS:
                return 3, self._since
            if is_paused or rate >= WINDOW_BYTES / WINDOW_SECONDS:
                return 5, rate
            return (4, self._since) if age < NEW_SECONDS else (1, rate)
        if state is h11.IDLE and age < NEW_SECONDS:
            return 4, self._since
        return 0 if state in (h11.IDLE, h11.SEND_BODY) else 2, self._since

    def _start_deadline(self) -> None:
        self._since, self._received = self.loop.time(), 0
        self._deadline = self.loop.call_later(HEAD_SECONDS, self.transport.abort)

    def _stop_deadline(self) -> None:
        if self._deadline:
            self._deadline.cancel()
            self._deadline = None


class _AllPathsBut:
    def __init__(self, excepted: Container[str] = ()) -> None:
        self.excepted = excepted

    def __contains__(self, path: object) -> bool:
        return path not in self.excepted


def _load(service: Service) -> None:
    """Load the model before the first request: Label Studio waits 3 s for its answer (ML_TIMEOUT_SETUP)."""
    with suppress(ModelError):  # each request that needs the model gets the error
        service.load()


def run(
    host: str,
    port: int,
    threads: int,
    source: str | None = None,
    target: str | None = None,
    prepare: Sequence[str] = (),
) -> int:
    """Serve functions-framework's application for `target` until SIGTERM or SIGINT, then exit with status 0.

    `source`: file that defines the function target, segment/main.py by default. `target`: by default FUNCTION_TARGET.
    `prepare`: command that prepares the model while the server is already listening, see startup.py. If it fails, the
    server stops and 1 is returned. Raises SettingsError if it cannot listen on `host` and `port`.
    """
    listening = listen(host, port)
    import functions_framework

    application: Any = functions_framework.create_app(target, source or str(MAIN))  # type: ignore[no-untyped-call]
    service, http = application.extensions["segment"], application.name == "segment_http"
    uploads: Container[str] = upload_paths(service.settings) if http else _AllPathsBut()
    needs_model: Container[str] = (
        NEEDS_MODEL.union(labelling.routes(service.settings)) if http else _AllPathsBut(INSTANT)
    )
    failed = threading.Event()
    startup = Startup(service, prepare, failed.set) if prepare else None
    fetching = max(1, int(threads * FETCHING_SHARE)) if http else threads
    gateway = Gateway(application, service, threads, uploads, startup, needs_model, fetching)
    server = uvicorn.Server(_config(gateway))
    for number in (signal.SIGTERM, signal.SIGINT):  # uvicorn raises the signal again after it has shut down
        signal.signal(number, lambda *_: sys.exit(0))
    if startup is None and service.settings.labelling:
        threading.Thread(target=_load, args=(service,), daemon=True).start()
    log.info("Serving on http://%s:%d (Ctrl-C stops it)", _name(host), port)
    if startup is None:
        server.run([listening])
        return 0
    threading.Thread(target=_end_after, args=(failed, server), daemon=True).start()
    startup.start()
    try:
        server.run([listening])
    finally:
        startup.stop()
    return int(failed.is_set())


def _name(host: str) -> str:
    """The host in the URL of a server that listens on the address `host`."""
    if host in ("0.0.0.0", "::"):
        return "localhost"
    return f"[{host}]" if ":" in host else host


def _config(gateway: Gateway) -> uvicorn.Config:
    return uvicorn.Config(
        gateway,
        http=Protocol,
        ws="none",
        lifespan="off",
        interface="asgi3",
        loop="asyncio",
        log_config=None,
        log_level="error",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=True,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=STOP_SECONDS,
    )


def listen(host: str, port: int) -> socket.socket:
    """A TCP socket that listens on `host` and `port`. Raises SettingsError if that is not possible."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family, backlog=BACKLOG)
    except (OSError, TypeError, UnicodeError) as error:  # the last two of a host that is no text, or no host name
        number = getattr(error, "errno", 0) or 0
        if number == errno.EADDRINUSE:
            raise SettingsError(
                f"Port {port} is already in use. Stop the other program, or set PORT to a free port."
            ) from None
        # Negative numbers are those of getaddrinfo. error.strerror repeats the address.
        reason = os.strerror(number) if number > 0 else "the name cannot be resolved"
        raise SettingsError(
            f"Cannot listen on {host[:100]}, port {port}: {reason}. Set HOST and PORT to other values."
        ) from None
    # Connections inherit it. asyncio only sets it on sockets that were created with the protocol number of TCP. Without
    # it, the body of a response waits for the client's delayed acknowledgement of the head, which takes 40 ms.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # Inherited, too. The receive buffer can be enlarged when the server takes the connection.
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, READ_BYTES)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)
    return listening


def _end_after(failed: threading.Event, server: uvicorn.Server) -> None:
    """End the server some seconds after the preparation of the model failed."""
    failed.wait()
    time.sleep(FAILURE_SECONDS)
    server.should_exit = True
