"""The threads in which requests are answered. Some stay free of fetches of URLs, which can be slow."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import TypeVar

from segment.service import CROWDED_SECONDS
from segment.web.pace import CROWDED_WINDOW_SECONDS

THREAD_SECONDS = 15.0
"""Time in which a request should get a thread, however many URLs are slow. Each fetch gets a share of it."""

Value = TypeVar("Value")


class Threads:
    """`count` threads, of which at most `fetching` are given to requests that may fetch a URL."""

    def __init__(self, count: int, fetching: int) -> None:
        self._pool = ThreadPoolExecutor(count, "request")
        self._most_fetching = fetching
        self._fetching = asyncio.Semaphore(fetching)
        self._waiting: dict[object, float] = {}  # the calls that wait for a thread, and since when

    async def call(self, function: Callable[[], Value], *, fetches: bool = False) -> Value:
        """Call `function` in a thread. `fetches`: whether it may fetch a URL."""
        call = object()

        def start() -> Value:
            self._waiting.pop(call, None)
            return function()

        self._waiting[call] = time.monotonic()
        try:
            async with self._fetching if fetches else nullcontext():
                return await asyncio.get_running_loop().run_in_executor(self._pool, start)
        finally:
            self._waiting.pop(call, None)

    def fetch_seconds(self) -> float:
        """How long a fetch may take: infinite until a request has waited for a thread for CROWDED_SECONDS.

        The more requests wait, the less.
        """
        waiting = [*self._waiting.copy().values()]
        if not waiting or time.monotonic() - waiting[0] <= CROWDED_SECONDS:
            return math.inf
        return max(CROWDED_WINDOW_SECONDS, THREAD_SECONDS * self._most_fetching / len(waiting))
