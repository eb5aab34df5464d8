"""A request that brings photos, and the memory that it holds until its answer is sent."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from flask import Request, Response

from segment.memory import Reservation
from segment.service import Service
from segment.web.fetch import Site, fetch

RECEIVED, CANCELLED = "segment.received", "segment.cancelled"
"""Keys of the WSGI environment, set by segment/web/gateway.py: the Reservation of a body that has been received,
and a function that says whether the client has gone. A plain WSGI server sets neither."""

Handler = Callable[[Service, Request], Response]


@dataclass(frozen=True)
class Exchange:
    """A request in work. `held`: reserves what it brings. `until`: is closed when the answer has been sent."""

    service: Service
    request: Request
    held: Reservation
    until: ExitStack

    def received(self, count: int) -> None:
        """Reserve `count` bytes of the body, unless the gateway has done so. Raises TooLarge, Busy."""
        if RECEIVED not in self.request.environ:
            self.held.grow(count)

    def cancelled(self) -> bool:
        """Whether the client has gone."""
        return bool(self.request.environ.get(CANCELLED, lambda: False)())

    def fetch(self, url: str, site: Site | None = None) -> bytes:
        """The photo at `url`. Raises RefusedURL, FetchError, TooLarge, Busy."""
        settings = self.service.settings
        return fetch(
            url,
            limit=self.service.upload_limit,
            seconds=settings.fetch_seconds,
            private=settings.fetch_private,
            received=self.held.grow,
            site=site,
        )


def handler(answer: Callable[[Exchange], Response]) -> Handler:
    """A handler that gives `answer` the memory it needs, and frees it when the response has been sent."""

    def handle(service: Service, request: Request) -> Response:
        with ExitStack() as stack:
            held = request.environ.get(RECEIVED) or stack.enter_context(service.receive())
            response = answer(Exchange(service, request, held, stack))
            response.call_on_close(stack.pop_all().close)
            return response

    return handle
