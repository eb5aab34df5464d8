"""HTTP requests to other servers within limits: http.client, whose own time limit restarts with each byte received."""

from __future__ import annotations

import contextlib
import functools
import http.client
import io
import math
import os
import select
import socket
import ssl
import time
from collections.abc import Callable
from typing import Any, TypeVar

from segment.errors import Busy, Cancelled, FetchError
from segment.web.address import Target
from segment.web.pace import CROWDED_RATE, Pace, TooSlow
from segment.wording import counted

SocketAddress = tuple[socket.AddressFamily, Any]
Value = TypeVar("Value")


class _Response(http.client.HTTPResponse):
    """A response that rejects negative chunk sizes. http.client would read without a limit for a size of -1."""

    def _read_next_chunk_size(self) -> int:
        size: int = super()._read_next_chunk_size()  # type: ignore[misc]
        if size < 0:
            raise http.client.HTTPException(f"The size of a chunk is {size}.")
        return size


class Limits:
    """The limits of a fetch.

    `size`: maximum bytes of the body. `seconds`: time limit. `crowded`: whether others wait, so that a slow server must
    be given up. `crowded_seconds`: how long the fetch may take for the same reason. `cancelled`: whether it is no
    longer wanted. `readable`: how many more bytes may arrive before it is set again.
    """

    def __init__(
        self,
        size: int,
        seconds: float,
        crowded: Callable[[], bool] = lambda: False,
        crowded_seconds: Callable[[], float] = lambda: math.inf,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> None:
        self.size, self.seconds = size, seconds
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


class ClientConnection(http.client.HTTPConnection):
    """A connection to one of the checked addresses, within the limits."""

    response_class = _Response

    def __init__(self, target: Target, addresses: list[SocketAddress], limits: Limits) -> None:
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


def _connected(family: socket.AddressFamily, address: Any, limits: Limits, share: float) -> socket.socket:
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

    def __init__(self, source: socket.socket, limits: Limits) -> None:
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
        """Does nothing: http.client calls it before the body is read. `ClientConnection.release` closes the socket."""


class _LimitedReader(io.RawIOBase):
    """Reads from a socket within the limits."""

    def __init__(self, source: socket.socket, limits: Limits) -> None:
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
