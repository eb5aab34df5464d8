"""The body of a request: received in the event loop as far as there is memory for it, then read in a thread."""

from __future__ import annotations

import asyncio
import io
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any

from werkzeug.exceptions import ClientDisconnected, HTTPException, RequestTimeout

from segment.errors import Busy, TooLarge
from segment.memory import Reservation
from segment.service import Service
from segment.web.pace import Pace, TooSlow
from segment.web.responses import DRAIN_BYTES

EXPECT_SECONDS = 1.0
"""After a refusal, a client that waits to be asked for its body does not send it. If it does so nevertheless within
this time, the body is discarded as usual."""
SMALL_BYTES = 4 << 10
"""Smaller pieces of a body are joined."""
SMALL_PIECES, SMALL_SECONDS = 16, 0.05
"""After this many small pieces in a row, the server waits before it receives the next one. The kernel joins what
arrives meanwhile, so that a body in tiny TCP segments does not take CPU time for each of them."""

Message = Mapping[str, Any]
Receive = Callable[[], Awaitable[Message]]


class Disconnected(Exception):
    """The client has closed the connection, or does not read."""


class Stream(io.RawIOBase):
    """A received body as a WSGI input stream. Pieces are freed once they are read."""

    def __init__(self) -> None:
        self.pieces: deque[bytes | bytearray] = deque()
        self._read = 0  # bytes of the first piece

    def add(self, data: bytes) -> None:
        """Append received bytes. Small pieces are joined, because an object takes more memory than a few bytes."""
        last = self.pieces[-1] if self.pieces else b""
        if isinstance(last, bytearray) and len(last) + len(data) <= SMALL_BYTES:
            last += data
        elif data:
            self.pieces.append(bytearray(data) if len(data) < SMALL_BYTES else data)

    def readable(self) -> bool:
        """True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read bytes into `buffer`; returns their number, 0 at the end."""
        if not self.pieces:
            return 0
        part = memoryview(self.pieces[0])[self._read : self._read + len(buffer)]
        buffer[: len(part)] = part
        self._read += len(part)
        if self._read == len(self.pieces[0]):
            self.pieces.popleft()
            self._read = 0
        return len(part)

    def clear(self) -> None:
        """Free what has not been read."""
        self.pieces.clear()


class Body:
    """The body of one request.

    `unread`: whether a part of it has not been received. `stream`: what has been received. `announced`: its size, 0 if
    that is unknown.
    """

    def __init__(self, scope: Message, receive: Receive) -> None:
        headers = dict(scope["headers"])
        self.announced = int(headers.get(b"content-length", b"0"))
        self.unread = b"transfer-encoding" in headers or self.announced > 0
        self.stream = Stream()
        self._connection: Mapping[str, Any] = scope["state"]
        self._receive = receive
        self._unasked = b"expect" in headers  # the client may wait to be asked for the body (RFC 9110, 10.1.1)
        self._small = 0  # small pieces in a row

    async def receive(self, service: Service, held: Reservation) -> None:
        """Receive all of it, and reserve its memory. Raises TooLarge, Busy, RequestTimeout, Disconnected."""
        limit = service.upload_limit
        if self.announced > limit:
            raise _too_large(limit)
        held.announced = self.announced or limit
        pace = Pace(service.settings.receive_seconds, lambda: service.uploads_wait)
        self._unasked = False
        while self.unread:
            piece = await self._next_piece(pace)
            if held.bytes + len(piece) > limit:
                raise _too_large(limit)
            await self._reserve(held, len(piece), pace, service.settings.wait_seconds)
            self.stream.add(piece)

    async def drain(self, seconds: float) -> None:
        """Receive and discard a part of it. Many clients do not read the response before they have sent all of it."""
        if self._connection.get("truncated"):
            return
        if self._unasked:
            pace = Pace(EXPECT_SECONDS, lambda: False)
        else:
            pace = Pace(seconds, lambda: False, late_rate=math.inf)
        left = DRAIN_BYTES
        with suppress(HTTPException):
            while self.unread and left > 0:
                left -= len(await self._next_piece(pace))

    async def _next_piece(self, pace: Pace) -> bytes:
        while True:
            try:
                async with asyncio.timeout_at(pace.until):
                    message = await self._next_message()
            except TimeoutError:
                _check(pace)
                continue
            if message["type"] == "http.disconnect":
                raise Disconnected
            self.unread = message.get("more_body", False)
            if self._connection.get("truncated"):
                self.unread = True
                raise ClientDisconnected("The body ended before its announced length.")
            piece: bytes = message.get("body", b"")
            pace.add(len(piece))
            if self.unread:
                _check(pace)
            return piece

    async def _next_message(self) -> Message:
        if self._small > SMALL_PIECES:
            await asyncio.sleep(SMALL_SECONDS)
        message = await self._receive()
        self._small = self._small + 1 if len(message.get("body", b"")) < SMALL_BYTES else 0
        return message

    async def _reserve(self, held: Reservation, count: int, pace: Pace, wait_seconds: float) -> None:
        """Reserve `count` bytes. The time spent waiting does not count against the client."""
        start = time.monotonic()
        while not held.try_grow(count):
            await asyncio.sleep(held.attempt_seconds())
            if self._connection["gone"]():
                raise Disconnected
            if held.waited(time.monotonic()) > wait_seconds:
                raise Busy("Timed out waiting for memory for this photo. Try again in a moment.", held.retry_seconds())
        pace.pause(time.monotonic() - start)


def _check(pace: Pace) -> None:
    """Raise RequestTimeout if the client is too slow."""
    try:
        pace.check()
    except TooSlow as error:
        raise RequestTimeout(str(error)) from None


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"The request body is larger than {limit:,} bytes, the maximum that this instance accepts.")
