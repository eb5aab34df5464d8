"""Memory as a budget: who may use how much of it when.

A container that passes its limit is killed, with every request in it. So each request says beforehand what it will
need (service.py adds it up from the photo's header and the model's figures) and gets it, waits for it, or is refused;
nothing is allocated on hope.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

from segment.errors import Busy, TooLarge

MARGIN_SHARE, MARGIN_BYTES = 0.1, 16 << 20
"""Kept free: the kernel's own share (page tables, sockets), allocators' slack, the web server's buffers, and other
layouts of the weights, of which a network keeps one more for some sizes of image."""


def capacity(limit: int, held: int) -> int:
    """What requests may use in bytes, when `held` of `limit` is taken by the loaded service."""
    return max(0, limit - held - MARGIN_BYTES - int(limit * MARGIN_SHARE))


class Budget:
    """`capacity` bytes to be shared by requests, first come first served.

    A request needs memory of its own (its photo, its picture) and the network's, of which there is one for all: runs
    take turns, so the largest run decides. What the network keeps between runs is used again by the next, and is given
    up by `reclaim` when something else needs the room. `queue` is how many may wait, `wait_seconds` how long.
    """

    def __init__(
        self, capacity: int, queue: int = 16, wait_seconds: float = 30.0, reclaim: Callable[[], None] = lambda: None
    ) -> None:
        self.capacity = max(capacity, 0)
        self._queue, self._wait_seconds, self._reclaim = queue, wait_seconds, reclaim
        self._changed = threading.Condition()
        self._waiting: deque[object] = deque()
        self._own = 0
        self._runs: list[int] = []
        self._kept = 0

    def fits(self, own: int, network: int) -> bool:
        """Whether a request of that size can ever run."""
        return own + network <= self.capacity

    @contextlib.contextmanager
    def reserve(self, own: int, network: int) -> Iterator[None]:
        """Hold `own` + `network` bytes. Raises TooLarge (never fits), Busy (not now)."""
        if not self.fits(own, network):
            raise TooLarge(
                f"This needs {_mib(own + network)} of memory at once; this instance has {_mib(self.capacity)} for it."
            )
        self._take(own, network)
        try:
            yield
        finally:
            with self._changed:
                self._own -= own
                self._runs.remove(network)
                self._changed.notify_all()

    @contextlib.contextmanager
    def hold(self, count: int) -> Iterator[None]:
        """Hold `count` bytes that are in memory already, out of a reservation that is about to end."""
        with self._changed:
            self._own += count
        try:
            yield
        finally:
            with self._changed:
                self._own -= count
                self._changed.notify_all()

    def _take(self, own: int, network: int) -> None:
        turn = object()
        with self._changed:
            waits = self._waiting or not self._admits(own, network)
            if waits and len(self._waiting) >= self._queue:
                raise Busy(f"{len(self._waiting)} requests wait for memory already. Try again in a moment.", 2)
            self._waiting.append(turn)
            try:
                until = time.monotonic() + self._wait_seconds
                while self._waiting[0] is not turn or not self._admits(own, network):
                    if not self._changed.wait(until - time.monotonic()) and time.monotonic() >= until:
                        raise Busy(f"No memory was free for {self._wait_seconds:g} s. Try again in a moment.", 5)
                self._own += own
                self._runs.append(network)
                self._make_room()
            finally:
                self._waiting.remove(turn)
                self._changed.notify_all()

    def _admits(self, own: int, network: int) -> bool:
        return self._own + own + max([network, *self._runs]) <= self.capacity

    def _make_room(self) -> None:
        """Give up what the network keeps if the rest needs the room; remember what it may keep after this run."""
        run = max(self._runs)
        if self._own + max(run, self._kept) > self.capacity:
            self._reclaim()
            self._kept = 0
        self._kept = max(self._kept, run)


def _mib(count: int) -> str:
    return f"{count / (1 << 20):.0f} MiB"
