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
import io
import math
import sys
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Container, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext, suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

from werkzeug.exceptions import ClientDisconnected, HTTPException, RequestTimeout

from segment.errors import Busy, SegmentError, TooLarge
from segment.memory import Reservation
from segment.service import CROWDED_SECONDS, Service
from segment.web.app import PROGRESS, refuse
from segment.web.exchange import CANCELLED, FETCH_SECONDS, RECEIVED
from segment.web.pace import CROWDED_WINDOW_SECONDS, Pace, TooSlow
from segment.web.responses import CHUNK, DRAIN_BYTES
from segment.web.startup import Startup
from segment.web.upload import MAX_OPTION_BYTES

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication, WSGIEnvironment

SEND_SECONDS = 30.0
"""Time limit for a client to accept each chunk of the response."""
EXPECT_SECONDS = 1.0
"""After a refusal, a client that waits to be asked for its body does not send it. If it does so nevertheless within
this time, the body is discarded as usual."""
INSTANT = frozenset({"/health", "/progress"})
"""Paths that are answered in the event loop."""
SMALL_BYTES = 4 << 10
"""Smaller pieces of a body are joined."""
SMALL_PIECES, SMALL_SECONDS = 16, 0.05
"""After this many small pieces in a row, the server waits before it receives the next one. The kernel joins what
arrives meanwhile, so that a body in tiny TCP segments does not take CPU time for each of them."""
THREAD_SECONDS = 15.0
"""Time in which a request should get a thread, however many URLs are slow. Each fetch gets a share of it."""
POLL_SECONDS = 0.02
"""Interval at which a body that waits for memory tries to reserve it."""

Message = Mapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Answer = tuple[int, list[tuple[bytes, bytes]], Iterable[bytes]]
"""Status, headers and body of a response."""


class _Disconnected(Exception):
    """The client has closed the connection."""


