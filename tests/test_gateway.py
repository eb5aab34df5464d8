"""Tests of the ASGI application with a simulated client."""

from __future__ import annotations

import asyncio
import contextlib
import io
import math
import random
import threading
import tracemalloc
from types import SimpleNamespace
from typing import Any, cast

import pytest

from segment.memory import Budget
from segment.service import Service
from segment.web import gateway, pace


def application(environ: Any, start_response: Any) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "image/png")])
    return [bytes(1 << 18)]


def scope(state: dict[str, Any], method: str = "GET", headers: tuple[tuple[bytes, bytes], ...] = ()) -> dict[str, Any]:
    """The ASGI scope of a request for /."""
    return {
        "path": "/", "raw_path": b"/", "query_string": b"", "headers": headers, "method": method, "http_version": "1.1",
        "scheme": "http", "server": None, "client": None, "state": state,
    }  # fmt: skip


@pytest.mark.parametrize("others_wait", [True, False])
@pytest.mark.parametrize("pauses", [[0, 0, 0.5], [0.1, 0.1, 0.1, 0.1, 0.1]], ids=["stops", "slow"])
def test_a_slow_reader_is_cut_off_when_others_wait(
    pauses: list[float], others_wait: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client accepts the pieces of the response after these pauses: 64 KiB per 0.1 s, or less."""
    monkeypatch.setattr(pace, "CROWDED_WINDOW_SECONDS", 0.02)
    monkeypatch.setattr(pace, "CROWDED_RATE", 4 << 20)
    service = cast(Service, SimpleNamespace(requests_wait=others_wait))

    async def request() -> bool:
        closed, left = asyncio.Event(), [*pauses]
        state = {"abort": closed.set, "gone": closed.is_set}

        async def receive() -> dict[str, str]:
            await closed.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if left:
                await asyncio.wait([asyncio.create_task(closed.wait())], timeout=left.pop(0))

        await gateway.Gateway(application, service, 1, uploads=())(scope(state), receive, send)
        return closed.is_set()

    assert asyncio.run(request()) == others_wait


class TestBody:
    def test_tiny_pieces_take_little_memory(self) -> None:
        """An object for each piece would take 200 times as much memory as is reserved for the bytes."""
        body = gateway.Body()
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            for number in range(100_000):
                body.add(bytes([number % 251]))
            assert tracemalloc.get_traced_memory()[0] - before < 150_000
        finally:
            tracemalloc.stop()
        assert io.BufferedReader(body).read() == bytes(number % 251 for number in range(100_000))

    def test_pieces_of_any_size_are_read_in_order(self) -> None:
        dice, body, sent = random.Random(0), gateway.Body(), b""
        for _ in range(200):
            piece = dice.randbytes(int(10 ** dice.uniform(0, 4.5)))
            body.add(piece)
            sent += piece
        parts = []
        while part := body.read(dice.randint(1, 9000)):
            parts.append(part)
        assert b"".join(parts) == sent


def test_a_body_in_tiny_pieces_is_received_at_intervals() -> None:
    """After some pieces, so that the kernel joins what arrives meanwhile."""
    pieces = 0

    async def receive() -> dict[str, Any]:
        nonlocal pieces
        pieces += 1
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def send(message: Any) -> None:
        pass

    async def request() -> None:
        post = scope({"gone": lambda: False}, "POST", ((b"transfer-encoding", b"chunked"),))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(
                gateway.Gateway(application, uploading(Budget(1 << 20)), 1, uploads={"/"})(post, receive, send), 0.5
            )

    asyncio.run(request())
    assert gateway.SMALL_PIECES < pieces <= gateway.SMALL_PIECES + 1 + 0.5 / gateway.SMALL_SECONDS


def test_whether_a_request_waits_for_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway, "CROWDED_SECONDS", 0.05)
    over = threading.Event()

    async def run() -> None:
        made = gateway.Gateway(application, uploading(Budget(1 << 20)), 1, uploads=())
        assert not made.threads_wait()
        first = asyncio.create_task(made.in_thread(over.wait))
        await asyncio.sleep(0.1)
        assert not made.threads_wait()
        second = asyncio.create_task(made.in_thread(over.wait))
        await asyncio.sleep(0.1)
        assert made.threads_wait()
        assert made.fetch_seconds() == 15
        crowd = [asyncio.create_task(made.in_thread(over.wait)) for _ in range(2)]
        await asyncio.sleep(0.1)
        assert made.fetch_seconds() == 5  # each of three that wait has to wait for at most 15 s
        crowd += [asyncio.create_task(made.in_thread(over.wait)) for _ in range(20)]
        await asyncio.sleep(0.1)
        assert made.fetch_seconds() == pace.CROWDED_WINDOW_SECONDS
        over.set()
        await asyncio.gather(first, second, *crowd)
        assert not made.threads_wait()
        assert made.fetch_seconds() == math.inf

    asyncio.run(run())


def test_requests_that_fetch_leave_a_thread_for_others() -> None:
    """Two slow URLs, and a photo that is answered meanwhile."""
    over = threading.Event()

    def slow(environ: Any, start_response: Any) -> list[bytes]:
        assert not environ["QUERY_STRING"] or over.wait(60)
        return application(environ, start_response)

    async def run() -> None:
        made = gateway.Gateway(slow, uploading(Budget(1 << 20)), 2, uploads=(), fetching=1)

        async def request(query: bytes) -> None:
            async def receive() -> Any:
                await asyncio.Future()

            async def send(message: Any) -> None:
                pass

            await made({**scope({}), "query_string": query}, receive, send)

        fetches = [asyncio.create_task(request(b"url=http://a/")) for _ in range(2)]
        await asyncio.sleep(0.05)
        await asyncio.wait_for(request(b""), 30)
        assert not any(fetch.done() for fetch in fetches)
        over.set()
        await asyncio.gather(*fetches)

    asyncio.run(run())


def uploading(budget: Budget) -> Service:
    """A service with this memory for uploads."""
    return cast(
        Service,
        SimpleNamespace(
            ready=True,
            upload_limit=budget.capacity,
            receive=budget.reserve,
            settings=SimpleNamespace(receive_seconds=60, wait_seconds=1),
            uploads_wait=False,
            requests_wait=False,
        ),
    )


def test_a_body_that_was_not_read_is_freed_before_the_response_is_sent() -> None:
    """Its memory is no longer reserved then, and the client may take long to read the response."""
    bodies, left = list[gateway.Body](), list[int]()

    def refusing(environ: Any, start_response: Any) -> list[bytes]:
        bodies.append(environ["wsgi.input"])
        assert len(bodies[0].chunks) == 1
        return application(environ, start_response)

    async def request() -> None:
        messages: list[dict[str, Any]] = [{"type": "http.request", "body": bytes(1000), "more_body": False}]

        async def receive() -> dict[str, Any]:
            return messages.pop() if messages else await asyncio.Future()

        async def send(message: Any) -> None:
            left.append(len(bodies[0].chunks))

        post = scope({"gone": lambda: False}, "POST", ((b"content-length", b"1000"),))
        await gateway.Gateway(refusing, uploading(Budget(1 << 20)), 1, uploads={"/"})(post, receive, send)

    asyncio.run(request())
    assert set(left) == {0}
