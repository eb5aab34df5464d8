"""A connection: uvicorn's, with a deadline for the head of each request, and limits of what is read ahead.

uvicorn parses HTTP with h11 (parser.py) and runs the ASGI application (gateway.py), which receives the body.
"""

from __future__ import annotations

import asyncio
import select
from http import HTTPStatus
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from segment.web.listener import READ_BYTES
from segment.web.parser import Parser
from segment.web.problems import problem
from segment.web.responses import SECURITY_HEADERS

HEAD_SECONDS = 10.0
"""Time limit for receiving a request's head."""
GONE_SECONDS = 0.5
"""How often it is checked whether a client that has ended its data is still there."""
LINGER_SECONDS = 2.0
"""Time in which the rest of a malformed request is discarded. If the connection were closed before, the client might
not see the response."""
MAX_REASON = 200
"""Maximum number of characters of the reason why a request is malformed. It may contain a part of the request."""
FRAMING_BYTES, FRAMING_SHARE = 64 << 10, 1 / 16
"""The framing of a chunked body (sizes of chunks, line ends) may be this share of its content, and these bytes more in
any part of the body. Each chunk takes CPU time, however small it is."""
_ENDED = getattr(select, "POLLRDHUP", 0)
"""State of a socket whose client has ended its data; only Linux has it."""


class Connection(H11Protocol, asyncio.BufferedProtocol):
    """A connection, which may serve several requests.

    `since`: when the wait for the current request's head began. `received`: bytes since then. `last`: when the last of
    them arrived. `refused`: the request is malformed; the rest is discarded.

    Reading is paused after each piece of a body until the application asks for the next one. uvicorn alone would read
    up to 320 KiB ahead, for which no memory is reserved.
    """

    since, received, last, refused = 0.0, 0, 0.0, False
    _deadline: asyncio.TimerHandle | None = None
    _ended = False  # the client has sent all of its data
    _framing = 0.0  # bytes of the current body's framing beyond FRAMING_SHARE, since they were last within it
    _buffer = memoryview(bytearray(READ_BYTES))  # of all connections: the event loop uses it for one at a time

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.conn: Parser = Parser()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the deadline of the first head."""
        super().connection_made(transport)
        self.app_state = {**self.app_state, "abort": transport.abort, "gone": self.is_gone}
        self._start_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the deadline."""
        self._stop_deadline()
        super().connection_lost(exc)

    # Receiving

    def get_buffer(self, sizehint: int) -> memoryview:
        """The buffer into which the event loop reads."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Handle `nbytes` bytes in the buffer."""
        self.data_received(bytes(self._buffer[:nbytes]))

    def data_received(self, data: bytes) -> None:
        """Parse `data`. The deadline of a further head starts with its first byte."""
        if self.refused:
            return
        in_body = self.conn.their_state is h11.SEND_BODY
        before = len(self.cycle.body) if in_body else 0
        self.received += len(data)
        self.last = self.loop.time()
        super().data_received(data)
        if in_body:
            self._count_framing(len(data), len(self.cycle.body) - before)
        else:
            self._framing = 0.0
        if self.refused:
            self.flow.resume_reading()
            return
        if self.cycle is not None and self.cycle.body:
            self.flow.pause_reading()
        if self.conn.their_state is not h11.IDLE:
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

    def _start_deadline(self) -> None:
        self.since, self.received = self.loop.time(), 0
        self._deadline = self.loop.call_later(HEAD_SECONDS, self.transport.abort)

    def _stop_deadline(self) -> None:
        if self._deadline:
            self._deadline.cancel()
            self._deadline = None

    # Malformed requests

    def send_400_response(self, msg: str) -> None:
        """Respond to a malformed request, and close the connection once the client has read that.

        If there is a response already, it is cut off.
        """
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.close()
            return
        self._write_refusal(self.conn.refusal, self.conn.reason[:MAX_REASON] or msg)
        self.transport.write_eof()
        self.refused = True
        if self.cycle is not None:  # a body that was being received
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self._stop_deadline()
        self._deadline = self.loop.call_later(LINGER_SECONDS, self.transport.abort)

    def _write_refusal(self, status: int, detail: str) -> None:
        phrase = HTTPStatus(status).phrase
        refusal = problem(status, phrase, detail)
        refusal.headers.update(SECURITY_HEADERS | {"Connection": "close"})
        headers = [(name.encode(), value.encode()) for name, value in refusal.headers]
        body = b"" if self.conn.is_head else refusal.data
        for event in (
            h11.Response(status_code=status, headers=[*self.server_state.default_headers, *headers], reason=phrase),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")

    # The end of a connection

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """Handle the end of the client's data. It may have closed the connection, or only its sending side.

        Within a body, the request is answered with an error; after it, as usual, if the client is still there.
        """
        if self.refused or self.cycle is None or self.cycle.response_complete:
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
        if self.is_gone():
            self.transport.abort()
        self.loop.call_later(GONE_SECONDS, self._close_when_gone)

    def is_gone(self) -> bool:
        """Whether the client has closed the connection. The event loop does not notice it while reading is paused.

        A client that has closed the connection looks like one that has only ended its data. Therefore such a client is
        sent the beginning of the response. If it has closed the connection, TCP answers that with a reset.
        """
        if not self.transport.is_closing() and self._poll() & _ENDED:
            self.transport.write(self.conn.begin_response())
        return self.transport.is_closing() or bool(self._poll() & (select.POLLHUP | select.POLLERR))

    def _poll(self) -> int:
        poll = select.poll()
        poll.register(self.transport.get_extra_info("socket"), _ENDED)
        return sum(state for _, state in poll.poll(0))

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection; abort it if the client does not read the rest of a response."""
        self.transport.abort() if self.transport.get_write_buffer_size() else super().timeout_keep_alive_handler()
