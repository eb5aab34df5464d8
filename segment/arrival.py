"""The order in which bodies that are being received may take memory.

If every sender may take what is free, many large uploads fill the memory with parts of photos, none of which can be
completed. Therefore a body only grows if enough memory is left for those that come before it: for what these will
receive until it is complete itself. Bodies with the shortest remaining time come first. The time that a body has taken
so far counts in its favour, so that slow connections are not overtaken for ever. All but the first also leave memory
for the beginning of a body that is new: a small photo need not wait until a large one is complete.

A body is only expected to be as large as announced after a part of it has memory: an announcement alone keeps nobody
else from memory. Memory is also left for bytes that have arrived and wait. Otherwise, in a memory full of slow bodies,
what one of them frees would be taken by the others' next pieces before a new body gets its first.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

PROMISE = 8
"""Memory is left for this many times the bytes that have memory, at most the announced size."""
FIRST_BYTES, FIRST_SECONDS = 512 << 10, 0.5
"""A body counts as if these bytes had arrived in these seconds before it: the assumed rate of a sender that is new.
FIRST_BYTES is also what is left for a new body."""
AGE_WEIGHT = 0.5
"""Each second since the beginning counts as this much less time until the end. With more, small photos wait for large
ones that are older; with less, large ones are overtaken for too long (test_arrival.py)."""


class Arrival:
    """A body that is being received.

    `bytes`: how many have memory. `pending`: how many have arrived besides and wait for memory. `announced`: how many
    there will be, 0 if unknown. `since`: when it began, by time.monotonic(). `waits_since`: since when it waits for
    memory, None if it does not.
    """

    def __init__(self) -> None:
        self.bytes = 0
        self.pending = 0
        self.announced = 0
        self.since = time.monotonic()
        self.waits_since: float | None = None
        self._waited = 0.0

    def wait(self, now: float, count: int) -> None:
        """It waits for memory for `count` bytes from now on, unless it already does."""
        self.pending = count
        if self.waits_since is None:
            self.waits_since = now

    def go_on(self, now: float) -> None:
        """It does not wait any longer. Time in which it could not grow does not count as time of the sender."""
        self.pending = 0
        if self.waits_since is not None:
            self._waited += now - self.waits_since
            self.waits_since = None

    def waited(self, now: float) -> float:
        """How many seconds it has waited for memory in all."""
        return self._waited + (0.0 if self.waits_since is None else now - self.waits_since)

    @property
    def promised(self) -> int:
        """Bytes that are left free for it."""
        return max(min(self.announced, PROMISE * self.bytes), self.bytes + self.pending) - self.bytes

    def rate(self, now: float) -> float:
        """Bytes per second while it does not wait for memory."""
        return (self.bytes + FIRST_BYTES) / (now - self.since - self.waited(now) + FIRST_SECONDS)

    def seconds_left(self, now: float) -> float:
        """Seconds until it is complete. If its size is unknown, as many bytes as have arrived are expected."""
        return max((self.announced or 2 * self.bytes) - self.bytes, 0) / self.rate(now)

    def rank(self, now: float) -> float:
        """Seconds until it is expected to be complete, less for its age. Lower ranks come first."""
        return self.seconds_left(now) - AGE_WEIGHT * (now - self.since)


def bytes_ahead(arrival: Arrival, others: Iterable[Arrival], now: float) -> int:
    """The bytes that `arrival` must leave free for those of `others` that come before it."""
    rank, seconds = arrival.rank(now), arrival.seconds_left(now)
    incomplete = (other for other in others if other.promised and other is not arrival)
    before = [other for other in incomplete if other.rank(now) < rank]
    newcomer = FIRST_BYTES if before and arrival.bytes >= FIRST_BYTES else 0
    return newcomer + sum(min(other.promised, max(other.pending, int(other.rate(now) * seconds))) for other in before)
