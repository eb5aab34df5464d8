"""The listening socket, and the kernel's buffers of the connections."""

from __future__ import annotations

import asyncio
import errno
import os
import socket

from segment.errors import SettingsError

BACKLOG = 128
"""Connections that the kernel accepts before the server does."""
READ_BYTES = 16 << 10
"""The most that is read from a connection at once, and the kernel's receive buffer of a connection in the backlog."""
SOCKET_BYTES = 64 << 10
"""The kernel's send buffer of each connection, and the receive buffer of those that are `accelerate`d. By default they
grow to several MiB. (The kernel doubles the values, for its own data structures.)"""


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


def accelerate(transport: asyncio.Transport) -> None:
    """Give a connection a larger receive buffer than it has inherited."""
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BYTES)
