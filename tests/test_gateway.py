"""Tests of the ASGI application with a simulated client."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from segment.service import Service
from segment.web import gateway


def application(environ: Any, start_response: Any) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "image/png")])
    return [bytes(1 << 18)]


@pytest.mark.parametrize("others_wait", [True, False])
def test_a_slow_reader_is_cut_off_when_others_wait(others_wait: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client reads the beginning of the response, and nothing more for half a second."""
    monkeypatch.setattr(gateway, "CROWDED_WINDOW_SECONDS", 0.02)
    service = cast(Service, SimpleNamespace(requests_wait=others_wait))

    async def request() -> bool:
        closed, sent = asyncio.Event(), list[Any]()
        scope: dict[str, Any] = {
            "path": "/", "raw_path": b"/", "query_string": b"", "headers": [], "method": "GET", "http_version": "1.1",
            "scheme": "http", "server": None, "client": None, "state": {"abort": closed.set, "gone": closed.is_set},
        }  # fmt: skip

        async def receive() -> dict[str, str]:
            await closed.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)
            if len(sent) == 3:
                await asyncio.wait([asyncio.create_task(closed.wait())], timeout=0.5)

        await gateway.Gateway(application, service, 1, uploads=())(scope, receive, send)
        return closed.is_set()

    assert asyncio.run(request()) == others_wait