class Body(io.RawIOBase):
    """A received body as a WSGI input stream. Chunks are freed once they are read."""

    def __init__(self) -> None:
        self.chunks: deque[bytes | bytearray] = deque()
        self._read = 0  # bytes of the first chunk

    def add(self, data: bytes) -> None:
        """Append received bytes. Small pieces are joined, because an object takes more memory than a few bytes."""
        last = self.chunks[-1] if self.chunks else b""
        if isinstance(last, bytearray) and len(last) + len(data) <= SMALL_BYTES:
            last += data
        elif data:
            self.chunks.append(bytearray(data) if len(data) < SMALL_BYTES else data)

    def readable(self) -> bool:
        """True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read bytes into `buffer`; returns their number, 0 at the end."""
        if not self.chunks:
            return 0
        part = memoryview(self.chunks[0])[self._read : self._read + len(buffer)]
        buffer[: len(part)] = part
        self._read += len(part)
        if self._read == len(self.chunks[0]):
            self.chunks.popleft()
            self._read = 0
        return len(part)


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
        self._threads = ThreadPoolExecutor(threads, "request")
        self._most_fetching = fetching or threads
        self._fetching = asyncio.Semaphore(self._most_fetching)
        self._waiting: dict[object, float] = {}  # the calls that wait for a thread, and since when

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Handle one request."""
        cycle = _Cycle(self, _origin_form(scope), receive, send)
        try:
            with suppress(_Disconnected):
                await cycle.run()
        finally:
            cycle.close()

    def refusal(self, path: str) -> SegmentError | None:
        """Why a request for `path` cannot be answered before the model is ready, or None."""
        return self.startup.refusal() if self.startup and path in self.needs_model else None

    async def in_thread(self, function: Callable[..., Any], *arguments: Any, fetches: bool = False) -> Any:
        """Call `function` in one of the threads. `fetches`: whether it may fetch a URL."""
        call = object()

        def start() -> Any:
            self._waiting.pop(call, None)
            return function(*arguments)

        self._waiting[call] = time.monotonic()
        try:
            async with self._fetching if fetches else nullcontext():
                return await asyncio.get_running_loop().run_in_executor(self._threads, start)
        finally:
            self._waiting.pop(call, None)

    def threads_wait(self) -> bool:
        """Whether a request has waited for a thread for CROWDED_SECONDS."""
        longest = next(iter(self._waiting.copy().values()), math.inf)
        return time.monotonic() - longest > CROWDED_SECONDS

    def fetch_seconds(self) -> float:
        """How long a fetch may take: the shorter, the more requests wait for a thread; without a limit if none does."""
        if not self.threads_wait():
            return math.inf
        return max(CROWDED_WINDOW_SECONDS, THREAD_SECONDS * self._most_fetching / max(len(self._waiting), 1))


class _Cycle:
    """One request and its response."""

    def __init__(self, gateway: Gateway, scope: Message, receive: Receive, send: Send) -> None:
        self.gateway, self.service = gateway, gateway.service
        self.scope, self._receive, self._send = scope, receive, send
        self.headers = dict(scope["headers"])
        self.body = Body()
        self.unread = b"transfer-encoding" in self.headers or self.headers.get(b"content-length", b"0") != b"0"
        self.gone = threading.Event()
        self._wanted = False  # the client has been asked for the body, if it waits for that (Expect: 100-continue)
        self._small = 0  # small pieces of the body in a row
        self._watching: asyncio.Task[None] | None = None

    def close(self) -> None:
        """Stop waiting for the client to close the connection."""
        if self._watching:
            self._watching.cancel()

    async def run(self) -> None:
        if self.scope["path"] in INSTANT and not self.unread:
            await self._respond(*self._call(self.gateway.application))
        elif refusal := self.gateway.refusal(self.scope["path"]):
            await self._respond(*self._call(refuse(self.service, refusal)))
        else:
            await self._respond(*await self._answer())

    async def _answer(self) -> Answer:
        """Receive the body, if there is one, and call the application in a thread."""
        application, held = self.gateway.application, None
        with ExitStack() as stack:
            if self.unread and self.scope["path"] in self.gateway.uploads:
                try:
                    held = await self._receive_body(stack)
                except (SegmentError, HTTPException) as error:
                    self.body.chunks.clear()
                    stack.close()
                    application = refuse(self.service, error)
            if not self.unread:
                self._watching = asyncio.create_task(self._watch())
            if held:
                held.blocked = True  # until a thread is free
            fetches = self._may_fetch(held)
            answer: Answer = await self.gateway.in_thread(self._call, application, held, fetches=fetches)
            self.body.chunks.clear()  # those that the application did not read, for example of a refused request
            return answer

    def _may_fetch(self, held: Reservation | None) -> bool:
        """Whether the request may contain a URL that is fetched: in the query, or in a small body."""
        is_photo = self.headers.get(b"content-type", b"").startswith(b"image/")
        in_body = held is not None and held.bytes <= MAX_OPTION_BYTES and not is_photo
        return in_body or b"url=" in self.scope["query_string"]

    def _call(self, application: WSGIApplication, held: Reservation | None = None) -> Answer:
        """Call the WSGI application. Its environment is only made now, because it takes as much memory as the head."""
        environ = environment(self.scope, self.body)
        environ[CANCELLED] = self.gone.is_set
        environ[FETCH_SECONDS] = self.gateway.fetch_seconds
        if self.gateway.startup:
            environ[PROGRESS] = self.gateway.startup.progress
        if held:
            environ[RECEIVED] = held
            held.blocked = False
        started: list[tuple[str, list[tuple[str, str]]]] = []

        def start_response(
            status: str, headers: list[tuple[str, str]], exc_info: object = None
        ) -> Callable[..., object]:
            started[:] = [(status, headers)]
            return lambda data: None

        pieces = application(environ, start_response)
        ((status, headers),) = started
        return int(status[:3]), [(name.lower().encode(), value.encode("latin-1")) for name, value in headers], pieces

    async def _receive_body(self, stack: ExitStack) -> Reservation:
        """Receive the whole body. Raises TooLarge, Busy, ModelError, RequestTimeout, _Disconnected."""
        service = self.service
        if not service.ready:
            await self.gateway.in_thread(service.load)
        limit = service.upload_limit
        announced = int(self.headers.get(b"content-length", b"0"))
        if announced > limit:
            raise _too_large(limit)
        held = stack.enter_context(service.receive())
        held.announced = announced or limit
        pace = Pace(service.settings.receive_seconds, lambda: service.uploads_wait)
        self._wanted = True
        while self.unread:
            chunk = await self._next_chunk(pace)
            if held.bytes + len(chunk) > limit:
                raise _too_large(limit)
            await self._reserve(held, len(chunk), pace)
            self.body.add(chunk)
        return held

    async def _next_chunk(self, pace: Pace) -> bytes:
        """Receive the next bytes of the body."""
        while True:
            try:
                async with asyncio.timeout_at(pace.until):
                    message = await self._next_message()
            except TimeoutError:
                _check(pace)
                continue
            if message["type"] == "http.disconnect":
                raise _Disconnected
            self.unread = message.get("more_body", False)
            if self.scope["state"].get("truncated"):
                self.unread = True
                raise ClientDisconnected("The body ended before its announced length.")
            chunk: bytes = message.get("body", b"")
            pace.add(len(chunk))
            if self.unread:
                _check(pace)
            return chunk

    async def _next_message(self) -> Message:
        if self._small > SMALL_PIECES:
            await asyncio.sleep(SMALL_SECONDS)
        message = await self._receive()
        self._small = self._small + 1 if len(message.get("body", b"")) < SMALL_BYTES else 0
        return message

    async def _reserve(self, held: Reservation, count: int, pace: Pace) -> None:
        """Reserve `count` bytes. The time spent waiting does not count against the client. Raises _Disconnected."""
        loop = asyncio.get_running_loop()
        start = loop.time()
        while not held.try_grow(count):
            await asyncio.sleep(POLL_SECONDS)
            if self.scope["state"]["gone"]():
                raise _Disconnected
            if held.waited(time.monotonic()) > self.service.settings.wait_seconds:
                raise Busy("Timed out waiting for memory for this photo. Try again in a moment.", held.retry_seconds())
        pace.pause(loop.time() - start)

    async def _watch(self) -> None:
        """Set `gone` when the client closes the connection."""
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.gone.set()

    async def _respond(self, status: int, headers: list[tuple[bytes, bytes]], pieces: Iterable[bytes]) -> None:
        """Send the response, then receive and discard a part of a body that was refused.

        When others wait for memory, the client must read as fast as a client that uploads must send.
        """
        pace = Pace(math.inf, lambda: self.service.requests_wait, window_bytes=0, late_rate=0)
        closing = asyncio.create_task(self._close_if_slow(pace))
        try:
            if self.unread:
                headers.append((b"connection", b"close"))
            await self._deliver({"type": "http.response.start", "status": status, "headers": headers})
            for piece in pieces:
                view = memoryview(piece)
                for start in range(0, len(view), CHUNK):
                    part = bytes(view[start : start + CHUNK])
                    await self._deliver({"type": "http.response.body", "body": part, "more_body": True})
                    pace.add(len(part))
            closing.cancel()
            if self.unread:
                await self._drain()
            await self._deliver({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            closing.cancel()
            if close := getattr(pieces, "close", None):
                close()

    async def _deliver(self, message: Message) -> None:
        try:
            async with asyncio.timeout(SEND_SECONDS):
                await self._send(message)
        except TimeoutError:
            self.scope["state"]["abort"]()
            raise _Disconnected from None

    async def _close_if_slow(self, pace: Pace) -> None:
        """Close the connection when the client is too slow."""
        with suppress(TooSlow):
            while True:
                await asyncio.sleep(pace.until - time.monotonic())
                pace.check()
        self.scope["state"]["abort"]()

    async def _drain(self) -> None:
        """Receive and discard the body. Many clients do not read the response before they have sent all of it."""
        if self.scope["state"].get("truncated"):
            return
        if b"expect" in self.headers and not self._wanted:
            pace = Pace(EXPECT_SECONDS, lambda: False)
        else:
            pace = Pace(self.service.settings.receive_seconds, lambda: False, late_rate=math.inf)
        left = DRAIN_BYTES
        with suppress(HTTPException):
            while self.unread and left > 0:
                left -= len(await self._next_chunk(pace))


def _check(pace: Pace) -> None:
    """Raise RequestTimeout if the client is too slow."""
    try:
        pace.check()
    except TooSlow as error:
        raise RequestTimeout(str(error)) from None


def environment(scope: Message, body: io.RawIOBase) -> WSGIEnvironment:
    """The WSGI environment (PEP 3333) of an ASGI scope."""
    host, port = scope["server"] or ("localhost", 0)
    environ: WSGIEnvironment = {
        "REQUEST_METHOD": scope["method"],
        "SCRIPT_NAME": "",
        "PATH_INFO": unquote_to_bytes(scope["raw_path"]).decode("latin-1"),
        "QUERY_STRING": scope["query_string"].decode("latin-1"),
        "SERVER_NAME": host,
        "SERVER_PORT": str(port),
        "SERVER_PROTOCOL": f"HTTP/{scope['http_version']}",
        "REMOTE_ADDR": (scope["client"] or ("",))[0],
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": scope["scheme"],
        "wsgi.input": body,
        "wsgi.input_terminated": True,
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }
    for raw_name, raw_value in scope["headers"]:
        name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
        if "_" in name or name == "upgrade":  # CGI names do not distinguish _ from a hyphen; no upgrade is supported
            continue
        key = name.upper().replace("-", "_")
        if key not in {"CONTENT_TYPE", "CONTENT_LENGTH"}:
            key = f"HTTP_{key}"
        environ[key] = f"{environ[key]},{value}" if key in environ else value
    return environ


def _origin_form(scope: Message) -> Message:
    """The scope with the path alone where the request's target is a whole URL (RFC 9112, 3.2.2), as sent to a proxy."""
    scheme, *rest = scope["raw_path"].split(b"/", 3)
    if scheme.lower() not in (b"http:", b"https:"):
        return scope
    path = b"/" + b"".join(rest[2:])
    return {**scope, "raw_path": path, "path": unquote_to_bytes(path).decode("utf-8", "replace")}


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"The request body is larger than {limit:,} bytes, the maximum that this instance accepts.")
