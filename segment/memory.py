"""Admission control: reserve memory before allocating it.

A container that exceeds its memory limit is killed together with all its requests. Therefore each request reserves the
memory it needs before it allocates; plan.py computes the amount from the photo's header and the model's footprint.
Received bytes are reserved in steps, as they arrive (arrival.py). A reservation is granted, waits, or is refused.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

from segment.arrival import Arrival, bytes_ahead
from segment.errors import Busy, Cancelled, TooLarge
from segment.values import MIB

MARGIN_SHARE, MARGIN_BYTES = 0.1, 16 << 20
"""Memory that is never reserved. It covers up to 26 MiB of 128 connections that flood the server (tests/test_soak.py,
test_memory_of_390_flooding_clients), page tables and stacks, the allocator's overhead, and what a network keeps after
runs on many sizes beyond the budget's `fixed`: at most half of it (tests/test_footprint.py,
test_many_sizes_take_at_most_half_of_the_margin). Headers are read one at a time, in at most 4 MiB (HEADER_BYTES)."""
POLL_SECONDS = 0.5
"""How often a waiting request checks whether its client is still there."""
ATTEMPT_SECONDS, ATTEMPTS_PER_SECOND = 0.02, 500
"""Interval of attempts to grow a reservation that waits, and maximum number of attempts of all that wait per second.
Each attempt compares one with all others."""
RETRY_SECONDS, MOST_RETRY_SECONDS = 5, 60
"""A refused body should be sent again after this time, and a second more for each that waits, at most the second."""


def capacity(limit: int, held: int) -> int:
    """Bytes available to requests when the loaded service holds `held` bytes of `limit`."""
    return max(0, limit - held - MARGIN_BYTES - int(limit * MARGIN_SHARE))


class Reservation(Arrival):
    """Bytes of a budget held by one request. A reservation can grow; it is released as a whole.

    `blocked`: the request cannot continue until another one ends. If all are blocked, one that waits to grow is
    `refused`: the one that would be complete last.
    """

    def __init__(self, budget: Budget) -> None:
        super().__init__()
        self.blocked = False
        self.refused = False
        self._budget = budget

    def try_grow(self, count: int) -> bool:
        """Reserve `count` more bytes if available, without waiting. Only for a budget without runs of the network.

        Raises TooLarge if the reservation would exceed the capacity, Busy if it is refused, see above.
        """
        return self._budget._try_grow(self, count)

    def grow(self, count: int, seconds: float | None = None) -> None:
        """Reserve `count` more bytes; wait until they are available. Raises TooLarge, Busy.

        `seconds`: the most that the reservation waits in all, by default those of the budget.
        """
        self._budget._grow(self, count, self._budget.wait_seconds if seconds is None else seconds)

    def attempt_seconds(self) -> float:
        """After how many seconds `try_grow` should be called again."""
        return self._budget._attempt_seconds()

    def retry_seconds(self) -> int:
        """After how many seconds a body for which there is no memory should be sent again."""
        return self._budget._retry_seconds()


class _Runs:
    """The memory in bytes of the network's runs.

    The network has `streams`, each of which executes one run at a time, so at most as many runs count as there are
    streams. Each counts as the largest, because any stream may execute it. A stream keeps its buffers between runs and
    reuses them. `fixed` bytes cannot be freed, because the network keeps weights in a further layout for some input
    sizes; they count at all times.
    """

    def __init__(self, fixed: int, streams: int) -> None:
        self.fixed, self._streams = fixed, streams
        self._admitted: list[int] = []
        self._count = self._largest = 0  # of the runs that were admitted since the buffers were freed

    def needed(self, run: int = 0) -> int:
        """The bytes of the admitted runs, and of one more if `run` is not 0; at least `fixed`."""
        runs = [each for each in (*self._admitted, run) if each]
        return self._bytes(len(runs), max(runs, default=0))

    def held(self) -> int:
        """The bytes of the admitted runs with the buffers that earlier runs may have left."""
        return self._bytes(self._count, self._largest)

    def admit(self, run: int) -> None:
        """Add a run of `run` bytes; 0 if the request does not run the network."""
        self._admitted.append(run)
        self._count, self._largest = self._count + bool(run), max(self._largest, run)

    def end(self, run: int) -> None:
        """Remove a run. Its buffers may be left."""
        self._admitted.remove(run)

    def free(self) -> None:
        """Forget the buffers of earlier runs, which are about to be freed."""
        pending = [run for run in self._admitted if run]
        self._count, self._largest = len(pending), max(pending, default=0)

    def _bytes(self, count: int, largest: int) -> int:
        return max(self.fixed, min(count, self._streams) * largest)


class Budget:
    """`capacity` bytes shared by requests, first come, first served.

    A request needs memory of its own (photo, result), and memory for a run of the network (`fixed`, `streams`: see
    _Runs). `reclaim` is called to free the network's buffers when other memory is needed. At most `queue` requests
    wait, each for at most `wait_seconds`.

    With several streams, each request must run the network once: between two runs of a request, the first stream would
    keep buffers while another one executes the second run.
    """

    def __init__(
        self,
        capacity: int,
        queue: int = 16,
        wait_seconds: float = 30.0,
        reclaim: Callable[[], None] = lambda: None,
        fixed: int = 0,
        streams: int = 1,
    ) -> None:
        self.capacity = max(capacity, 0)
        self.wait_seconds = wait_seconds
        self._queue, self._reclaim = queue, reclaim
        self._changed = threading.Condition()
        self._waiting: deque[Reservation] = deque()
        self._holders: dict[Reservation, None] = {}  # in the order of their first bytes
        self._own = 0
        self._runs = _Runs(fixed, streams)
        self._reclaiming = False

    def fits(self, own: int, network: int) -> bool:
        """Whether a request of this size is within the capacity."""
        return own + max(network, self._runs.fixed) <= self.capacity

    def longest_wait(self) -> float:
        """How many seconds the request that has waited longest has been waiting; 0 if none waits."""
        with self._changed:
            starts = [reservation.since for reservation in self._waiting]
            starts += [holder.waits_since for holder in self._holders if holder.waits_since is not None]
            return time.monotonic() - min(starts) if starts else 0.0

    @contextlib.contextmanager
    def reserve(
        self, own: int = 0, network: int = 0, cancelled: Callable[[], bool] = lambda: False
    ) -> Iterator[Reservation]:
        """Reserve `own` + `network` bytes for the duration of the context.

        Raises TooLarge if they exceed the capacity, Busy if they are not available in time, Cancelled if `cancelled`
        returns True while waiting.
        """
        if not self.fits(own, network):
            raise self._too_large(own + max(network, self._runs.fixed))
        reservation = Reservation(self)
        self._take(reservation, own, network, cancelled)
        try:
            yield reservation
        finally:
            with self._changed:
                self._runs.end(network)
                self._release(reservation)

    @contextlib.contextmanager
    def hold(self, count: int) -> Iterator[None]:
        """Count `count` bytes that are already allocated, within another reservation that is about to end."""
        reservation = Reservation(self)
        with self._changed:
            self._add(reservation, count)
        try:
            yield
        finally:
            with self._changed:
                self._release(reservation)

    def _take(self, reservation: Reservation, own: int, network: int, cancelled: Callable[[], bool]) -> None:
        with self._changed:
            waits = self._waiting or not self._admits(own, network)
            if waits and len(self._waiting) >= self._queue:
                raise Busy(f"Too many requests wait for memory ({len(self._waiting)}). Try again in a moment.", 2)
            self._waiting.append(reservation)
            try:
                until = time.monotonic() + self.wait_seconds
                while self._waiting[0] is not reservation or not self._admits(own, network):
                    self._wait(until, self.wait_seconds, RETRY_SECONDS)
                    if cancelled():
                        raise Cancelled
                self._add(reservation, own)
                self._runs.admit(network)
                reclaim = self._begin_reclaim()
            finally:
                self._waiting.remove(reservation)
                self._changed.notify_all()
        if reclaim:
            try:
                self._run_reclaim()
            except BaseException:
                with self._changed:
                    self._runs.end(network)
                    self._release(reservation)
                raise

    def _wait(self, until: float, seconds: float, retry_seconds: int) -> None:
        """Wait until another request changes the budget. Raises Busy after `until`, when `seconds` have passed."""
        left = until - time.monotonic()
        if left <= 0:
            raise Busy(f"Timed out after {seconds:g} s waiting for memory. Try again in a moment.", retry_seconds)
        self._changed.wait(min(left, POLL_SECONDS))

    def _admits(self, own: int, network: int) -> bool:
        return not self._reclaiming and self._own + own + self._runs.needed(network) <= self.capacity

    def _begin_reclaim(self) -> bool:
        """Whether the network's buffers must be freed. If so, nothing is admitted until _run_reclaim has ended."""
        self._reclaiming = self._own + self._runs.held() > self.capacity
        if self._reclaiming:
            self._runs.free()
        return self._reclaiming

    def _run_reclaim(self) -> None:
        """Call `reclaim` without holding the lock, as it may wait for a run."""
        try:
            self._reclaim()
        finally:
            with self._changed:
                self._reclaiming = False
                self._changed.notify_all()

    def _try_grow(self, reservation: Reservation, count: int) -> bool:
        with self._changed:
            if not self.fits(reservation.bytes + count, 0):
                raise self._too_large(reservation.bytes + count + self._runs.fixed)
            now = time.monotonic()
            reservation.blocked = not self._has_turn(reservation, count, now)
            if not reservation.blocked:
                reservation.go_on(now)
                self._add(reservation, count)
                return True
            reservation.wait(now, count)
            if self._is_deadlocked():
                self._last_to_complete(now).refused = True
            if reservation.refused:
                raise Busy(
                    "No memory is available for the rest of this photo. Try again in a moment.", self._retry_seconds()
                )
            return False

    def _has_turn(self, reservation: Reservation, count: int, now: float) -> bool:
        """Whether `count` bytes are free in addition to those that are left free for bodies that come before it."""
        left_free = bytes_ahead(reservation, self._holders, now)
        return self._own + count + self._runs.needed() + left_free <= self.capacity

    def _is_deadlocked(self) -> bool:
        """Whether nothing will be freed: all who hold memory are blocked, and none of them is about to end, refused."""
        return all(holder.blocked and not holder.refused for holder in self._holders if holder.bytes)

    def _last_to_complete(self, now: float) -> Reservation:
        """The reservation to refuse in a deadlock: of those that wait to grow, the one that would be complete last.

        One without memory is only chosen if none has any, because refusing it frees nothing.
        """
        return max(self._growing(), key=lambda growing: (growing.bytes > 0, growing.rank(now)))

    def _attempt_seconds(self) -> float:
        with self._changed:
            return max(ATTEMPT_SECONDS, len(self._growing()) / ATTEMPTS_PER_SECOND)

    def _retry_seconds(self) -> int:
        with self._changed:
            return min(RETRY_SECONDS + len(self._growing()), MOST_RETRY_SECONDS)

    def _growing(self) -> list[Reservation]:
        """The reservations that wait to grow."""
        return [holder for holder in self._holders if holder.waits_since is not None]

    def _grow(self, reservation: Reservation, count: int, seconds: float) -> None:
        now = time.monotonic()
        until = now + seconds - reservation.waited(now)
        with self._changed:
            while self._reclaiming or not self._try_grow(reservation, count):
                self._wait(until, seconds, self._retry_seconds())
            reclaim = self._begin_reclaim()
        if reclaim:
            self._run_reclaim()

    def _add(self, reservation: Reservation, count: int) -> None:
        self._holders.setdefault(reservation)
        reservation.bytes += count
        self._own += count

    def _release(self, reservation: Reservation) -> None:
        self._own -= reservation.bytes
        reservation.bytes = reservation.pending = 0
        reservation.blocked = False
        reservation.waits_since = None
        self._holders.pop(reservation, None)
        self._changed.notify_all()

    def _too_large(self, count: int) -> TooLarge:
        return TooLarge(
            f"The request needs {_mib(count)} of memory; this instance has {_mib(self.capacity)} available."
        )


def _mib(count: int) -> str:
    return f"{count / MIB:.0f} MiB"
