"""Which connection is closed when there are too many.

It is one that waits for its client: the server does not wait for those whose requests it computes.
"""

from __future__ import annotations

import asyncio

import h11

from segment.web.connection import Connection
from segment.web.listener import accelerate
from segment.web.pace import WINDOW_BYTES, WINDOW_SECONDS

MAX_CONNECTIONS = 128
"""If there are more connections, one is closed."""
FAST_CONNECTIONS = 32
"""Further connections keep the receive buffer of the backlog, so they take less memory, but receive more slowly."""
NEW_SECONDS = 1.0
"""Time in which a connection that has sent little is not closed in favour of slow ones."""


class LimitedConnection(Connection):
    """A connection for which another one is closed if there are too many."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Close a connection if there are too many."""
        super().connection_made(transport)
        if len(self.connections) <= FAST_CONNECTIONS:
            accelerate(transport)
        # A connection that is being closed stays in self.connections until the event loop's next turn.
        connections = [c for c in self.connections if isinstance(c, Connection) and not c.transport.is_closing()]
        if len(connections) > MAX_CONNECTIONS:
            others = [c for c in connections if c is not self and _waits_for_client(c)]
            min(others, key=_rank, default=self).transport.abort()


def _waits_for_client(connection: Connection) -> bool:
    receives = connection.refused or connection.conn.their_state in (h11.IDLE, h11.SEND_BODY)
    return receives or connection.transport.get_write_buffer_size() > 0


def _rank(connection: Connection) -> tuple[int, float]:
    """Among the connections that wait for their client, those with a lower rank are closed first.

    These are idle ones, and those whose client has gone, whose head is late or whose body was refused; then bodies
    that are slower than is allowed; then clients that do not read their response; then bodies that wait for
    memory; then new connections; then the slowest body.
    """
    state, since = connection.conn.their_state, connection.since
    if connection.refused or connection.is_gone():
        return 0, since
    if state is h11.SEND_BODY and connection.conn.our_state is not h11.SEND_BODY:
        return _rank_of_body(connection)
    if state is h11.IDLE and connection.loop.time() - since < NEW_SECONDS:
        return 4, since
    return 0 if state in (h11.IDLE, h11.SEND_BODY) else 2, since


def _rank_of_body(connection: Connection) -> tuple[int, float]:
    now, is_paused = connection.loop.time(), connection.flow.read_paused
    age = now - connection.since
    rate = connection.received / max(age, NEW_SECONDS)
    if is_paused and now - connection.last >= NEW_SECONDS:
        return 3, connection.since
    if is_paused or rate >= WINDOW_BYTES / WINDOW_SECONDS:
        return 5, rate
    return (4, connection.since) if age < NEW_SECONDS else (1, rate)
