"""Tests of the ASGI application with a simulated client."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from segment.memory import Budget
from segment.service import Service
from segment.web import gateway


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
def test_a_slow_reader_is_cut_off_when_others_wait(others_wait: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client reads the beginning of the response, and nothing more for half a second."""
    monkeypatch.setattr(gateway, "CROWDED_WINDOW_SECONDS", 0.02)
    service = cast(Service, SimpleNamespace(requests_wait=others_wait))

    async def request() -> bool:
        closed, sent = asyncio.Event(), list[Any]()
        state = {"abort": closed.set, "gone": closed.is_set}

        async def receive() -> dict[str, str]:
            await closed.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)
            if len(sent) == 3:
                await asyncio.wait([asyncio.create_task(closed.wait())], timeout=0.5)

        await gateway.Gateway(application, service, 1, uploads=())(scope(state), receive, send)
        return closed.is_set()

    assert asyncio.run(request()) == others_wait


def test_a_body_that_was_not_read_is_freed_before_the_response_is_sent() -> None:
    """Its memory is no longer reserved then, and the client may take long to read the response."""
    budget = Budget(1 << 20)
    settings = SimpleNamespace(receive_seconds=60, wait_seconds=1)
    service = SimpleNamespace(
        ready=True,
        upload_limit=1 << 20,
        receive=budget.reserve,
        settings=settings,
        uploads_wait=False,
        requests_wait=False,
    )
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
        await gateway.Gateway(refusing, cast(Service, service), 1, uploads={"/"})(post, receive, send)

    asyncio.run(request())
    assert set(left) == {0}
