"""Fetch a URL, protected against server-side request forgery (SSRF).

A service that fetches arbitrary URLs can be abused to reach addresses that only it can reach: the metadata server, its
neighbours, itself. Therefore:

- Only http and https are allowed, and every address that the host name resolves to must be public (address.py).
- The connection goes to an address that was checked, so that DNS rebinding has no effect.
- Each redirect is checked like the first URL.
- Size and total time are limited, independent of the announced length and of how slowly the server sends. So are the
  bytes of the response's head, and those with which the body is divided into chunks.
- When others wait for memory or for a thread, the server must be as fast as a client that uploads (pace.py). When many
  wait for a thread, there is little time for the whole fetch.
- Proxies from the environment are not used.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import io
import json
import math
import os
import queue
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urljoin

from segment.errors import Busy, Cancelled, FetchError, RefusedURL, TooLarge
from segment.web.address import Target, is_public, parse
from segment.web.pace import CROWDED_RATE, PIECE_BYTES, Pace, TooSlow
from segment.wording import counted

MAX_REDIRECTS = 5
HEAD_BYTES = 64 << 10
"""Maximum size of a response's status line and headers. http.client alone allows 6 MiB, which take several times as
much memory once they are parsed."""
FRAMING_BYTES = 16 << 10
"""Maximum number of bytes beside PIECE_BYTES bytes of the body: sizes of chunks, and what is read ahead."""
HEADERS = {"Accept": "image/*, */*;q=0.5", "User-Agent": "segment"}

SocketAddress = tuple[socket.AddressFamily, Any]
Value = TypeVar("Value")


@dataclass(frozen=True)
class Site:
    """A server that the operator trusts: its address may be private, and `headers` are sent to it.

    This does not apply to other servers to which it redirects.
    """

    address: str
    headers: Mapping[str, str]

    def has(self, target: Target) -> bool:
        """Whether `target` is on this server: the same scheme, host and port."""
        own = parse(self.address)
        return (own.secure, own.host, own.port) == (target.secure, target.host, target.port)


def fetch(
    url: str,
    *,
    limit: int,
    seconds: float,
    private: bool = False,
    received: Callable[[int], None] = lambda count: None,
    announced: Callable[[int], None] = lambda count: None,
    site: Site | None = None,
    crowded: Callable[[], bool] = lambda: False,
    crowded_seconds: Callable[[], float] = lambda: math.inf,
    cancelled: Callable[[], bool] = lambda: False,
) -> bytes:
    """Fetch `url`: a body of at most `limit` bytes, within `seconds` in total.

    `received` is called with the number of bytes that have arrived, before they are stored; it may wait, and raise.
    `announced` is called with the length of the body before, 0 if it is unknown. `private` also allows addresses that
    are not public; `site` is allowed in any case. `crowded`: whether others wait, so that a slow server must be given
    up. `crowded_seconds`: how long the fetch may take for the same reason. Raises RefusedURL if the URL is not allowed,
    FetchError if it could not be fetched, Busy if it was given up, TooLarge if the body exceeds `limit` bytes,
    Cancelled if `cancelled` returns True.
    """
    limits = _Limits(seconds, crowded, crowded_seconds, cancelled)
    for _ in range(MAX_REDIRECTS + 1):
        target = parse(url)
        trusted = site is not None and site.has(target)
        addresses = resolve(target, limits, private or trusted)
        headers = {**HEADERS, **site.headers} if site and trusted else HEADERS
        with _answer(target, addresses, limits, headers) as response:
            location = response.getheader("Location")
            if response.status in {301, 302, 303, 307, 308} and location:
                url = urljoin(url, location)
                continue
            if response.status != http.client.OK:
                raise FetchError(f"{target.host} answered {response.status} {response.reason[:100]} for this URL.")
            announced(response.length or 0)
            return _read(response, target, limit, limits, received)
    raise FetchError(f"The URL redirects more than {MAX_REDIRECTS} times.")


def post(site: Site, path: str, body: Mapping[str, str], *, limit: int, seconds: float) -> bytes:
    """POST `body` as JSON to `path` of `site`. Returns the response's body; redirects are not followed.

    Raises FetchError, or TooLarge if the response exceeds `limit` bytes.
    """
    limits = _Limits(seconds)
    target = parse(site.address.rstrip("/") + path)
    headers = {**HEADERS, **site.headers, "Content-Type": "application/json"}
    addresses = resolve(target, limits, private=True)
    with _answer(target, addresses, limits, headers, json.dumps(body).encode()) as response:
        if response.status != http.client.OK:
            raise FetchError(f"{target.host} answered {response.status} {response.reason[:100]} to {path}.")
        return _read(response, target, limit, limits, lambda count: None)


def resolve(target: Target, limits: _Limits, private: bool) -> list[SocketAddress]:
    """Resolve the host name of `target` to addresses, in order of preference.

    Raises RefusedURL if any of them is not public, unless `private`; FetchError if the name cannot be resolved.
    """
    answer: queue.SimpleQueue[list[Any] | Exception] = queue.SimpleQueue()

    def look_up() -> None:
        try:
            answer.put(socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            answer.put(error)

    def wait(seconds: float) -> list[Any] | Exception:
        try:
            return answer.get(timeout=seconds)
        except queue.Empty:
            raise TimeoutError from None

    # getaddrinfo has no timeout of its own.
    threading.Thread(target=look_up, daemon=True).start()
    found = limits.repeat(wait)
    if isinstance(found, Exception) or not found:
        raise FetchError(f"The host name {target.host} cannot be resolved.")
    if not private and not all(is_public(address[0]) for *_, address in found):
        raise RefusedURL(
            f"{target.host} does not have a public address. Only photos on the public internet are fetched."
        )
    return [(family, address) for family, _, _, _, address in found]


class _Response(http.client.HTTPResponse):
    """A response that rejects negative chunk sizes. http.client would read without a limit for a size of -1."""

    def _read_next_chunk_size(self) -> int:
        size: int = super()._read_next_chunk_size()  # type: ignore[misc]
        if size < 0:
            raise http.client.HTTPException(f"The size of a chunk is {size}.")
        return size


class _Limits:
    """The limits of a fetch: its time, and how much is read."""

    def __init__(
        self,
        seconds: float,
        crowded: Callable[[], bool] = lambda: False,
        crowded_seconds: Callable[[], float] = lambda: math.inf,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> None:
        self.seconds = seconds
        self.pace = Pace(seconds, crowded, window_bytes=0, late_rate=math.inf)
        self.readable = 0
        self._crowded_seconds, self._cancelled = crowded_seconds, cancelled

    def left(self) -> float:
        """Seconds until the limits must be checked again. Raises FetchError, Busy, Cancelled."""
        if self._cancelled():
            raise Cancelled
        try:
            self.pace.check()
        except TooSlow as error:
            if not error.crowded:
                raise self.passed() from None
            raise Busy(
                f"The server of the URL sends less than {CROWDED_RATE >> 10} KiB/s, and others are waiting. Try again "
                "in a moment.",
                5,
            ) from None
        if self.pace.elapsed > (most := self._crowded_seconds()):
            raise Busy(
                f"Fetching the URL takes longer than {most:.0f} s, and others are waiting. Try again in a moment.", 5
            )
        return max(self.pace.until - time.monotonic(), 0.001)

    def repeat(self, operation: Callable[[float], Value]) -> Value:
        """Call `operation` with its time limit in seconds, again after each TimeoutError while the limits allow it."""
        while True:
            with contextlib.suppress(TimeoutError):
                return operation(self.left())

    def read(self, count: int) -> None:
        """Count bytes that have arrived. Raises HTTPException if they are more than `readable`."""
        self.pace.add(count)
        self.readable -= count
        if self.readable < 0:
            raise http.client.HTTPException("The headers are too long, or the chunks of the body too short.")

    def passed(self) -> FetchError:
        """The error for a fetch that took too long."""
        return FetchError(f"Fetching the URL took longer than {counted(self.seconds, 'second')}.")


class _Connection(http.client.HTTPConnection):
    """A connection to one of the checked addresses, within the limits."""

    response_class = _Response

    def __init__(self, target: Target, addresses: list[SocketAddress], limits: _Limits) -> None:
        self.default_port = 443 if target.secure else 80
        super().__init__(target.host, target.port)
        self.secure = target.secure
        self.addresses = addresses
        self.limits = limits
        self.socket: socket.socket | None = None

    def connect(self) -> None:
        """Connect to a checked address. With https, the certificate is verified for the URL's host name."""
        self.socket = self._reach()
        if self.secure:
            secured = _tls().wrap_socket(self.socket, server_hostname=self.host, do_handshake_on_connect=False)
            self.socket = secured

            def shake_hands(seconds: float) -> None:
                secured.settimeout(seconds)
                secured.do_handshake()

            self.limits.repeat(shake_hands)
        self.sock: Any = _LimitedSocket(self.socket, self.limits)

    def _reach(self) -> socket.socket:
        """Connect to the first address that accepts; each gets an equal share of the remaining time."""
        for turns, (family, address) in zip(range(len(self.addresses), 0, -1), self.addresses, strict=True):
            try:
                return _connected(family, address, self.limits, 1 / turns)
            except OSError:
                if turns == 1:
                    raise
        raise AssertionError("no address")  # resolve() returns at least one

    def release(self) -> None:
        """Close the socket."""
        if self.socket:
            self.socket.close()


