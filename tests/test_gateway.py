"""Tests of the ASGI application with a simulated client."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace
from typing import Any, cast

import pytest

from segment.memory import Budget
from segment.service import Service
from segment.web import gateway, pace
from segment.web.body import Stream


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
    bodies, left = list[Stream](), list[int]()

    def refusing(environ: Any, start_response: Any) -> list[bytes]:
        bodies.append(environ["wsgi.input"])
        assert len(bodies[0].pieces) == 1
        return application(environ, start_response)

    async def request() -> None:
        messages: list[dict[str, Any]] = [{"type": "http.request", "body": bytes(1000), "more_body": False}]

        async def receive() -> dict[str, Any]:
            return messages.pop() if messages else await asyncio.Future()

        async def send(message: Any) -> None:
            left.append(len(bodies[0].pieces))

        post = scope({"gone": lambda: False}, "POST", ((b"content-length", b"1000"),))
        await gateway.Gateway(refusing, uploading(Budget(1 << 20)), 1, uploads={"/"})(post, receive, send)

    asyncio.run(request())
    assert set(left) == {0}
