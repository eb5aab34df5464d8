"""The deadlines of a body that is being transferred: of a request, of a URL that is fetched, or of a response.

A body takes memory while it is transferred, and a fetch also takes a thread. When others wait for these, the other side
must be faster than otherwise, so that slow ones cannot keep them from everybody else.
"""

from __future__ import annotations

import time
from collections.abc import Callable

PIECE_BYTES = 64 << 10
"""Bodies are read and written in pieces of at most this size."""
WINDOW_SECONDS, WINDOW_BYTES = 5.0, 16 << 10
"""A client must send at least WINDOW_BYTES in each WINDOW_SECONDS."""
CROWDED_WINDOW_SECONDS, CROWDED_RATE = 2.0, 64 << 10
"""When others wait, this many bytes per second must be transferred, measured over at least these seconds."""
LATE_SECONDS = 1.0
"""How often the mean rate of a body that takes longer than usual is checked."""


class TooSlow(Exception):
    """The sender is too slow. `crowded`: it would be fast enough if nobody waited."""

    def __init__(self, message: str, *, crowded: bool) -> None:
        super().__init__(message)
        self.crowded = crowded


class Pace:
    """The deadlines of one body: `seconds` for all of it, `window_bytes` per window, and CROWDED_RATE if `crowded()`.

    A large body may take longer than `seconds` while its mean rate is at least `late_rate`. Times are those of
    time.monotonic(), which asyncio uses, too.
    """

    def __init__(
        self,
        seconds: float,
        crowded: Callable[[], bool],
        window_bytes: int = WINDOW_BYTES,
        late_rate: float = CROWDED_RATE,
    ) -> None:
        self.seconds = seconds
        self._total = self._received = 0  # bytes of the body, and those of this window
        self._next = 0.0  # the next check for CROWDED_RATE
        self._crowded, self._window_bytes, self._late_rate = crowded, window_bytes, late_rate
        self._began = time.monotonic()
        self._end = self._began + seconds
        self._begin_window()

    def add(self, count: int) -> None:
        """Count bytes that were transferred."""
        self._total += count
        self._received += count

    @property
    def until(self) -> float:
        """Time of the next check."""
        return min(self._end, self._window, self._next)

    @property
    def elapsed(self) -> float:
        """Seconds since the beginning, without pauses."""
        return time.monotonic() - self._began

    @property
    def left(self) -> float:
        """Seconds until the end, at least 0.001, as 0 would make a socket non-blocking."""
        return max(self._end - time.monotonic(), 0.001)

    def check(self) -> None:
        """Raise TooSlow if a deadline has passed."""
        now = time.monotonic()
        if now >= self._end:
            if self._total < self._late_rate * (now - self._began):
                raise TooSlow(f"The body did not arrive within {self.seconds:g} s.", crowded=False)
            self._end = now + LATE_SECONDS
        if now >= self._window:
            if self._received < self._window_bytes:
                least = f"{self._window_bytes >> 10} KiB within {WINDOW_SECONDS:g} s"
                raise TooSlow(f"The body arrives too slowly: less than {least}.", crowded=False)
            self._begin_window()
        elif now >= self._next:
            self._next = now + CROWDED_WINDOW_SECONDS
            if self._received < CROWDED_RATE * (now - self._start) and self._crowded():
                least = f"{CROWDED_RATE >> 10} KiB/s"
                raise TooSlow(f"The body arrives too slowly while others wait: less than {least}.", crowded=True)

    def pause(self, seconds: float) -> None:
        """Extend the deadlines by `seconds`, in which the sender could not send."""
        self._began += seconds
        self._end += seconds
        self._start += seconds
        self._window += seconds
        self._next += seconds

    def _begin_window(self) -> None:
        self._received = 0
        self._start = time.monotonic()
        self._window = self._start + WINDOW_SECONDS
        self._next = self._start + CROWDED_WINDOW_SECONDS