@functools.cache
def _tls() -> ssl.SSLContext:
    """The settings of TLS with the trusted certificates, which are read and parsed once."""
    return ssl.create_default_context()


def _connected(family: socket.AddressFamily, address: Any, limits: _Limits, share: float) -> socket.socket:
    """A socket that is connected to `address` within a share of the remaining time. Raises OSError."""
    end = time.monotonic() + limits.pace.left * share
    reached = socket.socket(family, socket.SOCK_STREAM)
    try:
        reached.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            reached.connect(address)
        done = select.poll()
        done.register(reached, select.POLLOUT)

        def wait(seconds: float) -> bool:
            if done.poll(1000 * min(seconds, max(end - time.monotonic(), 0))):
                return True
            if time.monotonic() < end:
                raise TimeoutError
            return False

        if not limits.repeat(wait):
            raise TimeoutError
        if error := reached.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise OSError(error, os.strerror(error))
    except BaseException:
        reached.close()
        raise
    return reached


class _LimitedSocket:
    """The methods of a socket that http.client uses, within the limits.

    A socket's own timeout restarts with each byte received, so it is set before each read.
    """

    def __init__(self, source: socket.socket, limits: _Limits) -> None:
        self.source = source
        self.limits = limits

    def sendall(self, data: bytes) -> None:
        """Send all of `data`."""
        self.source.settimeout(self.limits.pace.left)
        self.source.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        """A reader of the received bytes."""
        return io.BufferedReader(_LimitedReader(self.source, self.limits))

    def close(self) -> None:
        """Does nothing: http.client calls it before the body is read. `_Connection.release` closes the socket."""


