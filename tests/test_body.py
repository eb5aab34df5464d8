"""Tests of the body of a request with a simulated client."""

from __future__ import annotations

import asyncio
import contextlib
import io
import random
import tracemalloc
from types import SimpleNamespace
from typing import Any, cast

from segment.memory import Budget
from segment.service import Service
from segment.web import body
from segment.web.body import Stream


class TestStream:
    def test_tiny_pieces_take_little_memory(self) -> None:
        """An object for each piece would take 200 times as much memory as is reserved for the bytes."""
        stream = Stream()
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            for number in range(100_000):
                stream.add(bytes([number % 251]))
            assert tracemalloc.get_traced_memory()[0] - before < 150_000
        finally:
            tracemalloc.stop()
        assert io.BufferedReader(stream).read() == bytes(number % 251 for number in range(100_000))

    def test_pieces_of_any_size_are_read_in_order(self) -> None:
        dice, stream, sent = random.Random(0), Stream(), b""
        for _ in range(200):
            piece = dice.randbytes(int(10 ** dice.uniform(0, 4.5)))
            stream.add(piece)
            sent += piece
        parts = []
        while part := stream.read(dice.randint(1, 9000)):
            parts.append(part)
        assert b"".join(parts) == sent


def test_a_body_in_tiny_pieces_is_received_at_intervals() -> None:
    """After some pieces, so that the kernel joins what arrives meanwhile."""
    pieces = 0

    async def receive() -> dict[str, Any]:
        nonlocal pieces
        pieces += 1
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def request() -> None:
        scope = {"headers": ((b"transfer-encoding", b"chunked"),), "state": {"gone": lambda: False}}
        settings = SimpleNamespace(receive_seconds=60, wait_seconds=1)
        budget = Budget(1 << 20)
        service = SimpleNamespace(upload_limit=budget.capacity, settings=settings, uploads_wait=False)
        with contextlib.suppress(TimeoutError), budget.reserve() as held:
            await asyncio.wait_for(body.Body(scope, receive).receive(cast(Service, service), held), 0.5)

    asyncio.run(request())
    assert body.SMALL_PIECES < pieces <= body.SMALL_PIECES + 1 + 0.5 / body.SMALL_SECONDS
