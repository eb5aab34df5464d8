"""An ASGI application that runs functions-framework's WSGI application without letting slow clients occupy threads.

Specification: https://asgi.readthedocs.io/en/latest/specs/www.html. For each request, the event loop receives the whole
body and reserves memory in steps as the bytes arrive, then the WSGI application runs in a thread, then the event loop
sends the response. Threads only compute; a client that sends or reads slowly takes a connection and the memory of the
bytes that it has sent. Clients that are too slow get a 408; when others wait for memory, it takes less to be too slow,
so that slow clients cannot keep all memory from the others. /health and /progress are answered in the event loop.

The framework's own server and gunicorn do not do this: both occupy a thread from the first byte of a request.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Awaitable, Callable, Container, Iterable
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

from werkzeug.exceptions import HTTPException

from segment.errors import SegmentError
from segment.memory import Reservation
from segment.service import Service
from segment.web.app import refuse
from segment.web.body import Body, Disconnected, Message, Receive
from segment.web.exchange import CANCELLED, FETCH_SECONDS, PROGRESS, RECEIVED
from segment.web.pace import PIECE_BYTES, Pace, TooSlow
from segment.web.startup import Startup
from segment.web.threads import Threads
from segment.web.upload import MAX_OPTION_BYTES
from segment.web.wsgi import Answer, call, environment, origin_form

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

SEND_SECONDS = 30.0
"""Time limit for a client to accept each piece of the response."""
INSTANT = frozenset({"/health", "/progress"})
"""Paths that are answered in the event loop."""

Send = Callable[[Message], Awaitable[None]]


class Gateway:
    """The ASGI application.

    `threads`: maximum number of requests that the WSGI application handles at once. `fetching`: maximum number of those
    that may fetch a URL, which can be slow, all by default. `uploads`: paths whose bodies are received; the body of a
    request for any other path is discarded. `startup`: prepares the model, if needed. `needs_model`: paths that are
    refused until the model is prepared.
    """

    def __init__(
        self,
        application: WSGIApplication,
        service: Service,
        threads: int,
        uploads: Container[str],
        startup: Startup | None = None,
        needs_model: Container[str] = (),
        fetching: int | None = None,
    ) -> None:
        self.application = application
        self.service = service
        self.uploads = uploads
        self.startup = startup
        self.needs_model = needs_model
        self.threads = Threads(threads, fetching or threads)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Handle one request."""
        try:
            await _Cycle(self, origin_form(scope), receive, send).run()
        except Disconnected:
            scope["state"]["abort"]()
            while (await receive())["type"] != "http.disconnect":  # before that, uvicorn would log a missing response
                pass

    def refusal(self, path: str) -> SegmentError | None:
        """Why a request for `path` cannot be answered before the model is ready, or None."""
        return self.startup.refusal() if self.startup and path in self.needs_model else None


class _Cycle:
    """One request and its response."""

    def __init__(self, gateway: Gateway, scope: Message, receive: Receive, send: Send) -> None:
        self.gateway, self.service = gateway, gateway.service
        self.scope, self._receive, self._send = scope, receive, send
        self.body = Body(scope, receive)
        self.gone = threading.Event()

    async def run(self) -> None:
        if self.scope["path"] in INSTANT and not self.body.unread:
            answer = self._call(self.gateway.application)
        elif refusal := self.gateway.refusal(self.scope["path"]):
            answer = self._call(refuse(self.service, refusal))
        else:
            answer = await self._answer()
        await self._respond(*answer)

    async def _answer(self) -> Answer:
        """Receive the body, if there is one, and call the application in a thread."""
        application, held = self.gateway.application, None
        with ExitStack() as stack:
            if self.body.unread and self.scope["path"] in self.gateway.uploads:
                try:
                    held = await self._receive_body(stack)
                except (SegmentError, HTTPException) as error:
                    self.body.stream.clear()
                    stack.close()
                    application = refuse(self.service, error)
            if not self.body.unread:
                stack.callback(asyncio.create_task(self._watch()).cancel)
            if held:
                held.blocked = True  # until a thread is free
            fetches = self._may_fetch(held)
            answer = await self.gateway.threads.call(lambda: self._call(application, held), fetches=fetches)
            self.body.stream.clear()  # what the application did not read, for example of a refused request
            return answer

    async def _receive_body(self, stack: ExitStack) -> Reservation:
        """Receive the body. Raises TooLarge, Busy, ModelError, RequestTimeout, Disconnected."""
        if not self.service.ready:
            await self.gateway.threads.call(self.service.load)
        held = stack.enter_context(self.service.receive())
        await self.body.receive(self.service, held)
        return held

    async def _watch(self) -> None:
        """Set `gone` when the client closes the connection."""
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.gone.set()

    def _may_fetch(self, held: Reservation | None) -> bool:
        """Whether the request may contain a URL that is fetched: in the query, or in a small body."""
        is_photo = any(name == b"content-type" and kind.startswith(b"image/") for name, kind in self.scope["headers"])
        in_body = held is not None and held.bytes <= MAX_OPTION_BYTES and not is_photo
        return in_body or b"url=" in self.scope["query_string"]

    def _call(self, application: WSGIApplication, held: Reservation | None = None) -> Answer:
        """Call the WSGI application. Its environment is only made now, because it takes as much memory as the head."""
        environ = environment(self.scope, self.body.stream)
        environ[CANCELLED] = self.gone.is_set
        environ[FETCH_SECONDS] = self.gateway.threads.fetch_seconds
        if self.gateway.startup:
            environ[PROGRESS] = self.gateway.startup.progress
        if held:
            environ[RECEIVED] = held
            held.blocked = False
        return call(application, environ)

    async def _respond(self, status: int, headers: list[tuple[bytes, bytes]], pieces: Iterable[bytes]) -> None:
        """Send the response, then receive and discard a part of a body that was refused.

        When others wait for memory, the client must read as fast as a client that uploads must send.
        """
        pace = Pace(math.inf, lambda: self.service.requests_wait, window_bytes=0, late_rate=0)
        closing = asyncio.create_task(self._close_if_slow(pace))
        try:
            if self.body.unread:
                headers.append((b"connection", b"close"))
            await self._deliver({"type": "http.response.start", "status": status, "headers": headers})
            for piece in pieces:
                view = memoryview(piece)
                for start in range(0, len(view), PIECE_BYTES):
                    part = bytes(view[start : start + PIECE_BYTES])
                    await self._deliver({"type": "http.response.body", "body": part, "more_body": True})
                    pace.add(len(part))
            closing.cancel()
            if self.body.unread:
                await self.body.drain(self.service.settings.receive_seconds)
            await self._deliver({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            closing.cancel()
            if close := getattr(pieces, "close", None):
                close()

    async def _deliver(self, message: Message) -> None:
        """Send a part of the response. Raises Disconnected if the client does not read."""
        try:
            async with asyncio.timeout(SEND_SECONDS):
                await self._send(message)
        except TimeoutError:
            raise Disconnected from None

    async def _close_if_slow(self, pace: Pace) -> None:
        """Close the connection when the client is too slow."""
        with suppress(TooSlow):
            while True:
                await asyncio.sleep(pace.until - time.monotonic())
                pace.check()
        self.scope["state"]["abort"]()