class _LimitedReader(io.RawIOBase):
    """Reads from a socket within the limits."""

    def __init__(self, source: socket.socket, limits: _Limits) -> None:
        self.source = source
        self.limits = limits

    def readable(self) -> bool:
        """True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read available bytes into `buffer`."""

        def receive(seconds: float) -> int:
            self.source.settimeout(seconds)
            return self.source.recv_into(buffer)

        count = self.limits.repeat(receive)
        self.limits.read(count)
        return count


@contextlib.contextmanager
def _answer(
    target: Target,
    addresses: list[SocketAddress],
    limits: _Limits,
    headers: Mapping[str, str],
    body: bytes | None = None,
) -> Iterator[http.client.HTTPResponse]:
    """Send a GET request, or POST `body`; yields the response before its body is read. Raises FetchError."""
    connection = _Connection(target, addresses, limits)
    limits.readable = HEAD_BYTES
    try:
        connection.request("GET" if body is None else "POST", target.path, body, headers)
        with connection.getresponse() as response:
            yield response
    except TimeoutError:
        raise limits.passed() from None
    except ssl.SSLCertVerificationError as error:
        raise FetchError(f"The certificate of {target.host} is not valid: {error.verify_message}.") from None
    except (OSError, ValueError, http.client.HTTPException):
        raise FetchError(f"The connection to {target.host} failed or was interrupted.") from None
    finally:
        connection.release()


def _read(
    response: http.client.HTTPResponse, target: Target, limit: int, limits: _Limits, received: Callable[[int], None]
) -> bytes:
    """Read the whole body. Raises TooLarge as soon as it exceeds `limit` bytes."""
    encoding = response.getheader("Content-Encoding", "identity")
    if encoding != "identity":
        raise FetchError(
            f"{target.host} answered with the content encoding {encoding[:40]!r}, which was not requested."
        )
    too_large = TooLarge(f"The photo at this URL is larger than {limit:,} bytes, the maximum.")
    if response.length is not None and response.length > limit:
        raise too_large
    body = io.BytesIO()
    while True:
        limits.readable = PIECE_BYTES + FRAMING_BYTES
        chunk = response.read(PIECE_BYTES)
        if not chunk:
            break
        if body.tell() + len(chunk) > limit:
            raise too_large
        start = time.monotonic()
        received(len(chunk))
        limits.pace.pause(time.monotonic() - start)
        body.write(chunk)
    if response.length:  # read(n) does not raise for a truncated body
        raise FetchError(f"The response of {target.host} ended {response.length:,} bytes too early.")
    return body.getvalue()
