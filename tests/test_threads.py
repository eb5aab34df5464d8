"""Tests of the threads in which requests are answered."""

from __future__ import annotations

import asyncio
import math
import threading

import pytest

from segment.web import pace, threads
from segment.web.threads import Threads


def test_the_more_requests_wait_the_less_time_a_fetch_gets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "CROWDED_SECONDS", 0.05)
    over = threading.Event()

    async def run() -> None:
        tested = Threads(1, 1)
        calls = list[asyncio.Task[bool]]()

        async def more(count: int) -> float:
            calls.extend(asyncio.create_task(tested.call(over.wait)) for _ in range(count))
            await asyncio.sleep(0.1)
            return tested.fetch_seconds()

        assert await more(0) == math.inf
        assert await more(1) == math.inf  # it has the thread
        assert await more(1) == 15
        assert await more(2) == 5  # each of three that wait has to wait for at most 15 s
        assert await more(20) == pace.CROWDED_WINDOW_SECONDS
        over.set()
        await asyncio.gather(*calls)
        assert tested.fetch_seconds() == math.inf

    asyncio.run(run())
